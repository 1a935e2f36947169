"""From what the probes of `reference_frame` read to rows and arrays, one function a part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...functional.frames import COLUMN_METRICS, FRAME_METRICS, column_metrics, frame_metrics
from ...functional.graphs import GRAPH_METRICS, SPECTRUM_METRICS
from ...functional.persistence import BETTI_CURVES, PERSISTENCE_METRICS
from ...models.random_weights import RANDOM_WEIGHTS
from ...probes.divergences import DivergenceValues
from ...probes.patterns import ATTENTION, ROW_PERMUTED, UNIFORM
from ...probes.reference_points import SPACES
from ...results.record import Array
from ...stats.effects import paired_row
from ._table import Read, Table

NEARBY = ":nearby"
# The graph metrics that have a row of their own; the others are in the arrays.
SHOWN_GRAPH_METRICS = (
    "star_likeness",
    "gini",
    "combined_star",
    "centralisation",
    "density",
    "fiedler",
)


def frame_rows(table: Table, read: Read, groups: Sequence[tuple[str, list[int]]]) -> None:
    """The scores of columns: rows for the model and for its kinds of layers, curves over layers.

    Args:
        table: Takes them.
        read: What was read, with `columns`.
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
        random = None
        if RANDOM_WEIGHTS in columns and not suffix:
            random = frame_metrics(columns[RANDOM_WEIGHTS][:, layers], even)
        for metric in FRAME_METRICS:
            if metric in scores:
                table.beside_nulls(
                    metric,
                    f"{ATTENTION}{suffix}",
                    scores[metric],
                    null[metric],
                    None if permuted is None else permuted[metric],
                    None if random is None else random[metric],
                )
    _column_arrays(table, columns)


def _column_arrays(table: Table, columns: dict[str, Tensor]) -> None:
    """Columns and their scores by layer, mean over prompts and draws."""
    found = dict(columns)
    if ROW_PERMUTED in found:
        found[ROW_PERMUTED] = found[ROW_PERMUTED].transpose(1, 2).flatten(0, 1)
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
        value, even, permuted, random = _over_layers(read, metric, names.index(name))
        random = random if name == lead else None
        table.beside_nulls(metric, name, value, even, permuted, random)
    for metric in GRAPH_METRICS:
        table.by_layer(metric, read, metric, ("threshold",))


def _over_layers(
    read: Read, metric: str, place: int | None = None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """The mean over layers of a metric (at one threshold or space), as `beside_nulls` takes it."""

    def mean(source: str) -> Tensor:
        values = read[source, metric]
        return (values if place is None else values[..., place]).double().mean(1)

    def null(source: str) -> Tensor | None:
        return mean(source) if (source, metric) in read else None

    return mean(ATTENTION), mean(UNIFORM), null(ROW_PERMUTED), null(RANDOM_WEIGHTS)


def simple_rows(table: Table, read: Read, metrics: Sequence[str], condition: str) -> None:
    """Rows and curves of metrics that are one number a layer."""
    for metric in metrics:
        table.beside_nulls(metric, condition, *_over_layers(read, metric))
        table.by_layer(metric, read, metric)


def spectrum_rows(table: Table, read: Read) -> None:
    """Singular-value figures."""
    simple_rows(table, read, SPECTRUM_METRICS, ATTENTION)
    table.by_layer("singular_values", read, "singular_values", ("rank",))


def topology_rows(table: Table, read: Read) -> None:
    """Persistence sums, and the Betti curves over scales in the arrays."""
    simple_rows(table, read, PERSISTENCE_METRICS, "symmetric")
    for metric in BETTI_CURVES:
        table.by_layer(metric, read, metric, ("scale",))


def share_rows(table: Table, shares: dict[str, Tensor]) -> None:
    """The share of the reference points in every space."""
    read = {(source, "reference_share"): values for source, values in shares.items()}
    for place, space in enumerate(SPACES):
        table.beside_nulls("reference_share", space, *_over_layers(read, "reference_share", place))
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
