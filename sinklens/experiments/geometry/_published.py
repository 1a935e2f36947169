"""What the published pipeline of 2508.02546 gives, for `reference_frame(preset=published)`.

Reproduced without its libraries, on the model as it is loaded (the paper's code loads 4 bits):

    graph     self-loops on, seven absolute thresholds, dense arithmetic (its code drops keys
              without edges for more than 50 tokens)
    topology  ripser on 1 - A as it stands, first 30 tokens, in the layers 0, L/4, L/2, 3L/4 and
              the last: for a causal A it sees the masked half
              alone, so "Betti 0" is the number of tokens, "Betti 1" is 0, and the mean persistence
              is the mean weight of queries i >= 1 on themselves
    head_kl   "KL reduction" = before - after, on every other layer and, above 20 tokens, 20 rows;
              a row of which nothing is left is spread over all other tokens, later ones too
    spectrum  absolute eigenvalues: ratio of the first two, participation ratio. Those of a causal
              matrix are its diagonal, so that the ratio is 1 over the largest A_ii, i >= 1

Topology and spectrum have no such closed form in models that see both ways and are left out there.
Its values stand beside uniform attention, which it does not do. Not reproduced are its p-values,
which treat layers as independent, its correlations, the figures of hidden states (transformation
magnitude, cosines), the cosine and difference of reference points, and the comparison with random
matrices.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...core.protocol import HookedModel
from ...functional.divergence import head_divergence, sink_columns
from ...functional.graphs import GRAPH_METRICS, graph_metrics, threshold_graph
from ...models.capabilities import hook_name
from ...probes.base import Gathered
from ...probes.patterns import ATTENTION, UNIFORM, PatternReader
from ._table import Read, Table

THRESHOLDS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
PERCENTILES = (0.8, 0.9, 0.95)
SHOWN = ("star_likeness", "combined_star", "centralisation", "fiedler")
TOPOLOGY = ("betti0", "betti1", "mean_persistence")
SPECTRUM = ("eigenvalue_ratio", "eigenvalue_participation")
TOKENS, ROWS, EVERY = 30, 20, 2
DIFFERENCE = (
    "Rows named published follow the published code: self-loops on, absolute thresholds alone, "
    "persistence of 1 - A unsymmetrised, eigenvalues of a triangular matrix, and rows with no key "
    "left spread over later tokens; of the paper's other figures (p-values, correlations, hidden "
    "states, random matrices) there is none. The others have self-loops off, thresholds relative "
    "to uniform attention, a symmetric distance, singular values, and leave such rows alone."
)


def published_reduction(
    pattern: Float[Tensor, "batch query key"], visible: Tensor, layer: int, *, causal: bool
) -> dict[str, Tensor]:
    """Graph, persistence and eigenvalues as published, a `Reduction`."""
    n = pattern.shape[-1]
    thresholds = torch.tensor(THRESHOLDS, device=pattern.device)[:, None, None].expand(-1, n, n)
    edges = threshold_graph(pattern, thresholds, self_loops=True)
    graph = graph_metrics(edges, visible, self_loops=True)
    found = {f"published:{name}": graph[name] for name in GRAPH_METRICS}
    if causal:
        values = pattern.double().diagonal(dim1=-2, dim2=-1).sort(-1, descending=True).values
        found["published:eigenvalue_ratio"] = values[:, 0] / values[:, 1].clamp_min(1e-9)
        found["published:eigenvalue_participation"] = values.sum(-1) ** 2 / (values**2).sum(-1)
        itself = pattern[:, :TOKENS, :TOKENS].diagonal(dim1=-2, dim2=-1)
        found["published:betti0"] = torch.full_like(itself[:, 0], itself.shape[1])
        found["published:betti1"] = torch.zeros_like(itself[:, 0])
        found["published:mean_persistence"] = itself[:, 1:].mean(-1)
    return found


def published_layers(n_layers: int) -> list[int]:
    """The layers whose topology the published code looks at."""
    return sorted({0, n_layers // 4, n_layers // 2, 3 * n_layers // 4, n_layers - 1})


class PublishedReductions:
    """The "KL reduction" as published, by prompt and percentile."""

    def __init__(self, model: HookedModel, reader: PatternReader) -> None:
        """Read the pattern of every other layer of `model`."""
        self._reader = reader
        self._layers = range(0, reader.capabilities.n_layers, EVERY)
        self._seen = Gathered()
        self.fwd_hooks: list[tuple[str, Any]] = [
            (hook_name("pattern", layer), partial(self._read, layer=layer))
            for layer in self._layers
        ]

    def _read(
        self, pattern: Float[Tensor, "batch head query key"], hook: Any, *, layer: int
    ) -> None:
        pattern = self._reader.checked(pattern, layer)
        n = pattern.shape[-1]
        sinks = [sink_columns(pattern, percentile) for percentile in PERCENTILES]
        removed = torch.stack([torch.zeros_like(sinks[0]), *sinks], 1)
        everything = torch.ones(n, n, dtype=torch.bool, device=pattern.device)
        divergence = head_divergence(pattern, removed, everything)
        if n > ROWS:
            chosen = torch.linspace(0, n - 1, ROWS, dtype=torch.float64).long()
            divergence = divergence[..., chosen]
        mean = divergence.mean(-1)
        self._seen.add(layer, mean[:, :1] - mean[:, 1:])

    def compute(self) -> Float[Tensor, "prompt percentile"]:
        """Mean over the layers that were read."""
        return torch.stack([self._seen.concatenated(layer) for layer in self._layers]).mean(0)

    def reset(self) -> None:
        """Forget everything."""
        self._seen.clear()


def published_rows(
    table: Table, read: Read, reductions: Float[Tensor, "prompt percentile"]
) -> None:
    """All of it, beside uniform attention; heads that are all uniform have no KL."""
    for name in SHOWN:
        for place, threshold in enumerate(THRESHOLDS):
            value, even = (
                read[source, f"published:{name}"][..., place].double().mean(1)
                for source in (ATTENTION, UNIFORM)
            )
            table.beside_nulls(name, f"published:above_{threshold:g}", value, even)
    for name in GRAPH_METRICS:
        table.by_layer(f"published:{name}", read, f"published:{name}", ("threshold",))
    for name in (*TOPOLOGY, *SPECTRUM):
        if (ATTENTION, f"published:{name}") in read:
            value, even = (
                read[source, f"published:{name}"].double() for source in (ATTENTION, UNIFORM)
            )
            layers = published_layers(value.shape[1]) if name in TOPOLOGY else slice(None)
            value, even = value[:, layers].mean(1), even[:, layers].mean(1)
            table.beside_nulls(name, "published", value, even)
    for place, percentile in enumerate(PERCENTILES):
        value = reductions[:, place]
        condition = f"published:percentile_{percentile:g}"
        table.beside_nulls("kl_reduction", condition, value, torch.zeros_like(value))
