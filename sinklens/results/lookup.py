"""Finding the one row with given fields, and saying what is near where there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields as fields_of
from difflib import get_close_matches
from typing import Any

from ..core.errors import UsageError, unknown_name
from ..stats.effects import EffectSize

NAMES = tuple(field.name for field in fields_of(EffectSize))
MOST_LISTED = 8


def the_row(effects: Sequence[EffectSize], wanted: Mapping[str, Any]) -> EffectSize:
    """The one row with these fields.

    Raises:
        UsageError: No row or several rows have them, or a row has no such field.
    """
    for name in wanted:
        if name not in NAMES:
            raise unknown_name("field of a row", name, NAMES)
    rows = [row for row in effects if _has(row, wanted)]
    if len(rows) == 1:
        return rows[0]
    asked = ", ".join(f"{name}={value!r}" for name, value in wanted.items())
    reason = _what_differs(rows, wanted) if rows else _what_is_near(effects, wanted)
    raise UsageError(f"{len(rows)} rows match {asked}; {reason}")


def _has(row: EffectSize, wanted: Mapping[str, Any]) -> bool:
    return all(getattr(row, name) == value for name, value in wanted.items())


def _what_differs(rows: Sequence[EffectSize], wanted: Mapping[str, Any]) -> str:
    """The fields that tell several rows apart: `they differ in kind: 'control', 'contrast'`."""
    for_telling = ("metric", "condition", "kind", "against", "layer", "head", "queries", "layers")
    several = {
        name: values
        for name in for_telling
        if name not in wanted and len(values := _values(rows, name)) > 1
    }
    differences = "; ".join(f"{name}: {_listed(values)}" for name, values in several.items())
    return f"they differ in {differences}" if several else "they differ in no field"


def _what_is_near(effects: Sequence[EffectSize], wanted: Mapping[str, Any]) -> str:
    """Of the first field whose value no row has beside the fields before it, the near values."""
    rows = effects
    for name, value in wanted.items():
        left = [row for row in rows if getattr(row, name) == value]
        if not left:
            values = _values(rows, name)
            words = [one for one in values if isinstance(one, str)]
            near = get_close_matches(str(value), words, n=3, cutoff=0.5)
            before = list(wanted)[: list(wanted).index(name)]
            beside = f" beside {', '.join(f'{one}={wanted[one]!r}' for one in before)}"
            among = "one of " if len(values) > 1 else ""
            there = f"{name}{beside if before else ''} is {among}{_listed(values)}"
            return f"did you mean {name}={' or '.join(map(repr, near))}?" if near else there
        rows = left
    return "there are no rows"


def _values(rows: Sequence[EffectSize], name: str) -> list[Any]:
    return list(dict.fromkeys(getattr(row, name) for row in rows))


def _listed(values: Sequence[Any]) -> str:
    shown = ", ".join(repr(value) for value in values[:MOST_LISTED])
    return shown if len(values) <= MOST_LISTED else f"{shown}, ... ({len(values)})"
