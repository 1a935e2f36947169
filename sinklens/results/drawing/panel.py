"""A panel is one pair of axes with what is drawn in it; a figure is panels below or beside others.

Plotly places panels by shares of the figure's size. Here their heights are pixels, so that rows of
a forest stay as far apart, however many there are, and no title meets an axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .style import (
    BESIDE,
    FONT,
    LETTER,
    NARROWEST,
    REMOVED,
    coloured,
    escaped,
    legend,
    titled,
    wrapped,
)

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

BETWEEN, AXIS, LINE, TITLE = 24, 52, 16, 20
NUMBERS, BAR, EDGE = 46, 92, 16
WIDE, NARROWEST_PANEL = 1000, 150


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: What stands above it; empty where the figure's title says it.
        traces: What is drawn, as plotly traces.
        x: Options of the horizontal axis.
        y: Options of the vertical axis.
        height: Of the plot in pixels.
        zero: Where a vertical line of reference stands, if there is one.
        level: Where a horizontal line of reference stands, if there is one.
        slant: How many pixels slanted labels take below the plot besides.
        cut: What is left out, in words.
    """

    title: str
    traces: Sequence[Any]
    x: dict[str, Any]
    y: dict[str, Any]
    height: int
    zero: float | None = None
    level: float | None = None
    slant: int = 0
    cut: str = ""

    @property
    def left(self) -> int:
        """The pixels left of the plot, for labels and the axis title."""
        lines = [part for text in self.y.get("ticktext", ()) for part in text.split("<br>")]
        labels = 14 + int(LETTER * max(map(len, lines))) if lines else NUMBERS
        return labels + TITLE * _lines(self.y)

    @property
    def right(self) -> int:
        """The pixels right of the plot, for a scale of colours."""
        return BAR if any(trace.type == "heatmap" for trace in self.traces) else EDGE

    @property
    def foot(self) -> int:
        """The pixels below the plot, for labels and the axis title."""
        return AXIS + self.slant + LINE * (_lines(self.x) - 1)


def _lines(axis: dict[str, Any]) -> int:
    """How many lines the title of an axis takes."""
    text = axis.get("title", {}).get("text", "")
    return text.count("<br>") + 1 if text else 0


def below_each_other(
    panels: Sequence[Panel], title: str, source: str, width: int | None = None
) -> Figure:
    """A figure of panels in one column, which fits narrow and wide pages."""
    left = max(panel.left for panel in panels)
    right = max(panel.right for panel in panels)
    heads = [_head(panel, width or NARROWEST) for panel in panels]
    space = [len(head) * LINE + (BETWEEN if number else 0) for number, head in enumerate(heads)]
    total = sum(panel.height for panel in panels) + sum(space)
    total += sum(panel.foot for panel in panels[:-1])
    drawn, top = _empty(), float(total)
    for number, (panel, above, head) in enumerate(zip(panels, space, heads, strict=True), 1):
        top -= above
        domain = [max(0.0, (top - panel.height) / total), top / total]
        _place(drawn, panel, number, [0.0, 1.0], domain)
        _write(drawn, head, 0.0, domain[1], EDGE - 4 - left)
        top -= panel.height + panel.foot
    foot, sides, least = panels[-1].foot, (left, right), width or NARROWEST
    return _finished(drawn, title, source, width, total, foot, sides, least)


def room_beside(panels: Sequence[Panel], width: int | None) -> float:
    """How many pixels each plot has where the panels stand in one row."""
    taken = sum(panel.left + panel.right for panel in panels)
    return ((width or WIDE) - taken) / len(panels)


def fit_beside(panels: Sequence[Panel], width: int | None) -> bool:
    """Whether panels in one row can be read; without a width, on a wide page."""
    return room_beside(panels, width) >= NARROWEST_PANEL


