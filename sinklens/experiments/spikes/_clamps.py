"""What is left of a spike behind an intervention on it, and what interventions say by step.

A spike that was taken away where it enters a block can be written again by later blocks. Its size
behind the intervention is the largest entry of the residual stream, at any position, over the
median of its layer, largest from the first entry point on (`spike`); where a spike comes in several
steps also from each entry point to the next (`spike_L3`, `spike_L12`). An intervention at a later
entry point cannot change an earlier one's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain, pairwise
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ...comparisons.spikes import at_all
from ...metrics import ProbeMetric
from ...probes import ResidualPeaks
from ...probes.spikes import PeakValues
from ...results.effect_sentences import HIGHER, effect_sentence
from ...results.record import Record
from ...results.wording import control_verdict, describe, grouped, place_of
from ...runner.compare import Comparison
from ...stats.effects import EffectSize

UNIT = "times the median"


def spike_metrics(layers: Sequence[int]) -> list[ProbeMetric]:
    """Spike size behind the first entry point, and by step where there are several.

    Args:
        layers: The blocks that the steps enter, in their order.
    """
    first, several = layers[0], len(layers) > 1
    peaks = partial(ResidualPeaks, first=first)
    spans: list[tuple[str, slice]] = [("spike", slice(None))]
    for layer, end in zip(layers, [*layers[1:], None], strict=True) if several else ():
        spans.append((f"spike_L{layer}", slice(layer - first, end and end - first)))
    return [ProbeMetric(name, peaks, partial(_largest, span=span), UNIT) for name, span in spans]


def _largest(peaks: PeakValues, *, span: slice) -> Float[Tensor, " prompt"]:
    """The largest entry over the median, of some layers."""
    return peaks.ratio[:, span].amax(1)


def idle(comparisons: Sequence[Comparison]) -> list[list[Any]]:
    """Condition and layer of those that change nothing, by construction."""
    firsts = [(one.condition, one.treatment[0]) for one in comparisons]
    return [[condition, edit.layer] for condition, edit in firsts if edit.identity]


def effects_by_step(result: Record, what: str, metric: str, edits: Sequence[str]) -> Iterator[str]:
    """For each intervention its effect at all entry points together, and at each alone.

    Args:
        result: The result.
        what: What was done, without the condition's name.
        metric: Whose effect.
        edits: The interventions.
    """
    for edit in edits:
        rows = rows_of_edit(result, metric, edit)
        for row in rows[-1:]:
            sentence = effect_sentence(result, what, row).removesuffix(".")
            apart = [
                f"at {place_of(step)} alone{_over(step, row)} {describe(step)}"
                f"{_beside(result, step)}"
                for step in rows[:-1]
            ]
            yield "; ".join([sentence, *apart]) + "."


def _beside(result: Record, step: EffectSize) -> str:
    """The verdict on each control of a step: ` (higher than median entries)`."""
    said = []
    for control, contrast in result.references(step):
        side = control_verdict(contrast, result.of_random_models(contrast))
        said.append((HIGHER.get(side, side), f"{control.against}".replace("_", " ")))
    return f" ({grouped(said)})" if said else ""


def _over(step: EffectSize, row: EffectSize) -> str:
    """The layers that a row averages, where another averages others."""
    return f", over {step.layers}," if step.layers and step.layers != row.layers else ""


def effects_on_sinks(result: Record, what: str, edits: Sequence[str]) -> Iterator[str]:
    """For each intervention its effect on the sink mass and on the share of heads with a sink.

    Args:
        result: The result.
        what: What was done, without the condition's name.
        edits: The interventions.
    """
    for edit in edits:
        metrics = ("sink_mass", "sink_rate")
        lines = [*chain(*(effects_by_step(result, what, metric, (edit,)) for metric in metrics))]
        if lines:
            yield " ".join(lines)


def written_again(result: Record, edit: str) -> Iterator[str]:
    """How large the spike is behind an intervention on it, and whether that is massive again."""
    points: dict[str, Any] = result.findings["entry_points"]
    spans = [f"spike_L{point[1:]}" for point in points]
    spans = [name for name in spans if rows_of_edit(result, name, edit)] or ["spike"]
    entered = [int(point[1:]) for point in points]
    ends = dict(pairwise(entered)) if len(spans) > 1 else {}
    said = []
    for number, row in enumerate(rows_of_edit(result, spans[0], edit)):
        behind = []
        for span in spans:
            after = rows_of_edit(result, span, edit)[number]
            layer = int(span.partition("_L")[2] or after.layer or 0)
            if row.layer is None or layer >= row.layer:
                times = points[f"L{layer}"]["times"]
                side = "still above" if after.value >= times else "below"
                end = ends.get(layer)
                where = (
                    f"from layer {layer} on" if end is None else f"in layers {layer} to {end - 1}"
                )
                behind.append(
                    f"{after.value:,.0f} {where} (clean run {after.baseline:,.0f}; {side} "
                    f"the {times:,.0f} times of its rule)"
                )
        at = f"at {place_of(row)}" if row.layer is not None else row.condition
        said.append(f"{at} {', '.join(behind)}")
    if said:
        yield f"The largest entry over the median after {edit}: {'; '.join(said)}."


def rows_of_edit(result: Record, metric: str, edit: str) -> list[EffectSize]:
    """The treatments of an intervention that change something: by step, and last all together."""
    idle = result.findings["changes_nothing"]
    return [
        row
        for row in result.effects
        if (row.metric, row.kind) == (metric, "treatment")
        and row.condition in (edit, at_all(edit))
        and [row.condition, row.layer] not in idle
    ]
