"""Where a figure's values stand in a picture: the axes of plotly's layout in pixels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

PADDING = 0.05
MOST_CATEGORIES = 26


@dataclass(frozen=True)
class Axis:
    """An axis in pixels.

    Attributes:
        start: Where it starts, at the left or at the bottom.
        end: Where it ends.
        low: The value at its start, of a logarithmic axis its power of ten.
        high: The value at its end.
        layout: Its options.
        categories: The labels of an axis of categories.
        room: The pixels between the edge of the picture and a vertical axis.
    """

    start: float
    end: float
    low: float
    high: float
    layout: Any
    categories: tuple[str, ...] = ()
    room: float = 0.0

    @property
    def grid(self) -> bool:
        """Whether it has lines across."""
        return self.layout.showgrid is not False

    @property
    def slanted(self) -> bool:
        """Whether its labels are slanted."""
        return bool(self.layout.tickangle)

    @property
    def title(self) -> list[str]:
        """The lines of its title."""
        return (self.layout.title.text or "").split("<br>")

    def at(self, value: Any) -> float:
        """The pixel of a value."""
        place = self._number(value)
        share = (place - self.low) / ((self.high - self.low) or 1)
        return self.start + share * (self.end - self.start)

    def _number(self, value: Any) -> float:
        if self.categories:
            return float(self.categories.index(str(value)))
        if self.layout.type == "log":
            return math.log10(value) if value > 0 else self.low
        return float(value)

    def ticks(self) -> list[tuple[float, str]]:
        """The pixels and labels of its ticks."""
        layout = self.layout
        if layout.tickvals is not None:
            texts = layout.ticktext or [f"{value:g}" for value in layout.tickvals]
            known = zip(layout.tickvals, texts, strict=True)
            pairs = [(value, str(text)) for value, text in known if self._holds(value)]
        elif self.categories:
            step = max(1, -(-len(self.categories) // (layout.nticks or MOST_CATEGORIES)))
            pairs = [(label, label) for label in self.categories[::step]]
        else:
            pairs = [(value, f"{value:{layout.tickformat or 'g'}}") for value in self._even()]
        return [(self.at(value), text) for value, text in pairs]

    def _holds(self, value: Any) -> bool:
        margin = 1e-9 * max(1.0, abs(self.high - self.low))
        return self.low - margin <= self._number(value) <= self.high + margin

    def _even(self) -> list[float]:
        """Round numbers, about six, or whole ones as far apart as the layout says."""
        low, high = self.low, self.high
        if self.layout.type == "log":
            low, high = 10**low, 10**high
        step = self.layout.dtick or _round((high - low) / 6)
        first = math.ceil(low / step - 1e-9)
        count = int((high - first * step) / step + 1e-9) + 1
        return [round((first + number) * step, 12) + 0.0 for number in range(max(0, count))]


def _round(step: float) -> float:
    """The next 1, 2 or 5 times a power of ten."""
    if step <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(step))
    return next(lead * power for lead in (1, 2, 5, 10) if lead * power >= step * 0.999)


def axes_of(figure: Any, width: int, height: int) -> dict[str, tuple[Axis, Axis]]:
    """The pair of axes of each panel, by the name of the horizontal one."""
    layout, margin = figure.layout, figure.layout.margin
    inner = width - margin.l - margin.r, height - margin.t - margin.b
    pairs: dict[str, tuple[Axis, Axis]] = {}
    previous = 0.0
    for trace in figure.data:
        name, other = trace.xaxis or "x", trace.yaxis or "y"
        if name in pairs:
            continue
        mine = [one for one in figure.data if (one.xaxis or "x") == name]
        x, y = layout[name.replace("x", "xaxis")], layout[other.replace("y", "yaxis")]
        across, up = (axis.domain or (0, 1) for axis in (x, y))
        left, right = (margin.l + end * inner[0] for end in across)
        bottom, top = (height - margin.b - end * inner[1] for end in up)
        room = left - previous if across[0] > 0 else left
        previous = right + (75 if mine[0].type == "heatmap" else 4)
        lines = [list(_lines(layout, side, axis)) for side, axis in (("x", name), ("y", other))]
        pairs[name] = (
            _axis(x, mine, "x", left, right, lines[0]),
            _axis(y, mine, "y", bottom, top, lines[1], room),
        )
    return pairs


def _lines(layout: Any, side: str, axis: str) -> Iterator[float]:
    """Where lines of reference stand on an axis, which plotly keeps in sight too."""
    for shape in layout.shapes:
        if shape[f"{side}ref"] == axis:
            yield from (float(shape[f"{side}0"]), float(shape[f"{side}1"]))


def _axis(
    layout: Any,
    traces: list[Any],
    side: str,
    start: float,
    end: float,
    lines: list[float],
    room: float = 0.0,
) -> Axis:
    """An axis over all that is drawn on it, lines of reference included."""
    if traces[0].type == "heatmap":
        size = np.asarray(traces[0].z).shape[1 if side == "x" else 0]
        return Axis(start, end, -0.5, size - 0.5, layout, (), room)
    if layout.type == "category":
        seen = dict.fromkeys(str(value) for trace in traces for value in trace[side])
        return Axis(start, end, -0.4, len(seen) - 0.6, layout, tuple(seen), room)
    if layout.range is not None:
        first, last = map(float, layout.range)
        return Axis(start, end, first, last, layout, (), room)
    values = [*lines, *(value for trace in traces for value in _reach(trace, side))]
    if layout.type == "log":
        values = [math.log10(value) for value in values if value > 0]
    elif layout.rangemode == "tozero":
        values.append(0.0)
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    space = PADDING * ((high - low) or abs(high) or 1.0)
    below = 0.0 if layout.rangemode == "tozero" and low == 0 else space
    return Axis(start, end, low - below, high + space, layout, (), room)


def _reach(trace: Any, side: str) -> list[float]:
    """The values that a trace reaches on one side, with its intervals."""
    if trace.visible is False:
        return []
    values = np.asarray(trace[side], float)
    bars = trace[f"error_{side}"]
    ends = [values]
    if bars.array is not None and bars.visible is not False:
        ends = [values - np.asarray(bars.arrayminus), values + np.asarray(bars.array)]
    return [float(value) for part in ends for value in part if np.isfinite(value)]
