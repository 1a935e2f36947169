"""The printed table of a result: one line per row, and one per further control or null."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from ..stats.effects import EffectSize
from .record import Record
from .wording import describe, place_of, written


def table_of(result: Record) -> pd.DataFrame:
    """Effect, interval, p and q of every row, beside each of its controls and empirical nulls.

    A second reference of the same row has its own line, in which the columns of the row are empty.
    """
    lines = [line for row in result.effects if row.against is None for line in _lines(result, row)]
    return pd.DataFrame(lines).dropna(axis="columns", how="all")


def _lines(result: Record, row: EffectSize) -> Iterator[dict[str, Any]]:
    """The lines of one row."""
    starred = result.settings.get("footnotes", {})
    head = {
        "condition": row.condition,
        "at": place_of(row) or None,
        "queries": row.queries,
        "metric": row.metric,
        "layers": row.layers,
        "baseline": written(row.baseline, ".4g"),
        "value": written(row.value, ".4g"),
        "effect [95 %]": describe(row).replace(f" {row.unit}", ""),
        "unit": row.unit,
        "p": _number(row.p_value),
        "q": _number(row.q_value),
    }
    beside = [_reference(result, *pair) for pair in result.references(row)]
    if beside and row.condition in starred:
        beside[0]["difference [95 %]"] += " *"
    first, *others = beside or [{}]
    yield {**head, **first}
    yield from ({**dict.fromkeys(head), **other} for other in others)


def _reference(result: Record, reference: EffectSize, contrast: EffectSize) -> dict[str, Any]:
    """The columns of a control or null, and of the contrast with it."""
    models = result.of_random_models(contrast)
    return {
        "against": reference.against,
        "its effect": written(reference.effect, "+.3g"),
        "difference [95 %]": describe(contrast).replace(f" {contrast.unit}", ""),
        "with random weights": models and describe(models).replace(f" {models.unit}", ""),
        "q (difference)": _number(contrast.q_value),
    }


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.2g}"
