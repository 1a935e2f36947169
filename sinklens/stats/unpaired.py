"""Effects of two groups that share no prompts: Welch's t, which assumes no equal variances."""

from __future__ import annotations

import warnings

import numpy as np
from jaxtyping import Float
from scipy import stats

from .effects import LEVEL, interval

Group = Float[np.ndarray, " prompt"]
OtherGroup = Float[np.ndarray, " other_prompt"]


def welch(values: Group, baselines: OtherGroup) -> tuple[float | None, float | None, float | None]:
    """The 95 % interval of mean(values) - mean(baselines), and its two-sided p.

    Returns:
        Lower end, upper end and p. A single point without p where neither group varies; nothing
        where a group has a single value.
    """
    if min(len(values), len(baselines)) < 2:
        return None, None, None
    ends = [interval(group) for group in (values, baselines)]
    if all(low == high for low, high in ends):
        difference = float(np.mean(values) - np.mean(baselines))
        return difference, difference, None
    with warnings.catch_warnings():  # that one group does not vary
        warnings.simplefilter("ignore", RuntimeWarning)
        test = stats.ttest_ind(values, baselines, equal_var=False)
        low, high = test.confidence_interval(1 - LEVEL)
    return float(low), float(high), float(test.pvalue)
