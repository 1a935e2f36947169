"""A figure as a picture without a program: for pages and notebooks that are read elsewhere.

Plotly needs its program of 5 MB in a page, or an installed browser to make a picture. This draws
the marks that figures of this package use (points with intervals, curves, bands, maps) as SVG of
some ten kilobytes, with the same numbers under the pointer.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from . import svg
from .axes import Axis, axes_of
from .style import FONT, LEGEND_MARK, LETTER, text_width

WIDTH = 760
SIDES = {"left": -1, "right": 1}
BAR_WIDTH, MOST_CELLS = 10.0, 600
TAG = re.compile(r"<br>|<[^>]*>")


def to_svg(figure: Any, width: int | None = None) -> str | None:
    """The picture of a figure; None where it holds other marks than those of this package.

    Args:
        figure: A plotly figure.
        width: In pixels; None takes the figure's, or what a notebook has room for.
    """
    if any(trace.type not in ("scatter", "heatmap") for trace in figure.data):
        return None
    layout = figure.layout
    if layout.height is None or layout.margin.l is None:
        return None
    size = width or int(layout.width or WIDTH), int(layout.height)
    axes = axes_of(figure, *size)
    parts = [part for pair in axes.values() for part in _frame(*pair)]
    for shape in layout.shapes:
        parts.append(_shape(shape, axes))
    for trace in figure.data:
        if trace.visible is not False:
            drawn = _cells if trace.type == "heatmap" else _scatter
            parts += drawn(trace, *axes[trace.xaxis or "x"])
    parts += _words(figure, size)
    parts += _legend(figure, size)
    view = f'viewBox="0 0 {size[0]} {size[1]}" width="{size[0]}" height="{size[1]}"'
    font = 'font-family="Open Sans, Arial, sans-serif"'
    named = html.escape(_plain(layout.title.text or "figure"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {view} {font} role="img" aria-label="{named}" '
        f'style="max-width: 100%; height: auto">{"".join(parts)}</svg>'
    )


def _frame(x: Axis, y: Axis) -> Iterator[str]:
    """The lines, ticks, labels and titles of a pair of axes."""
    grid: dict[str, Any] = {"stroke_opacity": 0.13}
    for at, label in x.ticks():
        if x.grid:
            yield svg.line((at, y.start), (at, y.end), **grid)
        yield svg.line((at, y.start), (at, y.start + 4), stroke_opacity=0.6)
        place = (at + (4 if x.slanted else 0), y.start + (14 if x.slanted else 17))
        anchor = "end" if x.slanted else "middle"
        yield svg.text(label, place, anchor=anchor, turned=-45 if x.slanted else 0, size=11)
    for at, label in y.ticks():
        if y.grid:
            yield svg.line((x.start, at), (x.end, at), **grid)
        yield svg.line((x.start - 4, at), (x.start, at), stroke_opacity=0.6)
        lines = label.split("<br>")
        for number, part in enumerate(lines):
            height = at + 4 + 12 * (number - (len(lines) - 1) / 2)
            yield svg.text(html.unescape(part), (x.start - 7, height), anchor="end", size=11)
    yield svg.line((x.start, y.start), (x.end, y.start), stroke_opacity=0.6)
    yield svg.line((x.start, y.start), (x.start, y.end), stroke_opacity=0.6)
    slant = 0.7 * LETTER * max((len(label) for _, label in x.ticks()), default=0)
    for number, part in enumerate(x.title):
        below = y.start + 37 + 15 * number + (slant if x.slanted else 0)
        yield svg.text(part, ((x.start + x.end) / 2, below))
    for number, part in enumerate(y.title):
        beside = x.start - y.room + 13 + 15 * number
        yield svg.text(part, (beside, (y.start + y.end) / 2), turned=-90)


def _shape(shape: Any, axes: dict[str, tuple[Axis, Axis]]) -> str:
    """A line of reference across a panel."""
    x, y = axes[shape.xref.removesuffix(" domain")]
    if shape.xref.endswith("domain"):
        start, end = (x.start, y.at(shape.y0)), (x.end, y.at(shape.y0))
    else:
        start, end = (x.at(shape.x0), y.start), (x.at(shape.x0), y.end)
    return svg.line(start, end, colour=shape.line.color or "currentColor")


def _scatter(trace: Any, x: Axis, y: Axis) -> Iterator[str]:
    """A band, a curve, or points with their intervals."""
    known = [
        (number, (x.at(across), y.at(up)))
        for number, (across, up) in enumerate(zip(trace.x, trace.y, strict=True))
        if up is not None and up == up
    ]
    places = [place for _, place in known]
    if trace.fill == "toself":
        yield svg.area(places, trace.fillcolor)
        return
    mode = trace.mode or "lines"
    colour = trace.marker.color or trace.line.color or "currentColor"
    if "lines" in mode:
        style = float(trace.line.width or 2), trace.line.dash or ""
        yield svg.path(
            places, trace.line.color or colour, *style, stroke_opacity=trace.opacity or 1
        )
    yield from _intervals(trace, known, colour, (x, y))
    if "markers" in mode:
        said = trace.hovertext or [""] * len(trace.x)
        for number, place in known:
            mark, size = _symbol(trace, number), float(trace.marker.size or 8)
            yield svg.mark(mark, place, colour, size, str(said[number]))
    if "text" in mode:
        for number, (across, up) in known:
            side = SIDES.get((trace.textposition or "").rpartition(" ")[2], 0)
            anchor = {-1: "end", 0: "middle", 1: "start"}[side]
            place = (across + 8 * side, up - 11)
            yield svg.text(str(trace.text[number]), place, anchor=anchor)


def _intervals(
    trace: Any, known: list[tuple[int, svg.Place]], colour: str, pair: tuple[Axis, Axis]
) -> Iterator[str]:
    """Error bars along either axis."""
    for side, (bars, axis) in enumerate(zip((trace.error_x, trace.error_y), pair, strict=True)):
        if bars.array is None or bars.visible is False:
            continue
        values = (trace.x, trace.y)[side]
        for number, place in known:
            low = axis.at(values[number] - bars.arrayminus[number])
            high = axis.at(values[number] + bars.array[number])
            ends = [(end, place[1]) if side == 0 else (place[0], end) for end in (low, high)]
            yield svg.line(ends[0], ends[1], colour=colour, stroke_width=1.5)


def _cells(trace: Any, x: Axis, y: Axis) -> Iterator[str]:
    """A map with its scale of colours; of very many cells without names under the pointer."""
    values = np.asarray(trace.z, float)
    low, high = float(trace.zmin), float(trace.zmax)
    share = np.clip((values - low) / ((high - low) or 1), 0, 1)
    form = trace.colorbar.tickformat or ".2g"
    yield from _scale(trace, x, y, (low, high), form)
    if values.size > MOST_CELLS:
        colours = [re.findall(r"\d+", one) for one in _colours(trace, np.nan_to_num(share).ravel())]
        opaque = np.where(np.isnan(values), 0, 255)
        pixels = np.dstack([np.array(colours, int).reshape(*values.shape, 3), opaque])
        whole = x.end - x.start, y.start - y.end
        yield svg.raster(pixels[::-1].astype(np.uint8), (x.start, y.end), whole)
        return
    size = abs(x.at(1) - x.at(0)) - 1, abs(y.at(1) - y.at(0)) - 1
    for row, column in np.argwhere(~np.isnan(values)):
        value, name = values[row, column], trace.customdata[row][column]
        (colour,) = _colours(trace, [share[row, column]])
        centre = x.at(column), y.at(row)
        corner = centre[0] - size[0] / 2, centre[1] - size[1] / 2
        written = f"{value:{form}}"
        yield svg.box(corner, size, colour, _plain(f"{name}: {written}" if name else written))
        if trace.texttemplate:
            ink = "#ffffff" if share[row, column] < 0.6 else "#000000"
            yield svg.text(written, (centre[0], centre[1] + 4), size=11, colour=ink)


def _scale(trace: Any, x: Axis, y: Axis, ends: tuple[float, float], form: str) -> Iterator[str]:
    """The colours from the lowest to the highest value, with their title."""
    left, height = x.end + 10, (y.start - y.end) / 20
    for number, colour in enumerate(_colours(trace, np.linspace(0, 1, 20))):
        yield svg.box((left, y.start - (number + 1) * height), (BAR_WIDTH, height + 0.5), colour)
    for value, at in ((ends[0], y.start), (sum(ends) / 2, (y.start + y.end) / 2), (ends[1], y.end)):
        yield svg.text(f"{value:{form}}", (left + BAR_WIDTH + 4, at + 4), anchor="start", size=11)
    title = trace.colorbar.title.text or ""
    yield svg.text(title, (left + 54, (y.start + y.end) / 2), turned=-90, size=11)


def _colours(trace: Any, shares: Iterable[float]) -> list[str]:
    """The colours of shares of the way from the lowest to the highest value."""
    from plotly.colors import sample_colorscale

    scale = [list(pair) for pair in trace.colorscale]
    return list(sample_colorscale(scale, [float(share) for share in shares]))


def _words(figure: Any, size: tuple[int, int]) -> Iterator[str]:
    """The title and what stands above the panels."""
    layout = figure.layout
    bold, _, small = (layout.title.text or "").partition("</b>")
    height = 24
    for part, weight in ((bold, True), (small, False)):
        for words in filter(None, _plain(part).split("\n")):
            size_of = 15 if weight else FONT
            place = (12.0, float(height))
            yield svg.text(words, place, anchor="start", size=size_of, bold=weight)
            height += 19
    margin = layout.margin
    inner = size[0] - margin.l - margin.r, size[1] - margin.t - margin.b
    for note in layout.annotations:
        x = margin.l + note.x * inner[0] + (note.xshift or 0)
        y = size[1] - margin.b - note.y * inner[1] - 5
        lines = _plain(note.text).split("\n")
        for number, words in enumerate(lines):
            up = y - 15 * (len(lines) - 1 - number)
            yield svg.text(words, (x, up), anchor="start", size=FONT)


def _legend(figure: Any, size: tuple[int, int]) -> Iterator[str]:
    """The named marks below the panels."""
    entries = [trace for trace in figure.data if trace.showlegend and trace.visible is not False]
    x, y = 12.0, size[1] * (1 - (figure.layout.legend.y or 0)) + 16
    for trace in entries:
        width = LEGEND_MARK + text_width(trace.name)
        if x > 12 and x + width > size[0]:
            x, y = 12.0, y + 19
        colour = trace.marker.color or trace.line.color or "currentColor"
        if "lines" in (trace.mode or "lines"):
            dash = trace.line.dash or ""
            thick = float(min(trace.line.width or 2, 5))
            yield svg.path([(x, y - 4), (x + 26, y - 4)], trace.line.color or colour, thick, dash)
        if "markers" in (trace.mode or ""):
            place, reach = (x + 13, y - 4), float(min(trace.marker.size or 8, 12))
            yield svg.mark(_symbol(trace, 0), place, colour, reach)
        yield svg.text(trace.name, (x + 32, y), anchor="start")
        x += width


def _symbol(trace: Any, number: int) -> str:
    """The mark of a point."""
    symbol = trace.marker.symbol or "circle"
    return str(symbol if isinstance(symbol, str) else symbol[number])


def _plain(text: str) -> str:
    """The words of a text with plotly's tags, which break lines."""
    return html.unescape(TAG.sub(lambda tag: "\n" if tag[0] == "<br>" else "", text)).strip("\n")
