"""From what the probes of `reference_frame` read to rows and arrays, one function a part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..attention_graphs import GRAPH_METRICS, SPECTRUM_METRICS
from ..effects import Row, paired_row
from ..frames import COLUMN_METRICS, FRAME_METRICS, column_metrics, frame_metrics
from ..persistence import BETTI_CURVES, PERSISTENCE_METRICS
from ..probes.divergences import DivergenceValues
from ..probes.patterns import ATTENTION, ROW_PERMUTED, UNIFORM
from ..probes.reference_points import SPACES
from ..results import Array

RANDOM_WEIGHTS = "random_weights"
NEARBY = ":nearby"
Read = dict[tuple[str, str], Tensor]
UNITS = {
    "largest_column": "share of attention",
    "effective_anchors": "keys",
    "first_share": "share of the columns",
    "last_share": "share of the columns",
    "stability": "share of layer pairs",
    "centralised": "share of the columns",
    "distributed": "share of the columns",
    "bidirectional": "share of the columns",
    "star_likeness": "share of queries",
    "density": "share of pairs",
    "fiedler": "eigenvalue",
    "spectral_gap": "eigenvalue",
    "degree_variance": "queries squared",
    "participation_ratio": "singular values",
    "stable_rank": "singular values",
    "singular_gap": "share of the largest",
    "reference_share": "share of the norm",
    "kl_reduction": "nats",
    "betti0": "points in the diagram",
    "betti1": "points in the diagram",
    "mean_persistence": "bar length",
    "eigenvalue_ratio": "ratio",
    "eigenvalue_participation": "eigenvalues",
    "persistence0": "sum of bar lengths",
    "persistence1": "sum of bar lengths",
}
# The graph metrics that have a row of their own; the others are in the arrays.
SHOWN_GRAPH_METRICS = (
    "star_likeness",
    "gini",
    "combined_star",
    "centralisation",
    "density",
    "fiedler",
)
ANSWERS = ("largest_column", "effective_anchors", "centralised", "distributed", "bidirectional")


@dataclass
class Table:
    """Rows and arrays of a run as they are gathered.

    Attributes:
        seed: Decides the resamples of the tests.
        rows: The rows.
        arrays: The arrays.
        by_draw: Of every null row, the mean of each draw.
    """

    seed: int
    rows: list[Row] = field(default_factory=list)
    arrays: dict[str, Array] = field(default_factory=dict)
    by_draw: dict[str, list[float]] = field(default_factory=dict)

    def beside_nulls(
        self,
        metric: str,
        condition: str,
        value: Float[Tensor, " prompt"],
        uniform: Float[Tensor, " prompt"],
        permuted: Float[Tensor, "prompt draw"] | None = None,
    ) -> None:
        """A value beside uniform attention, and beside row-permuted attention where it was drawn.

        The contrast is the value's distance from uniform attention less that of the permuted one.
        """
        values, baselines = value.double().numpy(), uniform.double().numpy()
        unit = UNITS.get(metric, "1")
        self.rows.append(paired_row(metric, condition, "measurement", values, baselines, unit=unit))
        if permuted is None:
            return
        drawn = permuted.double().numpy()
        mean, count = drawn.mean(1), drawn.shape[1]
        self.by_draw[f"{metric} {condition}"] = drawn.mean(0).tolist()
        null = paired_row(metric, condition, "null", mean, baselines, unit=unit, n_draws=count)
        contrast = paired_row(
            metric,
            condition,
            "contrast",
            values - baselines,
            mean - baselines,
            unit=unit,
            tested=True,
            seed=self.seed,
            n_draws=count,
        )
        self.rows += [null, contrast]

    def against_random_weights(
        self,
        metric: str,
        value: Float[Tensor, " prompt"],
        random: Float[Tensor, " prompt"],
        uniform: Float[Tensor, " prompt"],
    ) -> None:
        """The same with random weights as a null, and the value's distance from it."""
        values, nulls, even = (x.double().numpy() for x in (value, random, uniform))
        named, unit = (metric, RANDOM_WEIGHTS), UNITS[metric]
        tested: dict[str, Any] = {"tested": True, "seed": self.seed}
        self.rows += [
            paired_row(*named, "null", nulls, even, unit=unit),
            paired_row(*named, "contrast", values - even, nulls - even, unit=unit, **tested),
        ]

    def by_layer(self, name: str, read: Read, metric: str, dims: Sequence[str] = ()) -> None:
        """The curve of a metric over layers, for attention and its nulls, mean over prompts."""
        for source in (ATTENTION, UNIFORM, ROW_PERMUTED):
            if (source, metric) in read:
                values = read[source, metric].double()
                values = values.mean(2) if source == ROW_PERMUTED else values
                suffix = "" if source == ATTENTION else f":{source}"
                mean = values.mean(0).float()
                self.arrays[f"{name}{suffix}"] = Array(mean, ("layer", *dims))


