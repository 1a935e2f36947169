"""Models compared by what kind they are: position encoding, norms, BOS, family, size.

The unit is the model, by its last checkpoint (`sinklens.pool`). Values that fewer than five models
have are shown and not pooled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from ...core.errors import SinklensError
from ...results.wording import probability, written
from ...stats.pooled import MetaRegression, PooledEffect, pooled
from ..pooling import FEWEST, PooledModels, pool
from .checkpoints import natural
from .headlines import Measured

SIZE = "parameters"
ATTRIBUTES = {
    "position_encoding": "position encoding",
    "norm_placement": "norm placement",
    "bos": "BOS",
    "family": "family",
    SIZE: "size",
}
"""The columns by which models are compared, in words."""
UNKNOWN = "not known"
BOS = {True: "with BOS", False: "without BOS"}
PLACES = dict.fromkeys(("layer", "head", "queries", "layers"))


@dataclass(frozen=True)
class Comparison:
    """One measure by one attribute.

    Attributes:
        measured: The measure.
        attribute: The column.
        units: A line for each model: `label`, `effect`, `ci_low`, `ci_high` and the attribute.
        pooled: By value of the attribute the pooled effect, where there are enough models.
        overall: The effect pooled over all models, where there are enough.
        sentences: What can be said.
    """

    measured: Measured
    attribute: str
    units: pd.DataFrame
    pooled: dict[str, PooledEffect] = field(default_factory=dict)
    overall: PooledEffect | None = None
    sentences: list[str] = field(default_factory=list)

    def values(self) -> list[str]:
        """The values of the attribute, those of most models first."""
        counts = self.units[self.attribute].value_counts()
        return sorted(counts.index, key=lambda value: (-counts[value], value))


def compare_by(attribute: str, measured: Sequence[Measured]) -> list[Comparison]:
    """Every measure by one attribute; measures without an interval are left out.

    Args:
        attribute: One of `ATTRIBUTES`.
        measured: The measures.
    """
    found = (_compared(attribute, one) for one in measured)
    return [one for one in found if one is not None]


def _compared(attribute: str, measured: Measured) -> Comparison | None:
    chosen, kind = measured.pooled_rows()
    if chosen.empty:
        return None
    rows = last_checkpoints(chosen).assign(**PLACES)
    unit = ["model"]
    if rows.groupby("model")["bos"].nunique(dropna=False).max() > 1:
        unit.append("bos")
    try:
        every = pool(rows, measured.metric, measured.condition, kind=kind, unit=unit)
    except SinklensError:  # no interval
        return None
    labels = rows[unit].astype("str").agg(" ".join, axis=1)
    known = rows[attribute].groupby(labels).first()
    units = every.units.assign(**{attribute: every.units["label"].map(known)})
    every = replace(every, units=units)
    if attribute == SIZE:
        return _by_size(measured, every)
    words = units[attribute].map(lambda value: _words(attribute, value))
    return _by_value(measured, attribute, replace(every, units=units.assign(**{attribute: words})))


def last_checkpoints(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of the last revision and step of each model."""
    kept = []
    for _, own in rows.groupby("model", sort=False):
        revisions = own["revision"].fillna("main")
        last = max(set(revisions), key=lambda name: (name == "main", natural(name)))
        own = own[revisions == last]
        final = own["step"].isna()
        kept.append(own[final] if final.any() else own[own["step"] == own["step"].max()])
    return pd.concat(kept)


def _words(attribute: str, value: Any) -> str:
    if pd.isna(value):
        return UNKNOWN
    return BOS[bool(value)] if attribute == "bos" else str(value)


def _by_value(measured: Measured, attribute: str, every: PooledModels) -> Comparison:
    """Models by a value that is text, pooled where enough have it."""
    groups = {
        str(value): own for value, own in every.units.groupby(attribute) if len(own) >= FEWEST
    }
    of_values = {value: _pooled(own) for value, own in groups.items()}
    found = Comparison(measured, attribute, every.units, of_values, _overall(every))
    said = [*_whole(every), *_of_values(found)]
    if len(groups) > 1:
        of_these = replace(every, units=every.units[every.units[attribute].isin(list(groups))])
        said += _regressed(of_these, attribute, log=False)
    return replace(found, sentences=said)


def _by_size(measured: Measured, every: PooledModels) -> Comparison:
    """Models by their number of parameters."""
    said = list(_whole(every))
    sized = replace(every, units=every.units[every.units[SIZE].notna()])
    if len(sized.units) >= FEWEST:
        said += _regressed(sized, SIZE, log=True)
    return Comparison(measured, SIZE, sized.units, {}, _overall(every), said)


def _pooled(units: pd.DataFrame) -> PooledEffect:
    return pooled(units["effect"].to_numpy(float), units["error"].to_numpy(float))


def _overall(every: PooledModels) -> PooledEffect | None:
    return every.pooled if len(every.units) >= FEWEST else None


def _whole(every: PooledModels) -> Iterator[str]:
    """The effect over all models, and what cannot be said."""
    if _overall(every) is not None:
        yield every.sentence()
    yield from every.notes


def _of_values(found: Comparison) -> Iterator[str]:
    form = _signed(found.measured.headline.form)
    few = []
    for value in found.values():
        count = int((found.units[found.attribute] == value).sum())
        one = found.pooled.get(value)
        if one is None:
            few.append(f"{value} ({count})")
            continue
        mean, low, high = (written(v, form) for v in (one.estimate, one.ci_low, one.ci_high))
        yield f"{value}: {mean} over {count} models (95 % CI {low} to {high})."
    if few:
        yield f"Too few models to pool (fewer than {FEWEST}): {', '.join(few)}."


def _signed(form: str) -> str:
    return form if form.startswith("+") else f"+{form}"


def _regressed(every: PooledModels, attribute: str, *, log: bool) -> list[str]:
    """The meta-regression in a sentence, or why there is none."""
    try:
        found = every.regress(attribute, log=log)
    except SinklensError as error:
        return [f"No meta-regression: {error}."]
    return [_in_words(found, ATTRIBUTES[attribute])]


def _in_words(found: MetaRegression, name: str) -> str:
    said = [
        f"{one.term} {written(one.estimate, '+.3g')} [{written(one.ci_low, '.3g')}, "
        f"{written(one.ci_high, '.3g')}]"
        for one in found.terms[1:]
    ]
    return f"Meta-regression on {name}: {'; '.join(said)} (p {probability(found.p_value)})."
