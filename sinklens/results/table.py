"""The table of a result: a line for each row, and one for each further control or null.

A line is a row beside one of its references. The contrast with it, which is to be read first,
stands beside the effect. `table` writes lines for a reader, with p, d_z and draws on demand;
`numeric_table` holds the same lines as numbers, one number a column.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ..stats.effects import EffectSize, is_significant
from ..stats.skewness import MARK
from .record import Record
from .wording import (
    NOT_DIFFERENT,
    effect_of,
    interval_of,
    null_verdict,
    place_of,
    probability,
    verdict,
    written,
)

ON_DEMAND = ("p", "p (difference)", "d_z", "draws")


@dataclass(frozen=True)
class Line:
    """A line of the table.

    Attributes:
        row: A treatment or measurement.
        leads: Whether it is the first line of its row; the columns of the row are empty in others.
        reference: The control or null that stands beside it.
        contrast: The row's contrast with the reference.
        models: The same contrast of models with random weights, if it is judged by these.
        star: Whether a note says what has to be known of the contrast.
        marks: After the interval of the row and of the contrast, what says that it covers less.
    """

    row: EffectSize
    leads: bool = True
    reference: EffectSize | None = None
    contrast: EffectSize | None = None
    models: EffectSize | None = None
    star: bool = False
    marks: tuple[str, str] = ("", "")

    @property
    def is_grey(self) -> bool:
        """Whether what the line is read for was tested and is not significant."""
        if self.reference is not None and self.contrast is not None:
            return verdict(self.reference, self.contrast, self.models) in NOT_DIFFERENT
        if self.row.p_value is not None:
            return not is_significant(self.row)
        return null_verdict(self.row) in NOT_DIFFERENT


def lines_of(result: Record) -> Iterator[Line]:
    """The lines of a result, in the order of its rows."""
    starred = result.settings.get("footnotes", {})
    numbers = set(result.settings.get("uneven", []))
    uneven = {id(row) for number, row in enumerate(result.effects) if number in numbers}

    def marks(row: EffectSize, contrast: EffectSize | None) -> tuple[str, str]:
        return MARK * (id(row) in uneven), MARK * (id(contrast) in uneven)

    for row in result.effects:
        if row.against is not None:
            continue
        pairs = result.references(row)
        if not pairs:
            yield Line(row, marks=marks(row, None))
        for number, (reference, contrast) in enumerate(pairs):
            star = number == 0 and row.condition in starred
            models = result.of_random_models(contrast)
            beside = marks(row, contrast)
            yield Line(row, number == 0, reference, contrast, models, star, beside)


def rows_with_lines(result: Record) -> list[list[Line]]:
    """Of each row its lines."""
    rows: list[list[Line]] = []
    for line in lines_of(result):
        if line.leads:
            rows.append([line])
        else:
            rows[-1].append(line)
    return rows


def by_size(result: Record) -> list[Line]:
    """The lines with the largest effects of each metric first; measurements in their order."""
    rows = rows_with_lines(result)
    metrics = list(dict.fromkeys(lines[0].row.metric for lines in rows))

    def place(lines: list[Line]) -> tuple[int, float]:
        row = lines[0].row
        size = abs(row.effect) if row.kind == "treatment" else 0.0
        return metrics.index(row.metric), -size

    return [line for lines in sorted(rows, key=place) for line in lines]


def table(result: Record, *, full: bool = False) -> pd.DataFrame:
    """The lines as text, in the order in which they are read.

    Args:
        result: Its rows.
        full: With p of effects and differences, d_z and the number of draws.
    """
    return text_of(list(lines_of(result)), full=full)


def text_of(chosen: Sequence[Line], *, full: bool = False) -> pd.DataFrame:
    """Lines as text, without columns that are empty.

    Args:
        chosen: Which, in this order.
        full: With p of effects and differences, d_z and the number of draws.
    """
    lines = pd.DataFrame([_words(line) for line in chosen])
    if not full:
        lines = lines.drop(columns=[name for name in ON_DEMAND if name in lines])
    return lines.replace("", None).dropna(axis="columns", how="all")


def numeric_table(result: Record, *, full: bool = False) -> pd.DataFrame:
    """The lines as numbers; every line holds its whole row."""
    lines = pd.DataFrame([_numbers(line) for line in lines_of(result)])
    if not full:
        hidden = [name.replace(" (difference)", "_difference") for name in ON_DEMAND]
        lines = lines.drop(columns=[name for name in hidden if name in lines])
    return lines.dropna(axis="columns", how="all")


def _words(line: Line) -> dict[str, Any]:
    """A line for a reader."""
    row = line.row
    own = {
        "condition": row.condition,
        "at": place_of(row),
        "queries": row.queries,
        "metric": row.metric,
        "layers": row.layers,
        "effect [95 %]": with_interval(row) + line.marks[0],
    }
    rest = {
        "p": _probability(row.p_value),
        "q": _probability(row.q_value),
        "baseline": written(row.baseline, ".4g"),
        "value": written(row.value, ".4g"),
        "unit": row.unit,
        "d_z": None if row.d_z is None else written(row.d_z, "+.2f"),
        "over": over(row),
        "draws": str(row.n_draws),
    }
    if not line.leads:
        own, rest = dict.fromkeys(own), dict.fromkeys(rest)
    return {**own, **_beside(line), **rest}


def _beside(line: Line) -> dict[str, Any]:
    """The columns of a control or null, and of the contrast with it."""
    if line.reference is None or line.contrast is None:
        return dict.fromkeys(REFERENCE)
    cells = (
        with_interval(line.contrast) + line.marks[1] + (" *" if line.star else ""),
        line.reference.against,
        _probability(line.contrast.p_value),
        _probability(line.contrast.q_value),
        effect_of(line.reference),
        None if line.models is None else with_interval(line.models),
    )
    return dict(zip(REFERENCE, cells, strict=True))


REFERENCE = (
    "difference [95 %]",
    "against",
    "p (difference)",
    "q (difference)",
    "control or null",
    "with random weights",
)


def _numbers(line: Line) -> dict[str, Any]:
    """A line as numbers."""
    row, contrast = line.row, line.contrast
    return {
        "condition": row.condition,
        "at": place_of(row) or None,
        "queries": row.queries,
        "metric": row.metric,
        "layers": row.layers,
        "effect": row.effect,
        "ci_low": row.ci_low,
        "ci_high": row.ci_high,
        "difference": contrast and contrast.effect,
        "difference_low": contrast and contrast.ci_low,
        "difference_high": contrast and contrast.ci_high,
        "against": line.reference and line.reference.against,
        "p_difference": contrast and contrast.p_value,
        "q_difference": contrast and contrast.q_value,
        "its_effect": line.reference and line.reference.effect,
        "with_random_weights": line.models and line.models.effect,
        "p": row.p_value,
        "q": row.q_value,
        "baseline": row.baseline,
        "value": row.value,
        "unit": row.unit or None,
        "d_z": row.d_z,
        "n": row.n_prompts,
        "resampled": row.resampled,
        "draws": row.n_draws,
    }


def with_interval(row: EffectSize) -> str:
    """An effect without its unit: `+0.021 [0.010, 0.032]`."""
    return f"{effect_of(row)}{interval_of(row)}"


def over(row: EffectSize) -> str:
    """What was resampled: `16 prompts`."""
    return f"{row.n_prompts} {row.resampled}{'s' if row.n_prompts != 1 else ''}"


def _probability(value: float | None) -> str | None:
    return None if value is None else probability(value)
