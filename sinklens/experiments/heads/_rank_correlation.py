"""Rank correlations of one side with many, covariates partialled out, and permutations.

Spearman's rho is Pearson's of ranks; the partial one that of what is left of both sides' ranks
after a least-squares fit on the covariates' ranks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

Columns = np.ndarray
"""`[item, column]`."""
SMALL = 1e-9


def units(values: Columns, covariates: Columns | None = None) -> Columns:
    """Centred ranks of each column, of length 1; NaN in a column that does not vary."""
    ranks = stats.rankdata(values, axis=0)
    fit = np.ones((len(ranks), 1))
    if covariates is not None:
        fit = np.column_stack([fit, stats.rankdata(covariates, axis=0)])
    left = ranks - fit @ np.linalg.lstsq(fit, ranks, rcond=None)[0]
    norms = np.linalg.norm(left, axis=0)
    scaled: Columns = left / np.where(norms > SMALL * len(ranks) ** 1.5, norms, np.nan)
    return scaled


def rank_correlation(one: Columns, many: Columns, covariates: Columns | None = None) -> np.ndarray:
    """Rho of the single column `one` with each column; NaN where a side does not vary."""
    first = units(one[:, None], covariates)[:, 0]
    found: np.ndarray = first @ units(many, covariates)
    return found


def permuted_correlations(
    one: Columns, many: Columns, groups: Columns, seeds: Sequence[int], times: int
) -> np.ndarray:
    """Rho `[time, column]` with `one` in random order within groups.

    Args:
        one: The side that is permuted.
        many: The others.
        groups: By item, the number of its group.
        seeds: By group, of its orders, so that they do not depend on the other groups.
        times: How many orders.
    """
    first, second = units(one[:, None])[:, 0], units(many)
    orders = np.empty((times, len(first)))
    for group, seed in enumerate(seeds):
        mine = np.flatnonzero(groups == group)
        random = np.random.default_rng(seed)
        orders[:, mine] = random.permuted(np.tile(first[mine], (times, 1)), axis=1)
    found: np.ndarray = orders @ second
    return found
