"""The jackknife: an interval for a statistic of all prompts, leaving out one prompt at a time.

With theta the statistic of all n prompts and theta_(-p) that without prompt p, each prompt gets the
pseudo-value

    theta + (n - 1) (mean of all theta_(-q) - theta_(-p)).

Their mean is theta, and Student's t on them gives the interval. There is no bias correction, which
could move an estimate out of its range.
"""

from __future__ import annotations

import numpy as np

from .effects import Values


def pseudo_values(whole: float, without: Values) -> Values:
    """One number per prompt, whose mean is the statistic and whose spread is the jackknife's.

    Args:
        whole: The statistic of all prompts.
        without: The statistic without each prompt.
    """
    return np.asarray(whole + (len(without) - 1) * (without.mean() - without))
