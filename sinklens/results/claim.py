"""A claim of a diagnosis: a sentence, the rows that it rests on, and its verdict in a word."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

from ..stats.effects import EffectSize
from .record import Record
from .wording import written

UNTESTED = ("", "not tested against")
WIDTH, MOST_LINES = 100, 2
"""Of a claim on the first screen; two characters of a line are its number."""


@dataclass(frozen=True)
class Claim:
    """A sentence of the first screen and what it rests on.

    Attributes:
        text: The sentence.
        rows: The rows, each with its experiment.
        verdict: In a word, what the heading is made of; empty where there is none.
    """

    text: str
    rows: tuple[tuple[str, EffectSize], ...] = ()
    verdict: str = ""


def row_of(result: Record, metric: str, condition: str) -> EffectSize | None:
    """The row of a metric and condition, not of its control."""
    wanted = metric, condition, None
    rows = (row for row in result.effects if (row.metric, row.condition, row.against) == wanted)
    return next(rows, None)


def cited(result: Record, rows: list[EffectSize]) -> tuple[tuple[str, EffectSize], ...]:
    """Rows with their experiment, each once."""
    return tuple((result.experiment, row) for row in dict.fromkeys(rows))


def fitting(*texts: str) -> str:
    """The first text that two lines hold, else the last."""
    return next((text for text in texts if fits(text)), texts[-1])


def fits(text: str) -> bool:
    """Whether two lines hold a claim."""
    return len(textwrap.wrap(text, WIDTH - 2, break_on_hyphens=False)) <= MOST_LINES


def percent(value: float) -> str:
    """A share: `35.5%`."""
    return written(value, ".1%")
