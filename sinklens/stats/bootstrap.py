"""Quantiles of a studentised mean over resampled values, for intervals of skewed differences.

The pivot of a resample of n values is (mean* - mean) / (deviation* / sqrt(n)). For normal values it
is distributed nearly as Student's t, for skewed ones it is skewed as well (Efron 1981; DiCiccio and
Efron 1996).
"""

from __future__ import annotations

import warnings

import numpy as np
from jaxtyping import Float
from scipy import stats

RESAMPLES = 4_000
LEAST = 4
"""Fewer values leave resamples that hardly differ."""


def pivot_quantiles(
    values: Float[np.ndarray, " prompt"], level: float, seed: int
) -> tuple[float, float] | None:
    """The quantiles of the pivot at `level` / 2 and 1 - `level` / 2.

    Args:
        values: One value per prompt.
        level: One minus the coverage.
        seed: Seed of the resamples.

    Returns:
        None for fewer than four values, and where too many resamples do not vary, as those of few
        values that differ from the rest.
    """
    if len(values) < LEAST:
        return None
    mean = values.mean()

    def pivot(resampled: Float[np.ndarray, "*batch prompt"], axis: int) -> np.ndarray:
        moved = resampled.mean(axis) - mean
        error = resampled.std(axis, ddof=1) / np.sqrt(len(values))
        far = np.where(moved == 0, 0, np.copysign(np.inf, moved))
        return np.where(error > 0, moved / np.where(error > 0, error, 1), far)

    with warnings.catch_warnings():  # that resamples do not vary, which is looked at here
        warnings.simplefilter("ignore")
        drawn = stats.bootstrap(
            (values,),
            pivot,
            n_resamples=RESAMPLES,
            vectorized=True,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).bootstrap_distribution
    low, high = np.quantile(drawn, (level / 2, 1 - level / 2), method="nearest")
    return (float(low), float(high)) if np.isfinite([low, high]).all() else None
