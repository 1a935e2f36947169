"""The parts of `reference_frame`: what each makes of attention, and its rows.

frame     columns c_j, the mean attention that key j gets, and their scores (`functional.frames`)
graph     edges where head-averaged attention exceeds a threshold (`functional.graphs`)
spectrum  singular values of head-averaged attention (`functional.graphs`)
topology  persistent homology of 1 - max(A, A^T) (`functional.persistence`)
shares    the share of what queries read that comes from reference points
          (`probes.reference_points`)

`head_kl`, which acts on single heads, is in `_head_kl`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...core.protocol import HookedModel
from ...functional.frames import COLUMN_METRICS, FRAME_METRICS, column_metrics, frame_metrics
from ...functional.graphs import (
    GRAPH_METRICS,
    SPECTRUM_METRICS,
    graph_metrics,
    received,
    singular_values,
    spectrum_metrics,
    threshold_graph,
    uniform_attention,
)
from ...functional.persistence import BETTI_CURVES, PERSISTENCE_METRICS, SCALES, persistence
from ...models.random_weights import RANDOM_WEIGHTS
from ...probes import Probe
from ...probes.patterns import (
    ATTENTION,
    ROW_PERMUTED,
    UNIFORM,
    MeanPatterns,
    PatternReader,
    Reduction,
)
from ...probes.reference_points import SPACES, ReferenceShares
from ...results.estimates import Measure, proportion
from ...runner.run import Run
from ._nulls import RANDOM_UNIFORM, BesideNulls, BySource, at

Read = dict[str, dict[str, Tensor]]
"""By name what was read of attention and its nulls, by source `[prompt, layer, ...]`."""
# The graph metrics that have a row of their own; the others are in the arrays.
SHOWN = ("star_likeness", "gini", "combined_star", "centralisation", "density", "fiedler")
_beside_uniform = partial(Measure, null="uniform attention")
_share = partial(proportion, null="uniform attention")
MEASURES = {
    "largest_column": _share("share of attention", form=".1%"),
    "effective_anchors": _beside_uniform("keys"),
    "first_share": _share("share of the columns' sum", form=".1%"),
    "last_share": _share("share of the columns' sum", form=".1%"),
    "stability": proportion("share of layer pairs", "keys drawn at random", ".1%"),
    "centralised": _share("share of the columns' sum", form=".1%"),
    "distributed": _share("share of the columns' sum", form=".1%"),
    "bidirectional": _share("share of the columns' sum", form=".1%"),
    "star_likeness": _share("share of queries", form=".1%"),
    "gini": _beside_uniform(""),
    "combined_star": _beside_uniform(""),
    "centralisation": _beside_uniform(""),
    "density": _share("share of pairs", form=".1%"),
    "fiedler": _beside_uniform("eigenvalue"),
    "participation_ratio": _beside_uniform(""),
    "stable_rank": _beside_uniform(""),
    "singular_gap": _beside_uniform("share of the largest", form=".1%"),
    "persistence0": _beside_uniform("sum of bar lengths"),
    "persistence1": _beside_uniform("sum of bar lengths"),
    "reference_share": _share("share of the norm", form=".0%"),
    "head_kl": Measure("nats", "the value with all columns"),
    "kl_reduction_z": Measure("standard deviations", "random columns"),
}


def columns_of(pattern: Tensor, visible: Tensor, layer: int) -> dict[str, Tensor]:
    """The mean attention that every key gets."""
    return {"columns": received(pattern, visible)}


def spectrum(pattern: Tensor, visible: Tensor, layer: int) -> dict[str, Tensor]:
    """The singular values and their figures."""
    values = singular_values(pattern)
    return {**spectrum_metrics(values), "singular_values": values}


def topology(pattern: Tensor, visible: Tensor, layer: int) -> dict[str, Tensor]:
    """Persistence sums and Betti curves."""
    return persistence(pattern)


def graph(
    pattern: Tensor,
    visible: Tensor,
    layer: int,
    *,
    absolute: Sequence[float],
    relative: Sequence[float],
    self_loops: bool,
) -> dict[str, Tensor]:
    """All graph metrics at all thresholds, those relative to uniform attention last."""
    uniform = uniform_attention(visible)
    levels = [torch.full_like(uniform, level) for level in absolute]
    thresholds = torch.stack([*levels, *(uniform * multiple for multiple in relative)])
    edges = threshold_graph(pattern, thresholds, self_loops=self_loops)
    return graph_metrics(edges, visible, self_loops=self_loops)


def reductions(run: Run[Any], names: Sequence[str]) -> list[Reduction]:
    """What the parts of these names make of every head-averaged pattern."""
    config = run.config
    known: dict[str, Reduction] = {
        "frame": columns_of,
        "graph": partial(
            graph,
            absolute=config.thresholds,
            relative=config.relative,
            self_loops=config.self_loops,
        ),
        "spectrum": spectrum,
        "topology": topology,
    }
    return [known[name] for name in known if name in names]


def read_attention(
    run: Run[Any], model: HookedModel, parts: Sequence[str], *beside: Probe, draws: int = 0
) -> Read:
    """What the parts read of the attention of a model, and of its nulls.

    Args:
        run: Knows prompts and settings.
        model: Its model, or one with the same masks.
        parts: Their names.
        beside: Probes that read the same run.
        draws: Row-permuted patterns.
    """
    seed, tokens = run.config.seed, run.prompts.tokens
    reader = PatternReader(model, run.capabilities, tokens, draws=draws, seed=seed)
    patterns = MeanPatterns(model, reader, reductions(run, parts))
    shares = []
    if "shares" in parts:
        shares.append(ReferenceShares(model, reader, threshold=run.config.reference))
    run.read(patterns, *shares, *beside, model=model)
    read: Read = defaultdict(dict)
    for (source, name), values in patterns.compute().items():
        read[name][source] = values
    for one in shares:
        read["reference_share"] = one.compute()
        del read["reference_share"]["points"]
    return read


def above(threshold: float) -> str:
    """The condition of an absolute threshold."""
    return f"above_{threshold:g}"


def above_uniform(multiple: float) -> str:
    """The condition of a threshold relative to uniform attention."""
    return f"above_{multiple:g}x_uniform"


def add_frame(run: Run[Any], nulls: BesideNulls, columns: BySource) -> None:
    """Scores of the columns, for all layers and for layers with and without a window."""
    for kind, layers in run.capabilities.layer_groups(run.prompts.length):
        uniform = columns[UNIFORM][:, layers]
        of_random = columns.get(RANDOM_UNIFORM, columns[UNIFORM])[:, layers]
        scores = {}
        for source, by_layer in columns.items():
            own = by_layer[:, layers]
            if source == ROW_PERMUTED:
                scores[source] = frame_metrics(own.transpose(1, 2), uniform[:, None])
            else:
                beside = of_random if source.startswith(RANDOM_WEIGHTS) else uniform
                scores[source] = frame_metrics(own, beside)
        # Uniform attention has no leading key; those of two layers agree by chance.
        for source in {UNIFORM, RANDOM_UNIFORM} & scores.keys():
            scores[source]["stability"] = torch.full((len(uniform),), 1 / uniform.shape[-1])
        for metric in FRAME_METRICS:
            if metric in scores[ATTENTION]:
                values = {source: by_metric[metric] for source, by_metric in scores.items()}
                nulls.add(metric, f"{ATTENTION}{kind}", values)
    nulls.keep("columns", columns, "key")
    by_column = {source: column_metrics(by_layer) for source, by_layer in columns.items()}
    for metric in COLUMN_METRICS:
        nulls.keep(metric, {source: scores[metric] for source, scores in by_column.items()})


def add_graph(run: Run[Any], nulls: BesideNulls, read: Read) -> None:
    """The shown metrics at the leading threshold, star-likeness at some others, curves for all."""
    config, lead = run.config, above_uniform(run.config.lead)
    names = [*map(above, config.thresholds), *map(above_uniform, config.relative)]
    for metric in SHOWN:
        nulls.add_mean(metric, lead, at(read[metric], names.index(lead)))
    for name in map(above, config.shown):
        nulls.add_mean("star_likeness", name, at(read["star_likeness"], names.index(name)))
    for metric in GRAPH_METRICS:
        nulls.keep(metric, read[metric], "threshold", threshold=names)


def add_spectrum(nulls: BesideNulls, read: Read) -> None:
    """The figures of the singular values."""
    for metric in SPECTRUM_METRICS:
        nulls.add_mean(metric, ATTENTION, read[metric])
        nulls.keep(metric, read[metric])
    nulls.keep("singular_values", read["singular_values"], "rank")


def add_topology(nulls: BesideNulls, read: Read) -> None:
    """Persistence sums; Betti curves over scales are arrays."""
    for metric in PERSISTENCE_METRICS:
        nulls.add_mean(metric, "symmetric", read[metric])
        nulls.keep(metric, read[metric])
    for metric in BETTI_CURVES:
        nulls.keep(metric, read[metric], "scale", scale=SCALES)


def add_shares(nulls: BesideNulls, shares: BySource) -> None:
    """The share of the reference points in every space."""
    for place, space in enumerate(SPACES):
        nulls.add_mean("reference_share", space, at(shares, place))
    nulls.keep("reference_share", shares, "space", space=SPACES)
