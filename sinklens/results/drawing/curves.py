"""Curves: rows over layers, and arrays over their first axis.

Intervals are bands. A control has the dash of controls; of several conditions each control has the
colour of its condition.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from ...stats.effects import EffectSize
from ..figures import ByLayer, ByStep, Lines
from ..record import Array, Record
from ..table import Line
from .forests import HOLLOW, is_value, place_and_ends, reach, rows_by_metric
from .panel import Panel
from .style import BESIDE, COLOURS, DASHES, LETTER, REFERENCE_LINES, SERIES, SYMBOLS
from .words import axis_of, hover_of, in_lines, log_ticks, metric_words, ticks_of

LEAST_PLACES = 3
HEIGHT, SHORT, ALL, TICKS = 250, 5, 30, 8
STEP = re.compile(r"step(\d+)")
At = tuple[int, EffectSize]
Points = list[tuple[int, Line]]
"""A curve: layers or training steps, and the first line of the row at each."""


def layer_panels(figure: ByLayer, result: Record) -> Iterator[Panel]:
    """A panel for each metric with rows at several layers."""
    for metric, rows in rows_by_metric(result, figure.metrics).items():
        curves: dict[str, Points] = {}
        for lines in rows:
            row = lines[0].row
            if row.layer is not None and row.head is None:
                curves.setdefault(row.condition, []).append((row.layer, lines[0]))
        if curves := _long_enough(curves):
            places = [layer for points in curves.values() for layer, _ in points]
            first, last = min(places), max(places)
            marked = range(first, last + 1, max(1, (last - first) // TICKS))
            x = {"title": {"text": "layer"}, "tickvals": list(marked)}
            yield _row_panel(curves, metric_words(metric), x, result)


def step_panels(figure: ByStep, result: Record) -> Iterator[Panel]:
    """A panel for each metric with rows at several training steps."""
    for metric, rows in rows_by_metric(result, figure.metrics).items():
        found = [(STEP.fullmatch(lines[0].row.condition), lines[0]) for lines in rows]
        points = [(int(step[1]), line) for step, line in found if step]
        if curves := _long_enough({"this model": points}):
            x = {"title": {"text": "training step"}, "type": "category", "nticks": TICKS}
            yield _row_panel(curves, metric_words(metric), x, result)


def _long_enough(curves: Mapping[str, Points]) -> dict[str, Points]:
    """Curves of several places, one row each, from the first on."""
    return {
        name: sorted(points, key=lambda point: point[0])
        for name, points in curves.items()
        if len({place for place, _ in points}) == len(points) >= LEAST_PLACES
    }


def _row_panel(
    curves: Mapping[str, Points], title: str, x: dict[str, Any], result: Record
) -> Panel:
    """One metric over layers or steps, of the largest conditions where there are too many."""
    sizes = {name: max(abs(line.row.effect) for _, line in curves[name]) for name in curves}
    chosen = set(sorted(sizes, key=lambda name: -sizes[name])[:SERIES])
    shown = {name: points for name, points in curves.items() if name in chosen}
    rows = [line.row for points in shown.values() for _, line in points]
    cut = (
        f"the largest {len(shown)} of {len(curves)} conditions" if len(shown) < len(curves) else ""
    )
    value = is_value(rows[0])
    grey = any(line.is_grey for points in shown.values() for _, line in points)
    nulls = _nulls(result, next(iter(shown.values()))) if value else ()
    return Panel(
        f"{title}; hollow: {HOLLOW}" if grey else title,
        [*nulls, *_row_curves(shown)],
        x=x,
        y={
            "title": {"text": in_lines(axis_of(rows[0]))},
            **ticks_of(
                rows, list(reach([[line] for points in shown.values() for _, line in points]))
            ),
        },
        height=HEIGHT,
        level=None if value else 0.0,
        cut=cut,
    )


def _nulls(result: Record, points: Points) -> Iterator[Any]:
    """The analytic null of measurements."""
    from plotly import graph_objects

    row = points[0][1].row
    yield graph_objects.Scatter(
        x=[place for place, _ in points],
        y=[line.row.baseline for _, line in points],
        mode="lines",
        name=f"null: {result.measure(row.metric, row.condition).null}",
        line={"color": BESIDE, "dash": "dash", "width": 2},
        hovertemplate="%{y:.3g}",
    )


def _row_curves(shown: Mapping[str, Points]) -> Iterator[Any]:
    """The curve of each condition, and of its first control."""
    alone, value = len(shown) == 1, is_value(next(iter(shown.values()))[0][1].row)
    for number, (condition, points) in enumerate(shown.items()):
        colour = COLOURS[number]
        beside = [(x, line.reference) for x, line in points if line.reference is not None]
        if beside:
            kind = f"{beside[0][1].kind}: {beside[0][1].against}".replace("_", " ")
            style = {"color": BESIDE if alone else colour, "dash": "dot", "width": 1.5}
            if alone:
                yield _band(beside, BESIDE, value=value)
            name = kind if alone else f"{kind} (dotted)"
            marks = ["circle-open"] * len(beside)
            yield _curve(name, beside, style, marks, value=value, named=number == 0)
        rows = [(x, line.row) for x, line in points]
        yield _band(rows, colour, value=value)
        style = {"color": colour, "dash": DASHES[number], "width": 2}
        marks = [SYMBOLS[number] + ("-open" if line.is_grey else "") for _, line in points]
        yield _curve(condition, rows, style, marks, value=value, named=True)


def _curve(
    name: str,
    rows: Sequence[At],
    line: dict[str, Any],
    marks: list[str],
    *,
    value: bool,
    named: bool,
) -> Any:
    from plotly import graph_objects

    at = [place_and_ends(row, value=value)[0] for _, row in rows]
    return graph_objects.Scatter(
        x=[place for place, _ in rows],
        y=at,
        mode="lines+markers",
        name=name,
        line=line,
        marker={"symbol": marks, "size": 7, "color": line["color"]},
        hovertext=[hover_of(row, place) for (_, row), place in zip(rows, at, strict=True)],
        hoverinfo="text",
        showlegend=None if named else False,
    )


def _band(rows: Sequence[At], colour: str, *, value: bool) -> Any:
    """The intervals of a curve; nothing to be seen where there are none."""
    from plotly import graph_objects

    ends = [(place, *place_and_ends(row, value=value)) for place, row in rows]
    upper = [(place, at + up) for place, at, _, up in ends]
    lower = [(place, at - down) for place, at, down, _ in reversed(ends)]
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return graph_objects.Scatter(
        x=[place for place, _ in upper + lower],
        y=[at for _, at in upper + lower],
        mode="lines",
        line={"width": 0},
        fill="toself",
        fillcolor=f"rgba({red}, {green}, {blue}, 0.13)",
        hoverinfo="skip",
        showlegend=False,
        visible=any(row.ci_low is not None for _, row in rows),
    )


def line_panel(figure: Lines, result: Record) -> Panel:
    """Arrays over their first axis."""
    traces = list(_array_curves(figure, result))
    longest = max(len(place) for trace in traces for place in trace.x)
    slanted = longest > SHORT or longest * min(TICKS, len(traces[0].x)) > ALL
    ticks = log_ticks([value for trace in traces for value in trace.y]) if figure.log else {}
    return Panel(
        figure.title,
        traces,
        x={
            "title": {"text": figure.x},
            "nticks": TICKS,
            "type": "category",
            "tickangle": -45 if slanted else 0,
        },
        y={
            "title": {"text": in_lines(figure.y)},
            "type": "log" if figure.log else "linear",
            "rangemode": "tozero" if figure.from_zero else "normal",
            "nticks": 7,
            **ticks,
        },
        height=HEIGHT + 20,
        slant=int(0.7 * LETTER * longest) if slanted else 0,
    )


def matching(pattern: str, result: Record) -> Iterator[tuple[str, Array]]:
    """The arrays of a name or pattern."""
    return ((n, array) for n, array in result.arrays.items() if fnmatchcase(n, pattern))


def _array_curves(figure: Lines, result: Record) -> Iterator[Any]:
    """The curves of all arrays that a figure names, nulls first, so that they lie beneath."""
    curves = list(_columns(figure, result))
    nulls = [curve for curve in curves if curve[3]]
    for number, (name, places, values, _) in enumerate(nulls):
        line = REFERENCE_LINES[number % len(REFERENCE_LINES)]
        curve = _trace(f"null: {name}", places, values, {"color": BESIDE, **line}, "circle-open")
        yield curve.update(opacity=0.45 if line["width"] > 3 else 1)
    for number, (name, places, values, _) in enumerate(c for c in curves if not c[3]):
        style = {"color": COLOURS[number % SERIES], "dash": DASHES[number % SERIES], "width": 2}
        yield _trace(name, places, values, style, SYMBOLS[number % SERIES])


def _columns(figure: Lines, result: Record) -> Iterator[tuple[str, list[str], list[float], bool]]:
    """Of each curve its name, places and values, and whether it is a null."""
    words = figure.names or figure.arrays
    for pattern, word in zip(figure.arrays, words, strict=True):
        for name, array in matching(pattern, result):
            _, _, null = name.partition(":")
            columns = array.values[:, None] if array.values.ndim == 1 else array.values
            of = array.labels(array.dims[1]) if array.values.ndim > 1 else [null or name]
            for number, values in enumerate(columns.T[: figure.curves]):
                alone = min(len(of), figure.curves) == 1
                label = word if alone and figure.names and not null else of[number]
                beside = bool(null) or ": " in label
                yield label.replace("_", " "), array.labels(array.dims[0]), values.tolist(), beside


def _trace(
    name: str, places: list[str], values: list[float], line: dict[str, Any], symbol: str
) -> Any:
    from plotly import graph_objects

    return graph_objects.Scatter(
        x=places,
        y=values,
        name=name,
        mode="lines+markers",
        line=line,
        marker={"symbol": symbol, "size": 6, "color": line["color"]},
        hovertemplate=f"%{{x}}: %{{y:.3g}}<extra>{name}</extra>",
    )
