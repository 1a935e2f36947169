"""How far heads are from their mean, with and without some columns.

    KL_h = mean over queries i of KL(A_hi || mean over heads of A_hi)

in nats (Ruscio et al. 2025, 2508.02546; on attention weights, not on values). Its mean over heads
is the entropy of the mean row minus the mean entropy of the rows, and is computed so, for many sets
of columns at once. Removing columns sets their weights to 0 and renormalises the rest of
each row. A row without other visible keys is left unchanged (row 0 of a causal model, which could
only be filled from the future); a head without weight on the remaining columns becomes uniform.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

SETS_AT_ONCE = 64
NEARBY = 1 / 8
# Negligible beside any weight; a row of only this value is uniform.
FLOOR = 1e-30


def sink_columns(
    pattern: Float[Tensor, "batch head query key"], percentile: float
) -> Bool[Tensor, "batch key"]:
    """Keys whose attention, summed over heads and queries, reaches a percentile of all keys'.

    There are always some: about (1 - percentile) n.
    """
    incoming = pattern.double().sum((1, 2))
    return incoming >= incoming.quantile(percentile, dim=-1, keepdim=True)


def columns_nearby(
    sinks: Bool[Tensor, "batch key"], order: Float[Tensor, "set key"]
) -> Bool[Tensor, "batch set key"]:
    """As many other columns at nearby positions, one set for each row of `order`.

    Under a causal mask early columns are visible to more queries, so the columns that sinks are
    compared with have to be as early. Each sink in turn takes the nearest column that is neither a
    sink nor taken. Where sinks are more than half of all columns, there are fewer than sinks.

    Args:
        sinks: The columns to match.
        order: Numbers in [0, 1); the distance of a column counts as up to `NEARBY` of the length
            longer, so that sets differ.
    """
    length = sinks.shape[-1]
    keys = torch.arange(length, device=sinks.device)
    extra = order * max(2.0, NEARBY * length)
    taken = sinks[:, None].repeat(1, len(order), 1)
    most = int(sinks.sum(-1).max())
    # The positions of each prompt's sinks, -1 after the last one.
    places = sinks.float().topk(most, dim=-1).indices.sort(-1).values
    places = places.masked_fill(~sinks.gather(-1, places), -1)
    for place in places.T:
        distance = (keys - place[:, None]).abs()[:, None] + extra
        nearest = distance.masked_fill(taken, torch.inf).min(-1)
        free = torch.isfinite(nearest.values) & (place >= 0)[:, None]
        taken = taken | (torch.nn.functional.one_hot(nearest.indices, length) * free[..., None] > 0)
    return taken & ~sinks[:, None]


def head_divergence(
    pattern: Float[Tensor, "batch head query key"],
    removed: Bool[Tensor, "batch set key"],
    visible: Bool[Tensor, "query key"],
) -> Float[Tensor, "batch set query"]:
    """The mean over heads of KL(head || mean head) in each row, without each set of columns.

    In float64 where the pattern is, else in float32.
    """
    weights = pattern if pattern.dtype == torch.float64 else pattern.float()
    weights = weights / weights.sum(-1, keepdim=True)
    weights = weights + FLOOR * visible
    entropy = torch.special.entr(weights)
    whole = torch.special.entr(weights.mean(1)).sum(-1) - entropy.sum(-1).mean(1)
    parts = [
        _without(weights, entropy, ~part, visible, whole)
        for part in removed.split(SETS_AT_ONCE, dim=1)
    ]
    return torch.cat(parts, 1)


def _without(
    weights: Float[Tensor, "batch head query key"],
    entropy: Float[Tensor, "batch head query key"],
    kept: Bool[Tensor, "batch set key"],
    visible: Bool[Tensor, "query key"],
    whole: Float[Tensor, "batch query"],
) -> Float[Tensor, "batch set query"]:
    kept = kept.to(weights.dtype)
    left = torch.einsum("bhqk,bsk->bhsq", weights, kept)
    # The entropy of p / Z is log Z + (entropy of p, its share kept) / Z.
    scale = left.clamp_min(torch.finfo(left.dtype).tiny)
    rows = scale.log() + torch.einsum("bhqk,bsk->bhsq", entropy, kept) / scale
    mean = torch.einsum("bhqk,bhsq->bsqk", weights, 1 / scale) / weights.shape[1]
    divergence = torch.special.entr(mean * kept[:, :, None]).sum(-1) - rows.mean(1)
    empty = torch.einsum("qk,bsk->bsq", visible.to(kept.dtype), kept) == 0
    return torch.where(empty, whole[:, None], divergence)