def frame_rows(
    table: Table,
    read: Read,
    random: Read | None,
    groups: Sequence[tuple[str, list[int]]],
) -> None:
    """The scores of columns: rows for the model and for its kinds of layers, curves over layers.

    Args:
        table: Takes them.
        read: What was read, with `columns`.
        random: The same of a model with random weights.
        groups: Names and layers: all, and where windows are shorter than the prompts each kind.
    """
    columns = {source: read[source, "columns"] for source, name in read if name == "columns"}
    n = columns[UNIFORM].shape[-1]
    for suffix, layers in groups:
        even = columns[UNIFORM][:, layers]
        scores = frame_metrics(columns[ATTENTION][:, layers], even)
        # Keys drawn at random; uniform attention itself has no leading key.
        null = frame_metrics(even, even) | {"stability": torch.full((len(even),), 1 / n)}
        permuted = None
        if ROW_PERMUTED in columns:
            drawn = columns[ROW_PERMUTED][:, layers].transpose(1, 2)
            permuted = frame_metrics(drawn, even[:, None])
        fresh = None
        if random is not None and not suffix:
            fresh = frame_metrics(random[ATTENTION, "columns"], even)
        for metric in FRAME_METRICS:
            if metric in scores:
                drawn_scores = None if permuted is None else permuted[metric]
                condition = f"{ATTENTION}{suffix}"
                table.beside_nulls(metric, condition, scores[metric], null[metric], drawn_scores)
        for metric in ANSWERS if fresh else ():
            assert fresh is not None
            table.against_random_weights(metric, scores[metric], fresh[metric], null[metric])
    _column_arrays(table, columns, random)


def _column_arrays(table: Table, columns: dict[str, Tensor], random: Read | None) -> None:
    """Columns and their scores by layer, mean over prompts and draws."""
    found = dict(columns)
    if ROW_PERMUTED in found:
        found[ROW_PERMUTED] = found[ROW_PERMUTED].transpose(1, 2).flatten(0, 1)
    if random is not None:
        found[RANDOM_WEIGHTS] = random[ATTENTION, "columns"]
    for source, values in found.items():
        suffix = "" if source == ATTENTION else f":{source}"
        table.arrays[f"columns{suffix}"] = Array(values.mean(0), ("layer", "key"))
        scores = column_metrics(values)
        for metric in COLUMN_METRICS:
            curve = scores[metric].mean(0).float()
            table.arrays[f"{metric}{suffix}"] = Array(curve, ("layer",))


def graph_rows(
    table: Table, read: Read, names: Sequence[str], lead: str, shown: Sequence[str]
) -> None:
    """All shown metrics at the leading threshold, star-likeness at some others, curves for all.

    Args:
        table: Takes them.
        read: What was read, one name a graph metric, `[prompt, layer, threshold]`.
        names: Of the thresholds.
        lead: The threshold of which all shown metrics have a row.
        shown: Further thresholds of which star-likeness has a row.
    """
    wanted = [(metric, lead) for metric in SHOWN_GRAPH_METRICS]
    wanted += [("star_likeness", name) for name in shown if name != lead]
    for metric, name in wanted:
        table.beside_nulls(metric, name, *_at(read, metric, names.index(name)))
    for metric in GRAPH_METRICS:
        table.by_layer(metric, read, metric, ("threshold",))


