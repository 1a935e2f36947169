"""One effect over many models: each with its interval, pooled, and by a covariate.

    table = sinklens.load_sweep("out")
    effect = sinklens.pool(table, "loss", "mean", step=4000)
    effect.regress("parameters", log=True)

The unit is the model: several rows of one (seeds, texts) are averaged first, and their error is the
mean one, as of the same prompts. Standard errors are read from the intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from ..core.errors import SinklensError, UsageError, unknown_name
from ..results.wording import probability, written
from ..stats.pooled import MetaRegression, PooledEffect, pooled, regression

FEWEST = 5
AS_ONE = ("experiment", "layer", "head", "queries", "layers", "settings", "n", "length", "unit")
"""Columns in which rows that are pooled may not differ."""
OF_CHECKPOINTS = ("revision", "step")


@dataclass(frozen=True)
class PooledModels:
    """One effect over several units, by default models.

    Attributes:
        name: What was pooled: experiment, metric, condition.
        measure: The unit of the numbers.
        kind: `treatment`, `contrast`, `measurement`, ...
        unit: What is pooled over: the columns that tell units apart.
        units: A line for each: `label`, `effect`, `error`, `ci_low`, `ci_high`, `rows`, and the
            columns of the table that are the same in all of its rows; sorted by effect.
        pooled: The random-effects mean; None for fewer than two units.
        notes: What was left out, and what cannot be said.
    """

    name: str
    measure: str
    kind: str
    unit: tuple[str, ...]
    units: pd.DataFrame
    pooled: PooledEffect | None
    notes: list[str]

    def regress(self, covariate: str, *, log: bool = False) -> MetaRegression:
        """How the effect depends on a covariate.

        Args:
            covariate: A column that is the same in all rows of a unit: `parameters`, `step`,
                `position_encoding`. Of text, each value is compared with the first one.
            log: Whether to take its logarithm to base 10.

        Raises:
            UsageError: There is no such column, or it does not vary.
            SinklensError: There are too few units.
        """
        if covariate not in self.units:
            raise unknown_name(f"covariate of every {self.unit[0]}", covariate, self.units.columns)
        there = self.units[self.units[covariate].notna()]
        values = there[covariate]
        if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
            numbers = values.to_numpy(float)
            name = f"log10 {covariate}" if log else covariate
            if log and (numbers <= 0).any():
                raise UsageError(f"{covariate} has values of 0 or below, which have no logarithm")
            design, terms = np.log10(numbers)[:, None] if log else numbers[:, None], [name]
        else:
            dummies = pd.get_dummies(values.astype(str)).astype(float)
            base, *others = dummies.columns
            design, terms = dummies[others].to_numpy(), [f"{one} less {base}" for one in others]
        if values.nunique() < 2:
            raise UsageError(f"{covariate} is the same in all of them")
        if len(there) < len(terms) + 2:
            raise SinklensError(
                f"{len(there)} {self._noun()} are too few to fit {len(terms) + 1} coefficients"
            )
        effects, errors = (there[name].to_numpy(float) for name in ("effect", "error"))
        return regression(effects, errors, design, terms)

    def plot(self, width: int | None = None) -> Any:
        """The effects of all units, sorted, and the pooled one below them (plotly).

        Args:
            width: In pixels; None fits the page.
        """
        from .figure import draw_pooled

        return draw_pooled(self.name, self.measure, self.units, self.pooled, width)

    def _noun(self) -> str:
        return {"model": "models", "model_seed": "seeds"}.get(self.unit[-1], "units")

    def __str__(self) -> str:
        """The pooled effect in a sentence, the units, and notes."""
        shown = self.units[["label", "effect", "ci_low", "ci_high", "rows"]].to_string(index=False)
        return "\n".join([self.sentence(), "", shown, "", *self.notes])

    __repr__ = __str__

    def sentence(self) -> str:
        """The pooled effect, its interval and its spread."""
        one = self.pooled
        if one is None:
            return f"{self.name}: nothing to pool."
        unit = f" {self.measure}" if self.measure else ""
        mean, low, high = (written(v, "+.3g") for v in (one.estimate, one.ci_low, one.ci_high))
        return (
            f"{self.name}: {mean}{unit} over {len(self.units)} {self._noun()} (random effects, "
            f"95 % CI {low} to {high}, p {probability(one.p_value)}); true effects differ between "
            f"them with a standard deviation of {written(one.tau, '.2g')} (I^2 {one.i2:.0%})."
        )


def pool(
    table: pd.DataFrame,
    metric: str,
    condition: str,
    *,
    kind: str | None = None,
    unit: str | Sequence[str] = "model",
    **where: Any,
) -> PooledModels:
    """Pool one effect of a table over models.

    Args:
        table: What `load_sweep` returned, or `pandas.read_parquet` of what `merge` wrote.
        metric: The metric.
        condition: The condition.
        kind: The kind of row; by default `treatment`, or `measurement` where there is no treatment.
            A `contrast` is the effect beside its control; say which by `against`.
        unit: The column, or columns, that tell units apart: `model`, or `model_seed` of one model.
        **where: Further columns and the value that rows have there, such as `step=4000`; None
            stands for rows without one.

    Raises:
        UsageError: A column or value does not exist, or the rows are of several effects.
        SinklensError: No row has an interval.
    """
    rows, kind = _chosen(table, {"metric": metric, "condition": condition, **where}, kind)
    columns = (unit,) if isinstance(unit, str) else tuple(unit)
    for name in columns:
        if name not in table:
            raise unknown_name("column", name, table.columns)
    _require_one_effect(rows, columns)
    spread = rows.assign(error=_errors(rows))
    usable = spread[spread["error"] > 0]
    if usable.empty:
        raise SinklensError(
            f"no row of {metric}, {condition} has an interval to weigh it by; run on more prompts"
        )
    units = _units(usable, columns)
    notes = _notes(units, len(spread) - len(usable), columns)
    found = None
    if len(units) > 1:
        found = pooled(units["effect"].to_numpy(float), units["error"].to_numpy(float))
    first = usable.iloc[0]
    name = f"{first['experiment']}, {metric}, {condition} ({kind})"
    return PooledModels(name, str(first["unit"]), kind, columns, units, found, notes)


def _chosen(
    table: pd.DataFrame, where: dict[str, Any], kind: str | None
) -> tuple[pd.DataFrame, str]:
    """The rows with these values, and their kind.

    Raises:
        UsageError: There is none.
    """
    rows = table
    for column, value in where.items():
        if column not in table:
            raise unknown_name("column", column, table.columns)
        left = rows[rows[column].isna() if value is None else rows[column] == value]
        if left.empty:
            known = sorted(map(str, rows[column].dropna().unique()))
            raise unknown_name(f"value of {column} here", str(value), known)
        rows = left
    kinds = [one for one in ("treatment", "measurement") if (rows["kind"] == one).any()]
    chosen = kind or (kinds[0] if kinds else str(rows["kind"].iloc[0]))
    if not (rows["kind"] == chosen).any():
        raise unknown_name("value of kind here", chosen, sorted(rows["kind"].unique()))
    return rows[rows["kind"] == chosen], chosen


def _require_one_effect(rows: pd.DataFrame, columns: Sequence[str]) -> None:
    """Refuse rows that are several effects of a unit, or of several checkpoints of one.

    Raises:
        UsageError: They are; the message says what to choose.
    """
    for name in ("against", *AS_ONE):
        values = rows[name].unique()
        if len(values) > 1 and name not in columns:
            said = ", ".join("None" if pd.isna(v) else str(v) for v in values[:6])
            raise UsageError(f"these rows differ in {name}: {said}; choose one ({name}=...)")
    for name in OF_CHECKPOINTS:
        several = rows.groupby(list(columns), dropna=False)[name].nunique(dropna=False)
        if name not in columns and (several > 1).any():
            raise UsageError(
                f"{several.idxmax()} has rows of several values of {name}; choose one ({name}=...)"
                f", or make them units: unit={(*columns, name)}"
            )


def _errors(rows: pd.DataFrame) -> pd.Series:
    """Standard errors from the intervals, Student's t over the prompts.

    Where several draws make the degrees of freedom fewer, they come out larger than they are.
    """
    freedom = (rows["n_prompts"].astype(float) - 1).clip(lower=1)
    return (rows["ci_high"] - rows["ci_low"]) / (2 * stats.t.isf(0.025, freedom))


def _units(rows: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """A line for each unit, sorted by effect."""
    lines = []
    for _, own in rows.groupby(list(columns), dropna=False, sort=True):
        same = {name: own[name].iloc[0] for name in own if own[name].nunique(dropna=False) == 1}
        effect, error = own["effect"].mean(), float(np.sqrt((own["error"] ** 2).mean()))
        half = (own["ci_high"] - own["ci_low"]).mean() / 2
        numbers = {"effect": effect, "error": error, "rows": len(own)}
        ends = {"ci_low": effect - half, "ci_high": effect + half}
        label = " ".join(str(own[name].iloc[0]) for name in columns)
        lines.append({"label": label, **same, **numbers, **ends})
    found = pd.DataFrame(lines).dropna(axis="columns", how="any")
    return found.sort_values("effect", ignore_index=True)


def _notes(units: pd.DataFrame, left_out: int, columns: Sequence[str]) -> list[str]:
    notes = []
    if len(units) < FEWEST:
        noun = "models" if columns[-1] == "model" else "units"
        notes.append(
            f"{len(units)} {noun} cannot generalise: what holds in others needs at least {FEWEST}."
        )
    if left_out:
        rows = "row has" if left_out == 1 else "rows have"
        notes.append(f"Left out: {left_out} {rows} no spread, so no weight.")
    if (units["rows"] > 1).any():
        notes.append("Several rows of a unit (seeds, texts) are averaged before.")
    return notes
