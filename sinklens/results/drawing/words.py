"""The words of figures: axes, rows and what a figure is of, from the rows and the provenance."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from ...stats.effects import EffectSize, within_rounding
from ..record import Record
from ..wording import interval_of, place_of, written
from .style import escaped

METRICS = {
    "loss": "loss",
    "kl": "KL divergence from the clean run",
    "logit_diff": "logit difference",
    "sink_mass": "attention to position 0 (sink mass)",
    "sink_rate": "heads with a sink (sink rate)",
    "position0_norm": "norm at position 0",
    "spike": "largest entry of the residual stream",
    "largest_early_column": "attention to the most attended key",
    "value_drain": "norm of the value at position 0",
    "onset": "onset in training",
    "residual_share": "logits not explained by relative position",
    "causal_share": "the causal mask's share of both components",
    "removed_all_keys": "removed of the residual-stream component, with key 0",
    "removed_without_key0": "removed of the residual-stream component, without key 0",
    "component_all_keys": "residual-stream component, with key 0",
    "component_without_key0": "residual-stream component, without key 0",
    "size_ratio": "size of outlier channels",
    "frequency_correlation": "correlation with token frequency",
}
"""Metrics whose name alone is no plain words."""
AXES = {
    "kl": "KL divergence",
    "sink_mass": "sink mass",
    "sink_rate": "sink rate",
    "spike": "largest entry",
    "onset": "onset",
    "value_drain": "norm of the value",
    "largest_early_column": "attention",
    "residual_share": "not explained",
    "causal_share": "causal mask",
    **dict.fromkeys(("removed_all_keys", "removed_without_key0"), "removed"),
    **dict.fromkeys(("component_all_keys", "component_without_key0"), "component"),
    "size_ratio": "size",
    "frequency_correlation": "correlation",
}
"""The same, short enough for an axis."""
LONGEST_LABEL, LONGEST_LINE, LONGEST_AXIS = 21, 26, 32
LEAST_TICKS, STEPS = 3, "log2(1 + step)"


def metric_words(metric: str) -> str:
    """A metric in plain words."""
    return METRICS.get(metric, metric.replace("_", " "))


def axis_words(row: EffectSize) -> str:
    """A metric and its unit at an axis of values."""
    short = AXES.get(row.metric, metric_words(row.metric))
    unit = "training step" if row.unit == STEPS else row.unit
    return f"{short} ({unit})" if unit else short


def axis_of(row: EffectSize) -> str:
    """The title of an axis on which rows like this one are drawn, with the unit."""
    said = axis_words(row)
    changes = row.kind == "treatment" and row.metric != "kl" and not said.startswith("removed")
    return f"change in {said}" if changes else said


def in_lines(text: str) -> str:
    """The title of a vertical axis, broken where it would be longer than the axis."""
    return "<br>".join(textwrap.wrap(text, LONGEST_AXIS))


def ticks_of(rows: Sequence[EffectSize], ends: Sequence[float]) -> dict[str, Any]:
    """The ticks of an axis: shares in percent, log2(1 + step) as steps.

    Args:
        rows: What is drawn.
        ends: The lowest and the highest value that is drawn.
    """
    if rows[0].unit == STEPS:
        powers = range(max(0, math.floor(min(ends))), math.ceil(max(ends)) + 1)
        places = [math.log2(1 + 2**power) for power in powers]
        return {"tickvals": places, "ticktext": [str(2**power) for power in powers]}
    known = {"tickformat": ".0%" if rows[0].unit.startswith("share") else "", "nticks": 7}
    flat = all(within_rounding(end) for end in ends)
    return {**known, "range": [-1, 1]} if flat else known


def log_ticks(values: Sequence[float]) -> dict[str, Any]:
    """The ticks of a logarithmic axis: powers of ten, or as many between as three ticks need."""
    positive = [value for value in values if value > 0]
    if not positive:
        return {}
    ends = min(positive), max(positive)
    powers = range(math.floor(math.log10(ends[0])), math.ceil(math.log10(ends[1])) + 1)
    for leads in ((1,), (1, 2, 5), (1, 2, 3, 5), range(1, 10)):
        places = [lead * 10.0**power for power in powers for lead in leads]
        if sum(ends[0] <= place <= ends[1] for place in places) >= LEAST_TICKS:
            return {"tickvals": places, "ticktext": [f"{place:g}" for place in places]}
    return {}


def label_of(row: EffectSize, *, queries: bool) -> str:
    """What names a row within its panel: condition, place and, where they vary, queries."""
    parts = (place_of(row), f"queries {row.queries}" if queries and row.queries else "")
    return in_two_lines(row.condition, " ".join(filter(None, parts)))


def in_two_lines(first: str, second: str) -> str:
    """A label that leaves room for the figure: on two lines where one would be too long."""
    if len(f"{first} {second}") <= LONGEST_LABEL:
        return escaped(f"{first} {second}".strip())
    return "<br>".join(escaped(_cut(part)) for part in (first, second) if part)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_LINE else f"{text[: LONGEST_LINE - 3]}..."


def hover_of(row: EffectSize, at: float) -> str:
    """What stands under the pointer at a row."""
    parts = [f"{row.condition} {place_of(row)}".strip()]
    if row.queries:
        parts.append(f"queries {row.queries}")
    if row.against:
        parts.append(str(row.against).replace("_", " "))
    number = f"{written(at, '.3g')} {row.unit}".strip()
    parts.append(f"{row.metric}: {number}{interval_of(row) if row.kind == 'treatment' else ''}")
    if row.layers:
        parts.append(f"over {row.layers}")
    return "<br>".join(map(escaped, parts))


def source_of(result: Record) -> str:
    """Model, checkpoint, BOS and prompts, and which intervals are drawn."""
    known = result.provenance
    bos = "with" if known["bos"] else "without"
    parts = [result.model_name(), f"{bos} BOS"]
    if prompts := known.get("prompts"):
        number = "1 prompt" if prompts["n"] == 1 else f"{prompts['n']} prompts"
        longest = f" to {prompts['longest']}" if "longest" in prompts else ""
        parts.append(f"{number} of {prompts['length']}{longest} tokens")
    if any(row.ci_low is not None for row in result.effects):
        parts.append("95 % intervals")
    return ", ".join(parts)
