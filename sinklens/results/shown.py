"""A table as it is shown: what all rows share in a line above it, what is not significant grey."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

FOLDED = (
    "condition",
    "at",
    "queries",
    "metric",
    "layers",
    "baseline",
    "unit",
    "over",
    "against",
    "result",
)
SAID = {"over": "{}", "unit": "{}", "against": "against {}", "at": "at {}", "result": "{}"}
CELL = "white-space: nowrap; text-align: left"
"""On every cell, since pages that do not trust a notebook drop styles that stand apart."""
MOST_LINES = 200
LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": "$<$",
        ">": "$>$",
        **{special: f"\\{special}" for special in "&%$#_{}"},
    }
)
GREY = "color: #767676"  # readable on white and on black


@dataclass(frozen=True)
class Shown:
    """A table in every form in which it is shown.

    Attributes:
        caption: What all rows share, empty if nothing.
        table: The columns that vary, as text.
        grey: By line whether it is not significant.
    """

    caption: str
    table: pd.DataFrame
    grey: Sequence[bool]

    def text(self) -> str:
        """For a terminal."""
        table = self.table.to_string(index=False, na_rep="")
        return f"{self.caption}\n{table}" if self.caption else table

    def html(self) -> str:
        """For Jupyter and pages; lines that are not significant are grey."""
        head = "".join(f'<th style="{CELL}">{html.escape(str(name))}</th>' for name in self.table)
        lines = []
        for cells, grey in zip(self._cells()[:MOST_LINES], self.grey, strict=False):
            style = f' style="{GREY}"' if grey else ""
            written = "".join(f'<td style="{CELL}">{html.escape(cell)}</td>' for cell in cells)
            lines.append(f"<tr{style}>{written}</tr>")
        caption = self.caption and f"<p>{html.escape(self.caption)}</p>"
        left = len(self.table) - MOST_LINES
        more = f"<p>{left} more lines are in table().</p>" if left > 0 else ""
        return (
            f"{caption}<div style='overflow-x: auto'><table>"
            f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>{more}"
        )

    def markdown(self) -> str:
        """As a table of GitHub's Markdown, under its caption."""
        rows = [[str(name) for name in self.table], ["---"] * len(self.table.columns)]
        rows += self._cells()
        lines = [f"| {' | '.join(_escaped(cell) for cell in row)} |" for row in rows]
        return "\n".join(([_escaped(self.caption), ""] if self.caption else []) + lines) + "\n"

    def latex(self) -> str:
        r"""As a `table` with its caption; needs the package `booktabs`."""
        cells = pd.DataFrame(self._cells(), columns=[str(name) for name in self.table])
        cells = cells.map(lambda cell: cell.translate(LATEX))
        cells.columns = [name.translate(LATEX) for name in cells]
        caption = self.caption.translate(LATEX) or None
        return str(cells.to_latex(index=False, escape=False, caption=caption))

    def _cells(self) -> list[list[str]]:
        filled = self.table.astype(object).where(self.table.notna(), "")
        return [[str(cell) for cell in row] for row in filled.itertuples(index=False)]


def shown(table: pd.DataFrame, grey: Sequence[bool]) -> Shown:
    """Fold the columns in which all rows are alike into a caption.

    Args:
        table: Text; further lines of a row leave the columns of the row empty.
        grey: By line whether it is not significant.
    """
    shared = {name: value for name in FOLDED if (value := _shared(table, name)) is not None}
    said = [SAID.get(name, f"{name} {{}}").format(value) for name, value in shared.items()]
    caption = f"All rows: {', '.join(said)}." if said else ""
    return Shown(caption, table.drop(columns=list(shared)), grey)


def _shared(table: pd.DataFrame, name: str) -> str | None:
    """What a column holds in all of several rows; None if they differ or some hold nothing."""
    if name not in table:
        return None
    of_rows = table if name == "against" else table[table["condition"].notna()]
    values = of_rows[name]
    if len(values) < 2 or values.isna().any() or values.nunique() > 1:
        return None
    return str(values.iloc[0])


def _escaped(text: str) -> str:
    """Text as Markdown takes it literally within a table."""
    for special in "\\|*_<[":
        text = text.replace(special, f"\\{special}")
    return text
