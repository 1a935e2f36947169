"""Persistent homology of attention, on a symmetric distance.

    D_ij = 1 - max(A_ij, A_ji),  D_ii = 0

Tokens are points; at scale t the Vietoris-Rips complex joins those with D <= t, up to t = 1, where
all are joined. A bar of dimension 0 is a component that lives until it is joined to an older one; a
bar of dimension 1 is a loop. Bars of length 0 are left out, and so is the component that never
dies. `betti0(t)` counts the components at scale t, `betti1(t)` the loops; a persistence sum is the
total length of the bars. A perfect in-star of weight w has n - 1 bars of length 1 - w in dimension
0 and none in dimension 1; a cycle of four edges of weight w has a loop from 1 - w to 1.

The published pipeline (Ruscio et al. 2025, 2508.02546) passes 1 - A to ripser unchanged. For a
causal pattern ripser then reads only the masked half, where every distance is 1, and takes the
diagonal as birth times. The result is as many "Betti 0" as tokens, no "Betti 1", and a mean
persistence equal to the mean weight of queries i >= 1 on themselves; it is not reproduced here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..core.errors import SinklensError

SCALES = tuple(round(0.1 * step, 1) for step in range(1, 10))
PERSISTENCE_METRICS = ("persistence0", "persistence1")
BETTI_CURVES = ("betti0", "betti1")


def require_gudhi() -> Any:
    """The library that computes persistence (gudhi).

    Raises:
        SinklensError: It is not installed.
    """
    try:
        import gudhi
    except ImportError as error:
        raise SinklensError(
            "topology=True needs gudhi, which is not installed; pip install 'sinklens[topology]'"
        ) from error
    return gudhi


def attention_distance(
    pattern: Float[Tensor, "*batch query key"],
) -> Float[Tensor, "*batch query key"]:
    """1 - max(A_ij, A_ji), with a diagonal of 0."""
    pattern = pattern.double()
    distance = 1 - torch.maximum(pattern, pattern.mT)
    return distance - torch.diag_embed(distance.diagonal(dim1=-2, dim2=-1))


def bars(distance: Float[Tensor, "point point"]) -> list[Float[np.ndarray, "bar 2"]]:
    """Birth and death of components and loops; the component that never dies has death infinity."""
    gudhi = require_gudhi()
    rips = gudhi.RipsComplex(distance_matrix=distance.cpu().numpy(), max_edge_length=1.0)
    complex_ = rips.create_simplex_tree(max_dimension=1)
    complex_.collapse_edges(1)
    complex_.expansion(2)
    complex_.compute_persistence()
    return [
        complex_.persistence_intervals_in_dimension(dimension).reshape(-1, 2)
        for dimension in (0, 1)
    ]


def persistence(
    pattern: Float[Tensor, "batch query key"], scales: Sequence[float] = SCALES
) -> dict[str, Tensor]:
    """Persistence sums `[batch]` and Betti curves `[batch, scale]`, by name."""
    sums, curves = [], []
    for distance in attention_distance(pattern):
        found = bars(distance)
        finite = [one[np.isfinite(one[:, 1])] for one in found]
        sums.append([float((one[:, 1] - one[:, 0]).sum()) for one in finite])
        curves.append(
            [[int(((one[:, 0] <= t) & (t < one[:, 1])).sum()) for t in scales] for one in found]
        )
    total, betti = torch.tensor(sums), torch.tensor(curves, dtype=torch.float32)
    return {
        "persistence0": total[:, 0],
        "persistence1": total[:, 1],
        "betti0": betti[:, 0],
        "betti1": betti[:, 1],
    }