def _at(read: Read, metric: str, place: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """A metric at one threshold, mean over layers: attention, uniform and, by draw, permuted."""
    drawn = read.get((ROW_PERMUTED, metric))
    return (
        read[ATTENTION, metric][..., place].double().mean(1),
        read[UNIFORM, metric][..., place].double().mean(1),
        None if drawn is None else drawn[..., place].double().mean(1),
    )


def simple_rows(table: Table, read: Read, metrics: Sequence[str], condition: str) -> None:
    """Rows and curves of metrics that are one number a layer."""
    for metric in metrics:
        drawn = read.get((ROW_PERMUTED, metric))
        table.beside_nulls(
            metric,
            condition,
            read[ATTENTION, metric].double().mean(1),
            read[UNIFORM, metric].double().mean(1),
            None if drawn is None else drawn.double().mean(1),
        )
        table.by_layer(metric, read, metric)


def spectrum_rows(table: Table, read: Read) -> None:
    """Singular-value figures."""
    simple_rows(table, read, SPECTRUM_METRICS, ATTENTION)


def topology_rows(table: Table, read: Read) -> None:
    """Persistence sums, and the Betti curves over scales in the arrays."""
    simple_rows(table, read, PERSISTENCE_METRICS, "symmetric")
    for metric in BETTI_CURVES:
        table.by_layer(metric, read, metric, ("scale",))


def share_rows(table: Table, shares: dict[str, Tensor]) -> None:
    """The share of the reference points in every space."""
    drawn = shares.get(ROW_PERMUTED)
    for place, space in enumerate(SPACES):
        table.beside_nulls(
            "reference_share",
            space,
            shares[ATTENTION][..., place].double().mean(1),
            shares[UNIFORM][..., place].double().mean(1),
            None if drawn is None else drawn[..., place].double().mean(1),
        )
    for source, values in shares.items():
        if source == "points":
            continue
        mean = values.double().mean((0, 2)) if source == ROW_PERMUTED else values.double().mean(0)
        suffix = "" if source == ATTENTION else f":{source}"
        table.arrays[f"reference_share{suffix}"] = Array(mean.float(), ("layer", "space"))


def divergence_rows(
    table: Table, values: DivergenceValues, percentiles: Sequence[float], sets: int
) -> None:
    """KL of heads to their mean without sink columns, against random columns and others nearby.

    The effect is what taking the columns away does, so a reduction is negative.
    """
    whole = values.whole.double().mean(1).numpy()
    for place, percentile in enumerate(percentiles):
        condition = f"without_sinks:{percentile:g}"
        without = values.without_sinks[..., place].double().mean(1).numpy()
        tested: dict[str, Any] = {"unit": "nats", "tested": True, "seed": table.seed}
        table.rows.append(paired_row("head_kl", condition, "treatment", without, whole, **tested))
        controls = (("", values.without_random), (NEARBY, values.without_nearby))
        for suffix, found in controls if sets else ():
            named = ("head_kl", condition + suffix)
            other = found[..., place].double().mean(1).numpy()
            table.rows += [
                paired_row(*named, "control", other, whole, unit="nats", n_draws=sets),
                paired_row(
                    *named, "contrast", without - whole, other - whole, **tested, n_draws=sets
                ),
            ]
    if sets > 1:
        for place, percentile in enumerate(percentiles):
            z = z_scores(values)[..., place].double().mean(1).numpy()
            condition = f"without_sinks:{percentile:g}"
            unit = "standard deviations"
            row = paired_row("kl_reduction_z", condition, "measurement", z, 0 * z, unit=unit)
            table.rows.append(row)
    table.arrays["head_kl"] = Array(values.whole.mean(0), ("layer",))
    for name in ("without_sinks", "without_random", "without_nearby", "deviation"):
        array = Array(getattr(values, name).mean(0), ("layer", "percentile"))
        table.arrays[f"head_kl:{name}"] = array


def z_scores(values: DivergenceValues) -> Float[Tensor, "prompt layer percentile"]:
    """How far the reduction lies above that of random sets; 0 where all sets do the same."""
    more = values.without_random - values.without_sinks
    return torch.where(values.deviation > 1e-6, more / values.deviation.clamp_min(1e-6), 0.0)


def draw_array(table: Table) -> Iterator[tuple[str, Array]]:
    """The mean of each draw of every null row, in the order of `draws_made`."""
    if table.by_draw:
        values = torch.tensor(list(table.by_draw.values()))
        yield "control_draws", Array(values, ("null_row", "draw"))
