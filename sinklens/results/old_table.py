"""The table of experiments whose rows do not say yet what they are against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ..core.labels import head_label
from ..stats.effects import EffectSize
from .wording import describe


def old_table(result: Any) -> pd.DataFrame:
    """One row a condition and metric: effect, interval, p, q, and the control beside it."""
    groups: dict[tuple[Any, ...], dict[str, EffectSize]] = {}
    for row in result.effects:
        key = (row.condition, row.metric, row.layer, row.head, row.queries)
        groups.setdefault(key, {})[row.kind] = row
    starred = result.settings.get("footnotes", {})
    rows = [_table_row(kinds, starred) for kinds in groups.values()]
    return pd.DataFrame(rows).dropna(axis="columns", how="all")


def _table_row(kinds: Mapping[str, EffectSize], starred: Mapping[str, str]) -> dict[str, Any]:
    """A row of the table for a person."""
    lead = next(
        kinds[kind]
        for kind in ("treatment", "measurement", "null", "contrast", "control")
        if kind in kinds
    )
    where = "" if lead.layer is None else f"L{lead.layer}"
    if lead.layer is not None and lead.head is not None:
        where = head_label((lead.layer, lead.head))
    control, contrast = kinds.get("control"), kinds.get("contrast")
    star = " *" if lead.condition in starred else ""
    row = {
        "condition": lead.condition,
        "at": where or None,
        "queries": lead.queries,
        "metric": lead.metric,
        "baseline": f"{lead.baseline:.4g}",
        "value": f"{lead.value:.4g}",
        "effect [95 %]": describe(lead).replace(f" {lead.unit}", ""),
        "unit": lead.unit,
        "p": _number(lead.p_value),
        "q": _number(lead.q_value),
        "control": None if control is None else f"{control.effect:+.3g}",
        "more than control [95 %]": None
        if contrast is None
        else describe(contrast).replace(f" {lead.unit}", "") + star,
        "q (contrast)": None if contrast is None else _number(contrast.q_value),
    }
    return row


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.2g}"
