"""Notes that follow from the rows of a result, whatever the experiment."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ..stats.effects import EffectSize
from .wording import NO_SPREAD, effect_of, interval_of, listed


def spread_notes(effects: Iterable[EffectSize]) -> list[str]:
    """What `[no spread]` means, where a row has none."""
    if not any(interval_of(effect) == NO_SPREAD for effect in effects):
        return []
    return [
        "No spread: the number is the same for every prompt (as what depends on a shared BOS "
        "alone), so that there is no interval."
    ]


def counted_notes(effects: Iterable[EffectSize]) -> list[str]:
    """Where a difference is not that of the two effects shown, why not."""
    metrics: dict[str, None] = {}
    for row in effects:
        if row.against is None:
            leads = row
        elif row.kind == "contrast" and effect_of(replace(row, effect=row.value)) != effect_of(
            leads
        ):
            metrics[row.metric] = None
    if not metrics:
        return []
    return [
        f"In {listed(list(metrics))} some differences are not those of the two effects shown: an "
        "effect is set against its control where both can be read (at the queries after a control "
        "at a later position, in the layers or heads that both have), its own row counts all."
    ]


def _own(contrast: EffectSize) -> str:
    """The effect that a contrast sets against that of the control."""
    return effect_of(replace(contrast, effect=contrast.value))
