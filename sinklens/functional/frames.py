"""Reference frames: how received attention is distributed over keys and over layers.

Ruscio et al. 2025 (2508.02546) describe centralised (one anchor), distributed (several) and
bidirectional (both ends) frames, without a classification rule; these scores are ours. From the
columns c_lj of a layer l (`graphs.received`) and those of uniform attention u_lj:

    largest_column     max over j of c_lj
    effective_anchors  (sum_j c_lj)^2 / sum_j c_lj^2
    first_share        c_l0 over the sum of the columns; last_share the same for the last key

averaged over layers. For what follows, the excess over uniform attention e_lj = max(c_lj - u_lj, 0)
over the sum of the layer's columns, and its mean over layers E_j:

    stability      share of the pairs of layers whose largest excess is at the same key; keys drawn
                   at random would give 1 / n
    bidirectional  2 min(E_first, E_last)
    centralised    the largest E_j, less min(E_first, E_last) where that key is an end
    distributed    the rest of sum_j E_j

The last three add up to the whole excess; uniform attention has 0, 0, 0. Averaging over layers
comes first, so a key counts as one anchor only if it is the same in many layers. In a causal model
the last column is the last query's weight on itself, which is all a bidirectional score reflects.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

FRAME_TYPES = ("centralised", "distributed", "bidirectional")
COLUMN_METRICS = ("largest_column", "effective_anchors", "first_share", "last_share")
FRAME_METRICS = (*COLUMN_METRICS, "stability", *FRAME_TYPES)


def column_metrics(columns: Float[Tensor, "*batch key"]) -> dict[str, Float[Tensor, "*batch"]]:
    """The scores of one layer's columns, by name."""
    columns = columns.double()
    total = columns.sum(-1)
    return {
        "largest_column": columns.amax(-1),
        "effective_anchors": total**2 / (columns**2).sum(-1),
        "first_share": columns[..., 0] / total,
        "last_share": columns[..., -1] / total,
    }


def frame_metrics(
    columns: Float[Tensor, "*batch layer key"], uniform: Float[Tensor, "*#batch layer key"]
) -> dict[str, Float[Tensor, "*batch"]]:
    """All scores of a model, by name; `stability` only where there are two layers."""
    columns, uniform = columns.double(), uniform.double()
    scores = {name: values.mean(-1) for name, values in column_metrics(columns).items()}
    excess = (columns - uniform).clamp_min(0) / columns.sum(-1, keepdim=True)
    if columns.shape[-2] > 1:
        scores["stability"] = _agreement((columns - uniform).argmax(-1))
    mean = excess.mean(-2)
    both = torch.minimum(mean[..., 0], mean[..., -1])
    largest, place = mean.max(-1)
    at_end = (place == 0) | (place == mean.shape[-1] - 1)
    scores["bidirectional"] = 2 * both
    scores["centralised"] = largest - torch.where(at_end, both, 0.0)
    scores["distributed"] = (
        mean.sum(-1) - scores["centralised"] - scores["bidirectional"]
    ).clamp_min(0)
    return scores


def _agreement(choice: Tensor) -> Float[Tensor, "*batch"]:
    """The share of pairs along the last axis that are equal."""
    n = choice.shape[-1]
    same = (choice.unsqueeze(-1) == choice.unsqueeze(-2)).double().sum((-1, -2))
    return (same - n) / (n * (n - 1))
