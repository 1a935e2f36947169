"""What `reference_frame` makes of every head-averaged pattern: one `Reduction` a part."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ...functional.graphs import (
    GRAPH_METRICS,
    graph_metrics,
    received,
    singular_values,
    spectrum_metrics,
    threshold_graph,
    uniform_attention,
)
from ...functional.persistence import persistence
from ...probes.patterns import Reduction


def columns(pattern: Tensor, visible: Tensor, layer: int) -> dict[str, Tensor]:
    """The mean attention that every key gets."""
    return {"columns": received(pattern, visible)}


def spectrum(pattern: Tensor, visible: Tensor, layer: int) -> dict[str, Tensor]:
    """The singular values and their figures."""
    values = singular_values(pattern)
    return {**spectrum_metrics(values), "singular_values": values}


def topology(pattern: Tensor, visible: Tensor, layer: int) -> dict[str, Tensor]:
    """Persistence sums and Betti curves."""
    return persistence(pattern)


def graph(absolute: Sequence[float], relative: Sequence[float], *, self_loops: bool) -> Reduction:
    """All graph metrics at all thresholds, the absolute ones first."""
    return partial(_graph, absolute=absolute, relative=relative, self_loops=self_loops)


def threshold_names(absolute: Sequence[float], relative: Sequence[float]) -> list[str]:
    """The names of the graph's thresholds, in order."""
    return [
        *(f"above_{one:g}" for one in absolute),
        *(f"above_{one:g}x_uniform" for one in relative),
    ]


def _graph(
    pattern: Tensor,
    visible: Tensor,
    layer: int,
    *,
    absolute: Sequence[float],
    relative: Sequence[float],
    self_loops: bool,
) -> dict[str, Tensor]:
    even = uniform_attention(visible)
    same = [torch.full_like(even, one) for one in absolute]
    thresholds = torch.stack([*same, *(even * one for one in relative)])
    edges = threshold_graph(pattern, thresholds, self_loops=self_loops)
    found = graph_metrics(edges, visible, self_loops=self_loops)
    return {name: found[name] for name in GRAPH_METRICS}
