"""Attention as a graph, as columns and as a matrix: descriptive scores of a pattern.

All functions take patterns `[..., query, key]` whose rows are shares of attention, and reduce the
last two axes. `visible` says which keys a query sees; nulls spread its weight over these only:
`uniform_attention`, and `permute_rows`, which keeps the weights of every row and permutes their
positions.

Graph (Ruscio et al. 2025, 2508.02546): query i has an edge to key j where A_ij > t. With in-degrees
d_j and n positions:

    star_likeness    max d / (n - 1)
    gini             2 sum_k k d_(k) / (n sum d) - (n + 1) / n, d_(k) ascending; 0 without edges
    combined_star    0.3 star_likeness + 0.7 gini
    centralisation   sum_j (max d - d_j) / (n - 1)^2
    degree_variance  of d
    density          edges over the pairs that are visible
    fiedler          second smallest eigenvalue of diag(S 1) - S, S = (B + B^T) / 2
    spectral_gap     third less second

A perfect in-star (everyone to one key) has star_likeness and centralisation 1 and a Fiedler value
of 0.5, since averaging halves one-way edges. Uniform causal attention has every edge while
t < 1 / n, and with self-loops a star_likeness of n / (n - 1) without any sink.

Spectrum: singular values s of the matrix. Eigenvalues of a causal one are its diagonal.

    participation_ratio  (sum s)^2 / sum s^2
    stable_rank          sum s^2 / max s^2
    singular_gap         1 - second over largest; 1 where all rows are alike
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

GRAPH_METRICS = (
    "star_likeness",
    "gini",
    "combined_star",
    "centralisation",
    "degree_variance",
    "density",
    "fiedler",
    "spectral_gap",
)
SPECTRUM_METRICS = ("participation_ratio", "stable_rank", "singular_gap")
ROUNDING = 1e-9  # of eigenvalues that are 0, such as those of a disconnected graph


def visible_keys(
    length: int, *, causal: bool = True, window: int | None = None
) -> Bool[Tensor, "query key"]:
    """Which keys each query sees."""
    distance = torch.arange(length)[:, None] - torch.arange(length)
    seen = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
    return seen if window is None else seen & (distance.abs() < window)


def uniform_attention(visible: Bool[Tensor, "query key"]) -> Float[Tensor, "query key"]:
    """The same weight on every visible key."""
    return visible / visible.sum(-1, keepdim=True)


def permute_rows(
    pattern: Float[Tensor, "*batch query key"],
    order: Float[Tensor, "*batch query key"],
    visible: Bool[Tensor, "query key"],
) -> Float[Tensor, "*batch query key"]:
    """Each row's weights permuted among the keys visible to its query.

    Args:
        pattern: The patterns.
        order: Numbers in [0, 1), whose ranks give the order.
        visible: Which keys each query sees; weights on others stay where they are.
    """
    shuffled = order.masked_fill(~visible, 2.0).argsort(dim=-1, stable=True)
    ascending = (~visible).int().argsort(dim=-1, stable=True).expand_as(shuffled)
    source = torch.empty_like(shuffled).scatter_(-1, ascending, shuffled)
    return pattern.gather(-1, source.expand(pattern.shape))


def threshold_graph(
    pattern: Float[Tensor, "*batch query key"],
    thresholds: Float[Tensor, "threshold query key"],
    *,
    self_loops: bool = False,
) -> Bool[Tensor, "*batch threshold query key"]:
    """Edges where the weight exceeds a threshold, which may differ by query and key."""
    edges = pattern.unsqueeze(-3) > thresholds
    if self_loops:
        return edges
    return edges & ~torch.eye(pattern.shape[-1], dtype=torch.bool, device=pattern.device)


def graph_metrics(
    edges: Bool[Tensor, "*batch query key"],
    visible: Bool[Tensor, "query key"],
    *,
    self_loops: bool = False,
) -> dict[str, Float[Tensor, "*batch"]]:
    """The graph metrics of the module docstring, by name."""
    graph = edges.double()
    n = graph.shape[-1]
    degrees = graph.sum(-2)
    largest, total = degrees.amax(-1), degrees.sum(-1)
    ranks = torch.arange(1, n + 1, device=graph.device, dtype=graph.dtype)
    weighted = (ranks * degrees.sort(-1).values).sum(-1)
    gini = 2 * weighted / (n * total.clamp_min(1)) - (n + 1) / n
    gini = torch.where(total > 0, gini, 0.0)
    star = largest / (n - 1)
    pairs = visible.sum() if self_loops else visible.sum() - visible.diagonal().sum()
    symmetric = (graph + graph.mT) / 2
    laplacian = torch.diag_embed(symmetric.sum(-1)) - symmetric
    eigenvalues = torch.linalg.eigvalsh(laplacian)
    eigenvalues = eigenvalues.where(eigenvalues > ROUNDING, 0.0)
    return {
        "star_likeness": star,
        "gini": gini,
        "combined_star": 0.3 * star + 0.7 * gini,
        "centralisation": (n * largest - total) / (n - 1) ** 2,
        "degree_variance": degrees.var(-1, correction=0),
        "density": total / pairs.clamp_min(1),
        "fiedler": eigenvalues[..., 1],
        "spectral_gap": eigenvalues[..., 2] - eigenvalues[..., 1],
    }


def singular_values(
    pattern: Float[Tensor, "*batch query key"],
) -> Float[Tensor, "*batch rank"]:
    """The singular values, in descending order."""
    values: Tensor = torch.linalg.svdvals(pattern.double())
    return values


def spectrum_metrics(
    values: Float[Tensor, "*batch rank"],
) -> dict[str, Float[Tensor, "*batch"]]:
    """The statistics of singular values, by name."""
    squares = values**2
    return {
        "participation_ratio": values.sum(-1) ** 2 / squares.sum(-1),
        "stable_rank": squares.sum(-1) / squares[..., 0],
        "singular_gap": 1 - values[..., 1] / values[..., 0],
    }


def received(
    pattern: Float[Tensor, "*batch query key"], visible: Bool[Tensor, "query key"]
) -> Float[Tensor, "*batch key"]:
    """Columns: the mean attention that a key receives from the queries that see it.

    For causal attention c_j = mean over i >= j of A_ij, so that the last column is one weight, the
    last query's own.
    """
    return pattern.sum(-2) / visible.sum(-2)
