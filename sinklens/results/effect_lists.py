"""Effects beside their controls as lists: what all lines share is said once, above them.

A list is a heading and a line for each row:

    Replacing BOS by: loss against the clean run in nats; its later-position control; ...
        mean: +0.242 [0.142, 0.341]; control +0.0678 [-0.034, 0.17]; difference ..., higher
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..stats.effects import EffectSize
from .effect_sentences import HIGHER
from .record import Record
from .table import with_interval
from .wording import control_verdict, effect_of, interval_or_q, place_of

INDENT = "  "
VERDICTS = {
    **{verdict: word.removesuffix(" than") for verdict, word in HIGHER.items()},
    "not significantly different from": "not significantly different",
    "not tested against": "not tested",
}


def effect_lists(result: Record, what: str, metrics: Sequence[str]) -> Iterator[str]:
    """For each metric and kind of control a heading, and a line for each row.

    Args:
        result: The result.
        what: What was done, without the condition's name.
        metrics: Whose effects.
    """
    for metric in metrics:
        groups: dict[tuple[str, ...], list[EffectSize]] = {}
        for row in result.effects:
            if (row.metric, row.kind) == (metric, "treatment"):
                groups.setdefault(_beside(result, row), []).append(row)
        for beside, rows in groups.items():
            unit = f" in {rows[0].unit}" if rows[0].unit else ""
            yield "; ".join([f"{what}: {metric} against the clean run{unit}", *beside])
            yield from (f"{INDENT}{_line(result, row)}" for row in rows)


def _beside(result: Record, row: EffectSize) -> tuple[str, ...]:
    """What stands behind an effect, in words."""
    words = []
    for control, contrast in result.references(row):
        name = f"{control.against}".replace("_", "-")
        judged = "the difference where both count"
        if result.of_random_models(contrast) is not None:
            expected = "that of models with random weights"
            if not result.measure(row.metric).signed:
                expected = "what their ratio in models with random weights would make it"
            judged = f"{judged}, and {expected}"
        words += [f"its {name} control", judged]
    return tuple(words) or ("no control",)


def _line(result: Record, row: EffectSize) -> str:
    """A row: its effect, each control, the difference and its verdict."""
    place, star = place_of(row), row.condition in result.settings.get("footnotes", {})
    name = f"{row.condition} at {place}" if place else row.condition
    over = f" over {row.layers}" if row.layers else ""
    parts = [f"{name}{over}: {with_interval(row)}"]
    for control, contrast in result.references(row):
        models = result.of_random_models(contrast)
        verdict = VERDICTS[control_verdict(contrast, models)]
        aside = f" ({with_interval(models)})" if models else interval_or_q(result, contrast)
        own = effect_of(replace(contrast, effect=contrast.value))
        there = "" if own == effect_of(row) else f" from {own} there"
        parts += [
            f"control {with_interval(control)}",
            f"difference {with_interval(contrast)}{there}, {verdict}{aside}",
        ]
    return "; ".join(parts) + (" *" if star else "")
