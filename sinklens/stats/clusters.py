"""Intervals of measurements of which several come from one document.

Windows of one document are alike in what they measure by themselves (a loss, a share of attention),
so that they count for less than as many documents would. The mean over all values stays; with the
sums s_g of their distances from it over each of G documents, n values in all,

    standard error = sqrt(G / (G - 1) sum_g s_g^2) / n

and Student's t with G - 1 degrees of freedom (Liang and Zeger 1986). Where every document gives as
many values, this is the interval of the documents' means. Differences paired by prompt are not
clustered: what documents have in common cancels in them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Int
from scipy import stats
from torch import Tensor

from .effects import LEVEL, Row


def by_document(row: Row, documents: Int[Tensor, " prompt"] | None) -> Row:
    """The row with its interval over documents, where several of its values come from one.

    Args:
        row: A row; a measurement of one value per prompt, without draws, is clustered.
        documents: The number of each prompt's document; None where there are none.
    """
    alone = row.effect.kind == "measurement" and row.effect.n_draws == 1
    if documents is None or row.effect.ci_low is None or not alone:
        return row
    numbers = np.unique(documents.numpy(), return_inverse=True)[1]
    count, differences = int(numbers.max()) + 1, row.values - row.baselines
    if count == len(differences):
        return row
    low = high = None
    if count > 1:
        sums = np.bincount(numbers, differences - differences.mean())
        error = np.sqrt(count / (count - 1) * (sums**2).sum()) / len(differences)
        reach = float(stats.t.ppf(1 - LEVEL / 2, count - 1) * error)
        low, high = row.effect.effect - reach, row.effect.effect + reach
    clustered = replace(
        row.effect, ci_low=low, ci_high=high, d_z=None, n_prompts=count, resampled="document"
    )
    return replace(row, effect=clustered)
