"""Sentences on what an intervention does: the effect, its controls, whether they differ.

The effect against the clean run leads, then that of each matched control at the predictions that
both count, then the verdict on the difference (`wording.control_verdict`). Where the interval of a
difference and its q-value disagree, both are said.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

from ..core.labels import row_label
from ..stats.effects import EffectSize, is_significant, within_rounding
from .record import Record
from .wording import (
    control_verdict,
    describe,
    effect_of,
    interval_of,
    interval_or_q,
    is_close,
    phrase,
    place_of,
    tested,
)

NO_CONTROL = "there is no control"
HIGHER = {"more than": "higher than", "less than": "lower than"}
FALLS = {"more than": "a smaller fall than", "less than": "a larger fall than"}
"""The words for two effects that are both negative."""


@dataclass(frozen=True)
class Compared:
    """A sentence for every condition of a metric: the effect, its controls, do they differ.

    Where a condition has several rows (layers, heads), the one whose interval lies farthest from 0
    is said, or without such an interval the largest; of rows that average different layers the
    effects are summed over layers first. An effect within float rounding, such as one that is 0 by
    construction, is no finding.

    Attributes:
        what: What was done, without the condition's name: `Replacing BOS by`.
        metric: Whose effect.
        conditions: Which conditions; empty means all.
    """

    what: str
    metric: str
    conditions: tuple[str, ...] = ()

    def __call__(self, result: Record) -> Iterator[str]:
        """The sentences."""
        groups: dict[str, list[EffectSize]] = {}
        for row in result.effects:
            wanted = not self.conditions or row.condition in self.conditions
            treated = (row.metric, row.kind) == (self.metric, "treatment")
            if treated and wanted:
                groups.setdefault(row.condition, []).append(row)
        for rows in groups.values():
            if all(is_zero(row) for row in rows):
                continue
            unlike = len({row.layers for row in rows}) > 1
            size = partial(_over_all_layers, result) if unlike else lambda row: row.effect
            chosen = max(rows, key=lambda row: (abs(size(row)) * _surely(row), abs(size(row))))
            rule = "the one whose interval is farthest from 0" if _surely(chosen) else "the largest"
            summed = " when summed over layers (shown is their mean)" if unlike else ""
            chosen_of = f"of {len(rows)} rows {rule}{summed}"
            yield effect_sentence(result, self.what, chosen, chosen_of if len(rows) > 1 else "")


def every_row(result: Record) -> Iterator[str]:
    """A sentence for every metric and condition, for an experiment that declares none."""
    for metric in dict.fromkeys(row.metric for row in result.effects):
        yield from Compared("Under", metric)(result)
        rows = [row for row in result.effects if row.metric == metric]
        treated = [row for row in rows if row.kind == "treatment"]
        moved = {row.condition for row in treated if not is_zero(row)}
        for condition in dict.fromkeys(row.condition for row in treated):
            if condition not in moved:
                yield f"Under {condition}: {metric} does not change beyond rounding error."
        for row in rows:
            if row.kind == "measurement":
                of = " ".join(part for part in (row.condition, place_of(row)) if part)
                at = f" at queries {row.queries}" if row.queries else ""
                yield f"{metric} of {of}{at}: {phrase(result, row)}."


def _surely(row: EffectSize) -> float:
    """The share of an effect that its interval leaves: 0 where it includes 0 or is not there."""
    if row.ci_low is None or row.ci_high is None or not row.effect:
        return 0.0
    return max(row.ci_low, -row.ci_high, 0.0) / abs(row.effect)


def _over_all_layers(result: Record, row: EffectSize) -> float:
    """An effect summed over all layers, so that rows over different layers can be compared."""
    array = result.arrays[f"{row.metric}_by_layer"]
    number = array.labels("run").index(row_label(row.condition, row.layer, row.head))
    return float((array.values[number] - array.values[0]).sum())


def beside_control(
    result: Record, treatment: EffectSize, control: EffectSize, contrast: EffectSize
) -> str:
    """Whether an effect differs from that of its control, and from what random weights give."""
    name = f"its {f'{control.against}'.replace('_', '-')} control"
    its = f"{effect_of(control)}{interval_of(control)}"
    difference = f"difference {effect_of(contrast)}{interval_of(contrast)}"
    own = effect_of(replace(contrast, effect=contrast.value))
    if own != effect_of(treatment):
        difference = f"at the queries that both count {own}, {difference}"
    models = result.of_random_models(contrast)
    side = control_verdict(contrast, models)
    falls = models is None and max(contrast.value, contrast.baseline) < 0
    side = (FALLS if falls else HIGHER).get(side, side)
    if models is None:
        aside = interval_or_q(result, contrast)
        return f"{side} {name} ({its}; {difference}{aside})"
    expected = "that of models with random weights"
    if not result.measure(contrast.metric).signed:
        expected = "what their ratio in models with random weights would make it"
    close = f"; {tested(contrast)}" if is_close(contrast) else ""
    return (
        f"its difference from {name} ({its}; {difference}) is {side} {expected} "
        f"({effect_of(models)}{interval_of(models)}{close})"
    )


def does_more(result: Record, treatment: EffectSize) -> bool:
    """Whether an effect is significantly larger than each of its controls."""
    pairs = result.references(treatment)
    return bool(pairs) and all(
        is_significant(contrast)
        and abs(contrast.value) > abs(contrast.baseline)
        and control_verdict(contrast, result.of_random_models(contrast))
        == ("more than" if contrast.effect > 0 else "less than")
        for _, contrast in pairs
    )


def is_zero(row: EffectSize) -> bool:
    """Whether an effect is 0 but for float32 rounding of what was measured."""
    return within_rounding(row.effect, row.baseline, row.value)


def effect_sentence(result: Record, what: str, treatment: EffectSize, chosen_of: str = "") -> str:
    """One effect in words: against the clean run first, then against its controls.

    Args:
        result: The result.
        what: What was done, without the condition's name.
        treatment: The row.
        chosen_of: Of what it was chosen, such as `of 6 rows the largest`.
    """
    said = f"{what} {treatment.condition}"
    if place_of(treatment):
        said += f" at {place_of(treatment)}"
    if chosen_of:
        choice = "; the interval ignores the choice" if interval_of(treatment) else ""
        said += f" ({chosen_of}{choice})"
    over = f" over {treatment.layers}" if treatment.layers else ""
    said += f": {treatment.metric}{over} {describe(treatment)} against the clean run"
    against = [beside_control(result, treatment, *pair) for pair in result.references(treatment)]
    return f"{said}; {' and '.join(against) or NO_CONTROL}."
