"""Sentences from the rows of a result, and the one rule for every verdict.

    against a null      by the interval of the distance: above, below, not distinguishable from;
                        of an empirical null that was tested, by its q as well;
                        beside a null that no value can be below (0 %) or above, no verdict;
                        without an interval (a single prompt, a number without spread) it says so
    against a control   by q of the contrast: more than, less than, not significantly different
                        from; without a test (a single prompt) it says so. A contrast that
                        models with random weights have as well is judged by theirs

An experiment declares `says`: templates and functions. A template names rows and findings:

    "Position 0 gets {sink_mass/position0}."          value, verdict and null, references
    "... {sink_mass/position0|value} of attention"    one part, as in `phrase`
    "Written by {step_up/*}."                         every such row, with its condition
    "... at queries {share/all@1:8}"                  a row about some queries
    "Entering layer {layer}, ..."                     a finding, with a format if it has one

A sentence appears only if everything that it names exists.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..core.labels import head_label
from ..stats.effects import LEVEL, EffectSize, is_significant, within_rounding
from .estimates import RANDOM_MODELS, Measure
from .record import Record

SMALL_P = 1e-4
NO_SPREAD = " [no spread]"
RELATIVE = {"more than": "higher than", "less than": "lower than", "above": "higher than"}
RELATIVE |= {"below": "lower than"}
NOT_DIFFERENT = ("not distinguishable from", "not significantly different from")
LONGEST_SUMMARY = 12
Says = Sequence["str | Callable[[Record], Iterable[str]]"]


def null_verdict(row: EffectSize) -> str:
    """On which side of its null a value lies, beyond float rounding; by the interval."""
    if row.ci_low is None or row.ci_high is None:
        return "without an interval beside"
    measured = row.baseline, row.value
    if row.ci_low > 0 and not within_rounding(row.ci_low, *measured):
        return "above"
    below = row.ci_high < 0 and not within_rounding(row.ci_high, *measured)
    return "below" if below else "not distinguishable from"


def control_verdict(contrast: EffectSize, models: EffectSize | None = None) -> str:
    """Whether a value is more than its control; by q of the contrast.

    Args:
        contrast: The row.
        models: The same contrast of models with random weights, if it is judged by these.
    """
    if contrast.p_value is None:
        return "not tested against"
    if not is_significant(contrast):
        return "not significantly different from"
    return "more than" if contrast.effect > (models.effect if models else 0) else "less than"


def verdict(row: EffectSize, contrast: EffectSize, models: EffectSize | None = None) -> str:
    """The verdict on a control or empirical null, by its kind.

    Beside an empirical null that was tested, the interval and q have both to say so.
    """
    if row.kind == "control":
        return control_verdict(contrast, models)
    if contrast.p_value is not None and not is_significant(contrast):
        return "not distinguishable from"
    return null_verdict(contrast)


def say(result: Record, says: Says) -> list[str]:
    """The sentences of a result, at most 12.

    Args:
        result: With its rows and findings.
        says: Templates, and functions that give sentences.
    """
    lines: list[str] = []
    for part in says:
        lines += _from_template(result, part) if isinstance(part, str) else part(result)
    return at_most(lines)


def at_most(lines: list[str], count: int = LONGEST_SUMMARY) -> list[str]:
    """The first of many sentences, and how many are left out."""
    if len(lines) <= count:
        return lines
    left = len(lines) - count + 1
    return [*lines[: count - 1], f"Left out here: {left} more sentences, on rows of the table."]


class Missing(Exception):
    """A sentence names a row or a finding that is not there."""


class _Template(string.Formatter):
    """Fills a template from the rows and findings of a result."""

    def __init__(self, result: Record) -> None:
        self._result = result

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> tuple[Any, str]:
        """A row, all rows of a metric, or a finding."""
        name = field_name
        if "/" in name:
            return _Rows(self._result, name), name
        if name not in self._result.findings or self._result.findings[name] is None:
            raise Missing(name)
        return self._result.findings[name], name

    def format_field(self, value: Any, format_spec: str) -> str:
        """A part of a row, or a finding with its format."""
        return value.said(format_spec) if isinstance(value, _Rows) else format(value, format_spec)

    def parse(self, text: str) -> Iterator[tuple[str, str | None, str | None, str | None]]:
        """As usual, but the name of a row may hold colons, and its part stands behind a bar."""
        for literal, name, spec, conversion in super().parse(text):
            if name is not None and "/" in name:
                name, _, spec = (f"{name}:{spec}" if spec else name).partition("|")
            yield literal, name, spec, conversion


def _from_template(result: Record, template: str) -> list[str]:
    try:
        return [_Template(result).format(template)]
    except Missing:
        return []


class _Rows:
    """What a name such as `sink_mass/position0@1:8` stands for."""

    def __init__(self, result: Record, name: str) -> None:
        metric, _, rest = name.partition("/")
        condition, _, queries = rest.partition("@")
        self._result, self._every = result, condition == "*"
        self._rows = [
            row
            for row in result.effects
            if row.metric == metric
            and row.against is None
            and (self._every or row.condition == condition)
            and (not queries or row.queries == queries)
        ]
        if not self._rows:
            raise Missing(name)

    def said(self, part: str) -> str:
        """One part of the rows, or all of it."""
        if not self._every:
            return phrase(self._result, self._rows[0], part)
        return "; ".join(
            f"{row.condition.replace('_', ' ')}: {phrase(self._result, row, part)}"
            for row in self._rows
        )


def phrase(result: Record, row: EffectSize, part: str = "") -> str:
    """A row in words.

    Args:
        result: The result that it is of.
        row: A treatment or a measurement.
        part: `value`, `null` (its value), `verdict` (with the words of the null and its value),
            `effect` (the difference with its interval), `against` (every reference), `beside`
            (null and references); empty for the value with all of these.
    """
    measure = result.measure(row.metric, row.condition)
    side = "beside" if measure.is_edge(row.baseline) else null_verdict(row)
    own = (side, f"{measure.null} ({number(measure, row.baseline)})")
    beside = list(references(result, row))
    parts = {
        "value": lambda: quantity(measure, row.value),
        "null": lambda: number(measure, row.baseline),
        "verdict": lambda: " ".join(own),
        "effect": lambda: describe(row),
        "against": lambda: grouped(beside),
        "beside": lambda: grouped([own, *beside]),
        "": lambda: f"{quantity(measure, row.value)}, {grouped([own, *beside])}",
    }
    return parts[part]()


def references(result: Record, row: EffectSize) -> Iterator[tuple[str, str]]:
    """For each control or null of a row the verdict, and its words with its value."""
    measure = result.measure(row.metric, row.condition)
    for reference, contrast in result.references(row):
        words = f"{reference.against}".replace("_", "-")
        value = number(measure, reference.value)
        models = result.of_random_models(contrast)
        side = verdict(reference, contrast, models)
        of_one = reference.against == RANDOM_MODELS and contrast.ci_low is None
        of_several = reference.kind == "control" or contrast.n_prompts > 1
        if untested := of_one or (contrast.p_value is None and of_several):
            side = "beside"
        if number(measure, reference.baseline) != number(measure, row.baseline):
            value += f", beside {number(measure, reference.baseline)}"
            if not untested:
                # What is compared is the distance from the null, with its sign.
                side = f"relative to {measure.null} {RELATIVE.get(side, side)}"
        if of_one:
            yield side, f"one model with random weights ({value})"
            continue
        if untested:
            value += ", not tested"
        elif models is not None:
            value += ", tested against models with random weights"
        elif reference.kind == "control":
            value += interval_or_q(result, contrast, "the interval of the difference")
        yield side, f"its {words} {reference.kind} ({value})"


def grouped(verdicts: Iterable[tuple[str, str]]) -> str:
    """Verdicts and what they are on, each verdict once: `above A (1) and B (2); below C (3)`."""
    groups: dict[str, list[str]] = {}
    for side, words in verdicts:
        groups.setdefault(side, []).append(words)
    return "; ".join(f"{side} {listed(words)}" for side, words in groups.items())


def listed(words: Sequence[str]) -> str:
    """`A`, `A and B`, `A, B and C`."""
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else last


def number(measure: Measure, value: float) -> str:
    """A value in the form of its measure."""
    return written(value, measure.form)


def written(value: float, form: str, *measured: float) -> str:
    """A number in a form; what is 0 but for float32 rounding is written as 0, without a sign.

    Thousands that are set apart by commas have no decimals.

    Args:
        value: The number.
        form: Such as `.3g`.
        measured: The values that it is the difference of, which may be rounded more.
    """
    if form.startswith(",") and abs(value) >= 1000:
        form = ",.0f"
    text = f"{0.0 if within_rounding(value, *measured) else value:{form}}"
    return text if any(digit in text for digit in "123456789") else text.lstrip("+-")


def probability(value: float) -> str:
    """A p- or q-value: `0.012`, or `<1e-4`; `0.0496` where two digits would hide the side."""
    if value < SMALL_P:
        return "<1e-4"
    return f"{value:.3g}" if f"{value:.2g}" == f"{LEVEL:.2g}" else f"{value:.2g}"


def tested(contrast: EffectSize) -> str:
    """Its q- or, outside a family, p-value: `q = 0.012`."""
    name, value = ("p", contrast.p_value) if contrast.q_value is None else ("q", contrast.q_value)
    said = probability(value or 0.0)
    return f"{name} {said.replace('<', '< ')}" if said.startswith("<") else f"{name} = {said}"


def interval_or_q(result: Record, contrast: EffectSize, which: str = "this interval") -> str:
    """Where the interval of a contrast and its q-value disagree, both; a q near the level."""
    if contrast.ci_low is None or contrast.ci_high is None or contrast.p_value is None:
        return ""
    excludes = contrast.ci_low > 0 or contrast.ci_high < 0
    if excludes == is_significant(contrast):
        return f"; {tested(contrast)}" if is_close(contrast) else ""
    family = [
        row
        for row in result.effects
        if (row.metric, row.kind) == (contrast.metric, contrast.kind) and row.p_value is not None
    ]
    over = f" after FDR correction over {len(family)} rows" if len(family) > 1 else ""
    side = "excludes" if excludes else "includes"
    return f"; {which} {side} 0, but {tested(contrast)}{over}"


def is_close(contrast: EffectSize) -> bool:
    """Whether the level is within a factor of two, so that the verdict says less than q."""
    value = contrast.p_value if contrast.q_value is None else contrast.q_value
    return value is not None and LEVEL / 2 <= value <= 2 * LEVEL


def quantity(measure: Measure, value: float) -> str:
    """A value with its unit; a percentage says of what."""
    unit = measure.unit.removeprefix("share") if measure.form.endswith("%") else measure.unit
    return f"{number(measure, value)} {unit.strip()}".strip()


def describe(effect: EffectSize) -> str:
    """An effect in words: `+0.021 nats [0.010, 0.032]`."""
    return f"{effect_of(effect)}{effect.unit and f' {effect.unit}'}{interval_of(effect)}"


def effect_of(effect: EffectSize) -> str:
    """An effect alone: `+0.021`."""
    return written(effect.effect, "+.3g", effect.baseline, effect.value)


def portion(share: float) -> str:
    """How much of a number another one is: `57%`; `none` where their signs differ."""
    return f"{share:.0%}" if share > 0 else "none"


def interval_of(effect: EffectSize, form: str = ".3g") -> str:
    """The interval of an effect, empty where there is none: ` [0.010, 0.032]`, ` [no spread]`."""
    if effect.ci_low is None or effect.ci_high is None:
        return ""
    measured = effect.baseline, effect.value
    if within_rounding(effect.ci_high - effect.ci_low, *measured):
        return NO_SPREAD
    low, high = (written(end, form, *measured) for end in (effect.ci_low, effect.ci_high))
    return f" [{low}, {high}]"


def place_of(effect: EffectSize) -> str:
    """The layer or head that a row is about: `L3`, `L3H4`, empty where it is about none."""
    if effect.layer is None:
        return ""
    if effect.head is None:
        return f"L{effect.layer}"
    return head_label((effect.layer, effect.head))


def measures_in(content: Mapping[str, Mapping[str, Any]]) -> dict[str, Measure]:
    """Measures as `result.json` holds them."""
    return {name: Measure(**fields) for name, fields in content.items()}
