"""Reference points, and the share of what a query reads that comes from them.

Reference points of a layer are the keys whose mean received attention (head-averaged, over all
queries) exceeds 0.1, else the top tenth, at most three tenths of all (Ruscio et al. 2025,
2508.02546).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def reference_points(
    pattern: Float[Tensor, "batch query key"],
    *,
    threshold: float = 0.1,
    fallback: float = 0.1,
    most: float = 0.3,
) -> Bool[Tensor, "batch key"]:
    """The keys that get most attention, by the rule above; at least one."""
    mean = pattern.mean(-2)
    n = mean.shape[-1]
    ranks = mean.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    above = mean > threshold
    top = ranks < max(1, int(fallback * n))
    chosen = torch.where(above.any(-1, keepdim=True), above, top)
    return chosen & (ranks < max(1, int(most * n)))


def contribution_share(
    part: Float[Tensor, "batch query width"],
    whole: Float[Tensor, "batch query width"],
    counted: Bool[Tensor, "batch query"],
) -> Float[Tensor, " batch"]:
    """The mean over counted queries of |part| / |whole|, at most 1 each."""
    norm = whole.norm(dim=-1).clamp_min(torch.finfo(whole.dtype).tiny)
    share = (part.norm(dim=-1) / norm).clamp(max=1)
    mean: Tensor = (share * counted).sum(-1) / counted.sum(-1)
    return mean
