"""What the code of Ruscio et al. 2025 (2508.02546) gives, for `preset=published`.

Reproduced without its libraries, on the model as it is loaded (the paper's code loads 4 bits):

    graph     self-loops on, seven absolute thresholds, density = edges / n^2, dense arithmetic (its
              code drops keys without edges for more than 50 tokens). A layer counts for a threshold
              where the density is 0.05 to 0.95, and every fourth layer does in any case; a graph
              of less than two edges has scores of 0
    topology  ripser on 1 - A as it stands, on at most 48 tokens, of these 30 spread ones, in the
              layers 0, s, 2 s, 3 s and the last, s = L // 4: of a causal A it sees the masked half
              alone, so that "Betti 0" is the number of tokens, "Betti 1" is 0, and the mean
              persistence is the mean weight of queries i >= 1 on themselves
    head_kl   "KL reduction" = before - after, in the first, every other and the last layer (all of
              at most 6) and, above 20 tokens, in 20 spread rows; a row of which nothing is left is
              spread over all other tokens, later ones too
    spectrum  absolute eigenvalues in all layers: ratio of the first two, participation ratio. Those
              of a causal matrix are its diagonal, so that the ratio is 1 over the largest A_ii,
              i >= 1

Its texts are cut at 48 tokens for topology, as here, and at 128 for head_kl, which takes all here.
It averages over prompts layer by layer; a row here is the mean over the layers that count, one
number per prompt.

Topology and spectrum have no such closed form in bidirectional models and are left out there.
Its values stand beside uniform attention, which it does not do. Not reproduced are its p-values,
which treat layers as independent, its correlations, the figures of hidden states (transformation
magnitude, cosines), the cosine and difference of reference points, and the comparison with random
matrices.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...functional.divergence import head_divergence, sink_columns
from ...functional.graphs import GRAPH_METRICS, graph_metrics, threshold_graph
from ...probes.base import LayerProbe
from ...probes.patterns import ATTENTION, MeanPatterns, PatternReader
from ...results.estimates import Measure, Sample
from ...results.record import Record
from ...results.wording import null_verdict
from ...runner.run import Run
from ._nulls import BesideNulls, at

THRESHOLDS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
PERCENTILES = (0.8, 0.9, 0.95)
SHOWN = ("star_likeness", "combined_star", "centralisation", "fiedler")
TOPOLOGY = ("betti0", "betti1", "mean_persistence")
SPECTRUM = ("eigenvalue_ratio", "eigenvalue_participation")
FIRST_TOKENS, SPREAD_TOKENS, ROWS = 48, 30, 20
DENSITY, EVERY = (0.05, 0.95), 4
MEASURES = {
    "kl_reduction": Measure("nats", "no reduction"),
    "betti0": Measure("points in the diagram", "uniform attention"),
    "betti1": Measure("points in the diagram", "uniform attention"),
    "mean_persistence": Measure("bar length", "uniform attention"),
    "eigenvalue_ratio": Measure("ratio", "uniform attention"),
    "eigenvalue_participation": Measure("eigenvalues", "uniform attention"),
}
DIFFERENCE = (
    "Rows named published follow the published code: self-loops on; absolute thresholds alone, in "
    "the layers where the density of the graph is 0.05 to 0.95 and in every fourth; persistence "
    "of 1 - A unsymmetrised; eigenvalues of a triangular matrix; and rows with no key left spread "
    "over later tokens. The paper's p-values, correlations, hidden-state figures and comparison "
    "with random matrices are not reproduced. The other rows have self-loops off, thresholds "
    "relative to uniform attention, a symmetric distance and singular values, and leave attention "
    "rows with no key left as they are."
)


def spread(length: int, most: int) -> list[int]:
    """At most so many places of a length, spread evenly, the first and the last among them."""
    if length <= most:
        return list(range(length))
    return [int(place) for place in np.linspace(0, length - 1, most, dtype=int)]


def reduction_layers(n_layers: int) -> list[int]:
    """The layers whose "KL reduction" the published code computes."""
    if n_layers <= 6:
        return list(range(n_layers))
    return [0, *range(1, n_layers - 1, 2), n_layers - 1]


def topology_layers(n_layers: int) -> list[int]:
    """The layers whose topology the published code looks at."""
    step = max(1, n_layers // 4)
    return sorted({min(place * step, n_layers - 1) for place in range(4)} | {n_layers - 1})


def published_reduction(
    pattern: Float[Tensor, "batch query key"], visible: Tensor, layer: int, *, causal: bool
) -> dict[str, Tensor]:
    """Graph, persistence and eigenvalues as published, a `Reduction`."""
    n = pattern.shape[-1]
    thresholds = torch.tensor(THRESHOLDS, device=pattern.device)[:, None, None].expand(-1, n, n)
    edges = threshold_graph(pattern, thresholds, self_loops=True)
    figures = graph_metrics(edges, torch.ones_like(visible), self_loops=True)
    several = edges.sum((-2, -1)) >= 2
    for name in set(GRAPH_METRICS) - {"density"}:
        figures[name] = figures[name].where(several, 0.0)
    if causal:
        values = pattern.double().diagonal(dim1=-2, dim2=-1).sort(-1, descending=True).values
        figures["eigenvalue_ratio"] = values[:, 0] / values[:, 1].clamp_min(1e-9)
        figures["eigenvalue_participation"] = values.sum(-1) ** 2 / (values**2).sum(-1)
        tokens = spread(min(n, FIRST_TOKENS), SPREAD_TOKENS)
        itself = pattern.diagonal(dim1=-2, dim2=-1)[:, tokens]
        figures["betti0"] = torch.full_like(itself[:, 0], itself.shape[1])
        figures["betti1"] = torch.zeros_like(itself[:, 0])
        figures["mean_persistence"] = itself[:, 1:].mean(-1)
    return figures


def counted_layers(
    density: Float[Tensor, "prompt layer threshold"],
) -> Bool[Tensor, "prompt layer threshold"]:
    """The layers in which the published code computes the graph of a prompt."""
    least, most = DENSITY
    counted = (density >= least) & (density <= most)
    counted[:, ::EVERY] = True
    return counted


class PublishedReductions(LayerProbe[Tensor]):
    """The "KL reduction" as published, `[prompt, layer, percentile]`."""

    def __init__(self, reader: PatternReader) -> None:
        """Read the pattern of the layers that the published code takes."""
        attention = reader.capabilities.attention
        super().__init__("pattern", [attention[at] for at in reduction_layers(len(attention))])
        self._reader = reader

    def reduce(
        self, pattern: Float[Tensor, "batch head query key"], layer: int, /
    ) -> Float[Tensor, "batch percentile"]:
        """Before less after, over some rows of the mean pattern of one layer."""
        pattern = self._reader.checked(pattern, layer).double()
        n = pattern.shape[-1]
        sinks = [sink_columns(pattern, percentile) for percentile in PERCENTILES]
        removed = torch.stack([torch.zeros_like(sinks[0]), *sinks], 1)
        everything = torch.ones(n, n, dtype=torch.bool, device=pattern.device)
        divergence = head_divergence(pattern, removed, everything)
        mean = divergence[..., spread(n, ROWS)].mean(-1)
        return mean[:, :1] - mean[:, 1:]


def add_published(run: Run[Any], nulls: BesideNulls) -> None:
    """All of it, from a run of its own; graph, topology and spectrum beside uniform attention."""
    causal = run.capabilities.causal
    reader = PatternReader(run.model, run.capabilities, run.prompts.tokens)
    reduction = partial(published_reduction, causal=causal)
    patterns = MeanPatterns(run.model, reader, [reduction])
    read, reductions = run.read(patterns, PublishedReductions(reader))
    values: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for (source, name), by_layer in read.items():
        values[name][source] = by_layer
    counted = counted_layers(values["density"][ATTENTION])
    run.keep("published:counted", counted.float().mean(0), "layer threshold", threshold=THRESHOLDS)
    for name in SHOWN:
        for place, threshold in enumerate(THRESHOLDS):
            layers = counted[..., place]
            means = {
                source: (by_layer.double() * layers).sum(1) / layers.sum(1)
                for source, by_layer in at(values[name], place).items()
            }
            nulls.add(name, f"published:above_{threshold:g}", means)
    for name in GRAPH_METRICS:
        nulls.keep(f"published:{name}", values[name], "threshold", threshold=THRESHOLDS)
    if causal:
        topology = topology_layers(len(run.capabilities.attention))
        for name in TOPOLOGY:
            chosen = {source: by_layer[:, topology] for source, by_layer in values[name].items()}
            nulls.add_mean(name, "published", chosen)
        for name in SPECTRUM:
            nulls.add_mean(name, "published", values[name])
    else:
        run.left_out(
            "published topology and eigenvalues",
            "they have no closed form for a bidirectional model",
        )
    for place, percentile in enumerate(PERCENTILES):
        condition = f"published:percentile_{percentile:g}"
        run.add("kl_reduction", condition, Sample(reductions[..., place].mean(1)))
    run.note(DIFFERENCE)


def as_published(result: Record) -> Iterator[str]:
    """At which thresholds the published star-likeness lies on which side of uniform attention."""
    thresholds: dict[str, list[str]] = {}
    for row in result.effects:
        _, _, threshold = row.condition.partition("published:above_")
        if row.metric == "star_likeness" and threshold:
            thresholds.setdefault(null_verdict(row), []).append(threshold)
    if thresholds:
        sides = "; ".join(
            f"{side} uniform attention at thresholds {', '.join(where)}"
            for side, where in thresholds.items()
        )
        yield f"As published, star-likeness is {sides}; the notes say what differs."
