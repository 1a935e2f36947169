"""The jackknife: an interval for a figure of all prompts, from leaving out one prompt at a time.

With theta the figure of all n prompts and theta_(-p) that without prompt p, each prompt gets the
pseudo-value

    theta + (n - 1) (mean of all theta_(-q) - theta_(-p)).

Their mean is theta, and Student's t on them is the interval. They are not corrected for bias, which
could move an estimate out of the range that it can have.
"""

from __future__ import annotations

import numpy as np

from .effects import Values


def pseudo_values(whole: float, without: Values) -> Values:
    """One number per prompt, whose mean is the figure and whose spread is the jackknife's.

    Args:
        whole: The figure of all prompts.
        without: The figure without each prompt.
    """
    return np.asarray(whole + (len(without) - 1) * (without.mean() - without))
