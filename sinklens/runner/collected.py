"""What an experiment's function collects besides rows: arrays, findings, draws and notes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..results.estimates import Measure
from ..results.record import Array


class Collected:
    """The content of a result that is not its rows."""

    def __init__(self, measures: Mapping[str, Measure]) -> None:
        """Start with what an experiment declares of its measures."""
        self._measures: dict[str, Measure] = dict(measures)
        self._arrays: dict[str, Array] = {}
        self._findings: dict[str, Any] = {}
        self._draws: dict[str, Any] = {}
        self._notes: list[str] = []
        self._footnotes: dict[str, str] = {}
        self._left_out: dict[str, str] = {}
        self._attention: Sequence[int] = ()

    def declare(self, metric: str, measure: Measure) -> None:
        """Say what kind of number a metric is whose name the run finds out."""
        self._measures[metric] = measure

    def keep(self, name: str, values: Tensor, dims: str = "", **coords: Sequence[Any]) -> None:
        """Keep an array.

        Args:
            name: Its name.
            values: The numbers.
            dims: The names of its axes, separated by blanks: `layer head`. Where only some layers
                have attention, an axis `layer` of as many places gets their numbers.
            coords: By axis its labels, where the numbers of its places do not say what is meant.
        """
        axes, numbers = tuple(dims.split()), list(self._attention)
        sizes = dict(zip(axes, values.shape, strict=True))
        if sizes.get("layer") == len(numbers) and numbers != list(range(len(numbers))):
            coords = {"layer": numbers, **coords}
        self._arrays[name] = Array(values, axes, coords)

    def facts(self, **findings: Any) -> None:
        """Keep what was found besides rows and arrays, ready for JSON; sentences may name it."""
        self._findings |= findings

    def drawn(self, **draws: Any) -> None:
        """Record random draws, for replication."""
        self._draws |= draws

    def note(self, *lines: str) -> None:
        """Add sentences to the foot of the table, each once."""
        self._notes += [line for line in lines if line not in self._notes]

    def footnote(self, condition: str, line: str) -> None:
        """Say what a reader of a condition's rows has to know; they get a star."""
        self._footnotes[condition] = line

    def left_out(self, what: str, reason: str) -> None:
        """Say what else was left out and why."""
        self._left_out[what] = reason
