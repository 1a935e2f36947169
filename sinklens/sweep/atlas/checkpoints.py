"""The lines of an atlas: each checkpoint of each model, averaged over seeds and texts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ...results.wording import written
from .headlines import TREATMENT, Headline, Measured

OF_A_CHECKPOINT = ("model", "revision", "step", "model_seed", "bos", "dtype", "weights")
NAMED = {"revision": "{}", "step": "step {}", "model_seed": "seed {}", "dtype": "{}"}
LONGEST = 60


@dataclass(frozen=True)
class Cell:
    """A measure of a checkpoint.

    Attributes:
        value: The value of a measurement, the change of a treatment.
        low: Lower end of its 95 % interval, None without one.
        high: Upper end.
        null: Its null.
        reference: The value or change of its control, if it has one.
        is_beyond_null: Whether the interval of its distance from the null leaves out 0.
    """

    value: float
    low: float | None
    high: float | None
    null: float
    reference: float | None
    is_beyond_null: bool

    def text(self, form: str) -> str:
        """The value: `52.9%`."""
        return written(self.value, form)

    def interval(self, form: str) -> str:
        """Its interval: `[45.9%, 59.9%]`, `[no interval]`."""
        if self.low is None or self.high is None:
            return "[no interval]"
        return f"[{written(self.low, form)}, {written(self.high, form)}]"


@dataclass(frozen=True)
class Checkpoint:
    """A line.

    Attributes:
        model: The model.
        name: Which checkpoint of it; empty where there is one.
        known: What is known of it, by column of the table.
        cells: Its measures, by key.
        rows: All of its rows.
    """

    model: str
    name: str
    known: dict[str, Any]
    cells: dict[str, Cell]
    rows: pd.DataFrame


def checkpoints_in(table: pd.DataFrame, measured: Sequence[Measured]) -> list[Checkpoint]:
    """All checkpoints, by model and in order of training."""
    parts = [
        tuple(map(_by_checkpoint, (one.rows, one.references, one.contrasts))) for one in measured
    ]
    found = []
    for key, rows in _by_checkpoint(table).items():
        cells = {}
        for one, (groups, references, contrasts) in zip(measured, parts, strict=True):
            if key in groups:
                near = references.get(key), contrasts.get(key)
                cells[one.headline.key] = _cell(one.headline, groups[key], *near)
        first = rows.iloc[0]
        known = {name: _plain(first[name]) for name in table.columns}
        found.append(Checkpoint(str(known["model"]), "", known, cells, rows))
    return sorted(_named(found), key=_order)


def _by_checkpoint(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of each checkpoint, by what tells checkpoints apart as one text."""
    return {str(key): own for key, own in rows.groupby(_keys(rows), sort=False)}


def _plain(value: Any) -> Any:
    """A value as Python has it, None where there is none."""
    if pd.isna(value):
        return None
    return value.item() if hasattr(value, "item") else value


def _keys(rows: pd.DataFrame) -> pd.Series:
    """What tells checkpoints apart, as one text a row."""
    columns = [rows[name].astype("str").fillna("") for name in OF_A_CHECKPOINT]
    joined = pd.Series("", index=rows.index, dtype="str")
    for column in columns:
        joined = joined + column + "\x1f"
    return joined


def _cell(
    one: Headline,
    rows: pd.DataFrame,
    references: pd.DataFrame | None,
    contrasts: pd.DataFrame | None,
) -> Cell:
    """The average of the rows of a checkpoint, beside its null and control."""
    shown = "effect" if one.kind == TREATMENT else "value"
    value, effect, ends = float(rows[shown].mean()), float(rows["effect"].mean()), _ends(rows)
    low, high = (None, None) if ends is None else (value - effect + end for end in ends)
    null = 0.0 if one.kind == TREATMENT else float(rows["baseline"].mean())
    reference = None if references is None else float(references[shown].mean())
    if one.empirical and reference is not None:
        ends = None if contrasts is None else _ends(contrasts)
        null, reference = reference, None
    beyond = ends is not None and not ends[0] <= 0 <= ends[1]
    return Cell(value, low, high, null, reference, beyond)


def _ends(rows: pd.DataFrame) -> tuple[float, float] | None:
    """The mean interval of effects, None where one has none."""
    low, high = (float(rows[name].mean(skipna=False)) for name in ("ci_low", "ci_high"))
    return (low, high) if np.isfinite([low, high]).all() else None


def _named(found: Sequence[Checkpoint]) -> Iterator[Checkpoint]:
    """Checkpoints with a name of what tells those of one model apart."""
    by_model: dict[str, list[Checkpoint]] = {}
    for one in found:
        by_model.setdefault(one.model, []).append(one)
    for own in by_model.values():
        several = [
            name for name in OF_A_CHECKPOINT[1:] if len({str(one.known[name]) for one in own}) > 1
        ]
        telling = [name for name in several if name != "weights"]
        short = [name for name in ("revision", "step") if name not in telling]
        for one in own:
            parts = [_part(name, one.known[name]) for name in (*short, *telling)]
            name = ", ".join(filter(None, parts))
            same = [other for other in own if _same(one, other, telling)]
            if len(same) > 1:
                name = f"{name}, weights {str(one.known['weights'])[:8]}".removeprefix(", ")
            yield Checkpoint(one.model, name, one.known, one.cells, one.rows)


def _part(name: str, value: Any) -> str:
    if name == "bos":
        return "with BOS" if value else "without BOS"
    return "" if value is None else NAMED[name].format(value)


def _same(one: Checkpoint, other: Checkpoint, columns: Sequence[str]) -> bool:
    return all(str(one.known[name]) == str(other.known[name]) for name in columns)


def natural(text: str) -> list[tuple[int, int, str]]:
    """An order in which `step2` stands before `step10`."""
    return [
        (1, int(part), "") if part.isdecimal() and part.isascii() else (0, 0, part)
        for part in re.split(r"(\d+)", text)
    ]


def _order(one: Checkpoint) -> tuple[Any, ...]:
    known = one.known
    step = float("inf") if known["step"] is None else float(known["step"])
    return natural(one.model), natural(known["revision"] or "~"), known["model_seed"] or 0, step


def file_names(models: Sequence[str]) -> dict[str, str]:
    """A name for the page of each model that every file system holds and no two share."""
    names = {}
    for model in models:
        plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", model)[:LONGEST].strip("-.")
        if (
            not plain
            or plain != model
            or sum(one.casefold() == model.casefold() for one in models) > 1
        ):
            digest = hashlib.sha256(model.encode("utf-8", "surrogatepass")).hexdigest()[:8]
            plain = f"{plain or 'model'}-{digest}"
        names[model] = f"{plain}.html"
    return names
