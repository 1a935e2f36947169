"""Results of one experiment on several models, checkpoints or texts, beside each other.

    comparison = sinklens.compare([first, second, ...])

Every row that the first result and another one have in common gives one difference of effects,
that of the other less that of the first: of a treatment from its clean run, of a measurement from
its null, or of a contrast. q is p after Benjamini-Hochberg over the differences of one metric and
kind. How two results are compared is in `differences`.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from ..core.errors import UsageError
from ..stats.effects import effects_with_q, is_significant
from .comparison_figure import draw_differences
from .differences import Difference, differences, labels_of, remarks, same_prompts
from .record import Record
from .shown import Shown, shown
from .table import with_interval
from .wording import place_of, probability

RESAMPLED = (
    "Intervals are over prompts: they are about these models on such prompts, not about what "
    "training them again would give."
)
DRAWN = "Draws are averaged within each prompt; the intervals do not cover their choice."


@dataclass(frozen=True)
class ResultComparison:
    """What `compare` found.

    Attributes:
        experiment: The experiment.
        base: The label of the first result.
        differences: By row and other result.
        remarks: How it was compared, and what could not be.
    """

    experiment: str
    base: str
    differences: list[Difference]
    remarks: list[str]

    def to_dataframe(self) -> pd.DataFrame:
        """All differences in long form: `base`, `result`, `paired`, and the fields of a row."""
        return pd.DataFrame(
            [
                {"base": self.base, "result": one.result, "paired": one.paired} | asdict(one.effect)
                for one in self.differences
            ]
        )

    def table(self) -> pd.DataFrame:
        """One line per row and other result: the difference, and the two effects."""
        lines = pd.DataFrame([self._line(one) for one in self.differences])
        return lines.replace("", None).dropna(axis="columns", how="all")

    def _line(self, one: Difference) -> dict[str, Any]:
        row = one.effect
        return {
            "condition": row.condition,
            "at": place_of(row),
            "queries": row.queries,
            "metric": row.metric,
            "layers": row.layers,
            "against": row.against,
            "result": one.result,
            "difference [95 %]": with_interval(row),
            "q": None if row.q_value is None else probability(row.q_value),
            "effect [95 %]": with_interval(one.other),
            f"{self.base} [95 %]": with_interval(one.first),
            "unit": row.unit,
            "over": one.over,
        }

    def notes(self) -> list[str]:
        """How it was compared, and what could not be."""
        return self.remarks

    def plot(self) -> Any:
        """The differences with their intervals (plotly)."""
        points = [(one.result, one.effect) for one in self.differences]
        return draw_differences(f"{self._title()}, 95 % intervals", points)

    def to_markdown(self) -> str:
        """The table for a page in Markdown, without the columns in which all rows are alike."""
        return self._shown().markdown()

    def to_latex(self) -> str:
        r"""The table for LaTeX (`\usepackage{booktabs}`), without columns that do not vary."""
        return self._shown().latex()

    def __str__(self) -> str:
        """Table and notes as plain text."""
        return "\n".join([self._title(), "", self._shown().text(), "", *self.notes()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Table and notes for Jupyter."""
        notes = "<br>".join(html.escape(line) for line in self.notes())
        return (
            f"<h4>{html.escape(self._title())}</h4>{self._shown().html()}"
            f"<p><small>{notes}</small></p>"
        )

    def _title(self) -> str:
        return f"{self.experiment}: differences from {self.base}"

    def _shown(self) -> Shown:
        grey = [
            one.effect.p_value is not None and not is_significant(one.effect)
            for one in self.differences
        ]
        return shown(self.table(), grey)


def concat(results: Iterable[Record] | Any) -> pd.DataFrame:
    """All rows of several results in long form, with experiment, model and prompts.

    Args:
        results: Results of any experiments; of a diagnosis `diagnosis.results.values()`.

    Raises:
        UsageError: There is none, or something else is among them.
    """
    rows = [line for result in _results(results, "concat", least=1) for line in result.lines()]
    return pd.DataFrame(rows)


def compare(results: Iterable[Record] | Any) -> ResultComparison:
    """Compare results of one experiment: different models, checkpoints, texts or settings.

    Args:
        results: At least two; the others are compared with the first.

    Raises:
        UsageError: There are fewer, they are of different experiments, or have no row in common.
    """
    first, *others = given = _results(results, "compare", least=2)
    names = dict.fromkeys(result.experiment for result in given)
    if len(names) > 1:
        raise UsageError(f"compare takes results of one experiment, not of {', '.join(names)}")
    base, *labels = labels_of(given)
    found = [
        (label, same_prompts(first, other), *pair)
        for label, other in zip(labels, others, strict=True)
        for pair in differences(first, other)
    ]
    if not found:
        raise UsageError(f"these results of {first.experiment} have no row in common")
    effects = effects_with_q([effect for *_, effect in found])
    compared = [
        Difference(label, one, other, effect, paired)
        for (label, paired, one, other, _), effect in zip(found, effects, strict=True)
    ]
    lines = [
        line
        for label, other in zip(labels, others, strict=True)
        for line in remarks(first, other, base, label)
    ]
    if any(max(one.first.n_draws, one.other.n_draws) > 1 for one in compared):
        lines.append(DRAWN)
    return ResultComparison(first.experiment, base, compared, [*lines, RESAMPLED])


def _results(results: Iterable[Record] | Any, what: str, least: int) -> list[Record]:
    """Several results, or why they are none."""
    given = list(results) if isinstance(results, Iterable) else [results]
    for one in given:
        if not isinstance(one, Record):
            raise UsageError(f"{what} takes a list of results, not of {type(one).__name__}")
    if isinstance(results, Record) or len(given) < least:
        raise UsageError(f"{what} takes a list of at least {least} results: {what}([first, ...])")
    return given
