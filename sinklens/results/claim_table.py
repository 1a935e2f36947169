"""The table below the first screen: the rows that its claims rest on, beside their controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .claim import Claim
from .record import Record
from .shown import Shown, shown
from .table import Line, rows_with_lines, text_of

LEFT_OUT = ("q", "with random weights", "baseline")
"""Columns of the whole tables that the claims do without."""


def claim_table(results: Mapping[str, Record], made: Sequence[Claim]) -> Shown | None:
    """About eight rows, each once, under the number of the first claim that it is said in.

    Args:
        results: Results by experiment.
        made: The claims, in their order.

    Returns:
        None where they rest on none.
    """
    chosen: list[Line] = []
    numbers: list[str] = []
    seen = set()
    for number, claim in enumerate(made, 1):
        for experiment, row in claim.rows:
            if (experiment, row) in seen:
                continue
            seen.add((experiment, row))
            lines = next(
                lines for lines in rows_with_lines(results[experiment]) if lines[0].row == row
            )
            chosen += lines
            numbers += [str(number), *[""] * (len(lines) - 1)]
    if not chosen:
        return None
    table = text_of(chosen)
    table = table.drop(columns=[name for name in LEFT_OUT if name in table])
    table.insert(0, "claim", numbers)
    return shown(table, [line.is_grey for line in chosen])