def beside_each_other(
    panels: Sequence[Panel], title: str, source: str, width: int | None = None
) -> Figure:
    """A figure of panels in one row, for wide pages."""
    ends = (panels[0].left, panels[-1].right)
    inner = (width or WIDE) - sum(ends)
    each = room_beside(panels, width)
    heads = [_head(panel, int(each) + 60) for panel in panels]
    height = max(panel.height for panel in panels)
    total = height + LINE * max(map(len, heads))
    drawn, start = _empty(), -float(panels[0].left)
    for number, (panel, head) in enumerate(zip(panels, heads, strict=True), 1):
        left = start + panel.left
        domain = [left / inner, min(1.0, (left + each) / inner)]
        _place(drawn, panel, number, domain, [0.0, height / total])
        _write(drawn, head, domain[0], height / total, 0)
        start = left + each + panel.right
    foot = max(panel.foot for panel in panels)
    return _finished(drawn, title, source, width, total, foot, ends, width or WIDE)


def _empty() -> Figure:
    from .shown import ShownFigure

    return coloured(ShownFigure())


def _head(panel: Panel, width: int) -> list[str]:
    """The lines above a panel."""
    lines = wrapped(panel.title, width) if panel.title else []
    return lines + (wrapped(panel.cut, width) if panel.cut else [])


def _write(drawn: Figure, head: Sequence[str], x: float, y: float, shift: int) -> None:
    """Put the heading of a panel above it."""
    if head:
        place = {"x": x, "y": y, "xref": "paper", "yref": "paper", "xshift": shift}
        aligned = {"xanchor": "left", "yanchor": "bottom", "align": "left", "showarrow": False}
        text = "<br>".join(map(escaped, head))
        drawn.add_annotation(text=text, font={"size": FONT}, **place, **aligned)


def _place(drawn: Figure, panel: Panel, number: int, across: list[float], up: list[float]) -> None:
    """Put a panel where it belongs; a name that several panels have stands in the legend once."""
    suffix = "" if number == 1 else str(number)
    axes = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}
    named = {trace.name for trace in drawn.data if trace.showlegend}
    for trace in panel.traces:
        trace.update(axes)
        if trace.type == "heatmap":
            bar = {"x": across[1], "xpad": 8, "y": sum(up) / 2, "len": up[1] - up[0]}
            trace.update(colorbar={**bar, "yanchor": "middle", "lenmode": "fraction"})
        elif trace.name and trace.showlegend is not False:
            trace.update(showlegend=trace.name not in named, legendgroup=trace.name)
            named.add(trace.name)
        drawn.add_trace(trace)
    shared = {"zeroline": False, "automargin": False}
    x = {"domain": across, "anchor": axes["yaxis"], **shared, "tickangle": 0, **panel.x}
    y = {"domain": up, "anchor": axes["xaxis"], **shared, **panel.y}
    drawn.update_layout({f"xaxis{suffix}": x, f"yaxis{suffix}": y})
    line = {"type": "line", "line": {"color": BESIDE, "width": 1}, "layer": "below"}
    if panel.zero is not None:
        ends = {"x0": panel.zero, "x1": panel.zero, "y0": 0, "y1": 1}
        drawn.add_shape(**line, **ends, xref=axes["xaxis"], yref=f"{axes['yaxis']} domain")
    if panel.level is not None:
        ends = {"x0": 0, "x1": 1, "y0": panel.level, "y1": panel.level}
        drawn.add_shape(**line, **ends, xref=f"{axes['xaxis']} domain", yref=axes["yaxis"])


def _finished(
    drawn: Figure,
    title: str,
    source: str,
    width: int | None,
    total: int,
    foot: int,
    sides: tuple[int, int],
    least: int,
) -> Figure:
    """The figure with its title, margins and a legend below, on a page of at least this width."""
    named = [trace.name for trace in drawn.data if trace.name and trace.showlegend]
    place, lines = legend(named, least - sum(sides))
    said, above = titled(title, source, width)
    height = total + above + lines + foot
    drawn.update_layout(
        title=said,
        legend={**place, "yref": "container", "y": (lines - 2) / height},
        width=width,
        height=height,
        margin={"t": above, "b": lines + foot, "l": sides[0], "r": sides[1], "autoexpand": False},
        showlegend=bool(named),
        modebar={"remove": list(REMOVED)},
    )
    return drawn
