"""Forests: each row with its interval, its controls and nulls beside it.

A treatment stands where its effect is, and its control where the control's is; a measurement where
its value is, beside its null and the values of its references. What was tested and is not
significant is hollow, by the rule of the table (`table.Line.is_grey`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ...stats.effects import EffectSize
from ..figures import Forest
from ..record import Record
from ..table import Line, rows_with_lines
from ..wording import written
from .panel import Panel
from .style import BESIDE, COLOURS, REFERENCE_SYMBOLS, escaped
from .words import axis_of, hover_of, in_lines, label_of, metric_words, ticks_of

MOST_ROWS, TICKS = 40, 5
NULL = "analytic null"
HOLLOW = "not significantly different"
FILLED = {"treatment": "intervention", "measurement": "this model"}


def forest_panels(figure: Forest, result: Record) -> Iterator[Panel]:
    """A panel for each metric that has rows; measurements and treatments have their own."""
    for metric, rows in rows_by_metric(result, figure.metrics).items():
        kinds: dict[str, list[list[Line]]] = {}
        for lines in rows:
            if not figure.queries or lines[0].row.queries in (None, figure.queries):
                kinds.setdefault(lines[0].row.kind, []).append(lines)
        for of_kind in kinds.values():
            yield forest_panel(result, metric_words(metric), of_kind)


def rows_by_metric(result: Record, metrics: Sequence[str] = ()) -> dict[str, list[list[Line]]]:
    """The lines of every row by metric.

    Args:
        result: Its rows.
        metrics: Which, in this order; of `loss|kl` the first that has rows. Empty takes all.
    """
    groups: dict[str, list[list[Line]]] = {}
    for lines in rows_with_lines(result):
        groups.setdefault(lines[0].row.metric, []).append(lines)
    chosen = [next(filter(groups.get, names.split("|")), None) for names in metrics]
    return {name: groups[name] for name in chosen if name} if metrics else groups


def forest_panel(result: Record, title: str, rows: Sequence[list[Line]]) -> Panel:
    """The panel of one metric, of the largest rows where there are too many.

    Args:
        result: Whose rows they are.
        title: What the panel is headed with.
        rows: By row its lines.
    """
    shown = largest(rows)
    first = [lines[0].row for lines in shown]
    queries = len({row.queries for row in first}) > 1
    labels = [label_of(row, queries=queries) for row in first]
    beside = max(len(lines) if lines[0].reference else 0 for lines in shown)
    cut = f"the largest {len(shown)} of {len(rows)} rows" if len(shown) < len(rows) else ""
    return Panel(
        f"{title}{beside_nulls(result, first)}",
        list(_traces(result, shown)),
        x={
            "title": {"text": in_lines(axis_of(first[0]))},
            **ticks_of(first, list(reach(shown))),
            "nticks": TICKS,
        },
        y={
            "tickvals": [-place for place in range(len(labels))],
            "ticktext": labels,
            "range": [0.6 - len(labels), 0.6],
            "showgrid": False,
        },
        height=max(60, len(shown) * (20 + 10 * min(2, beside)) + 12),
        zero=None if is_value(first[0]) else 0.0,
        cut=cut,
    )


def beside_nulls(result: Record, rows: Sequence[EffectSize]) -> str:
    """The analytic nulls of measurements, for a heading; nothing of treatments."""
    if not is_value(rows[0]):
        return ""
    words = dict.fromkeys(result.measure(row.metric, row.condition).null for row in rows)
    return f"; null: {', '.join(words)}"


def largest(rows: Sequence[list[Line]]) -> list[list[Line]]:
    """All rows in their order, or those with the largest effects by size."""
    if len(rows) <= MOST_ROWS:
        return list(rows)
    return sorted(rows, key=lambda lines: -abs(lines[0].row.effect))[:MOST_ROWS]


def place_and_ends(row: EffectSize, *, value: bool) -> tuple[float, float, float]:
    """Where a row is drawn, and how far its interval reaches down and up; 0 where there is none.

    Args:
        row: The row.
        value: Whether at its value, else at its effect.
    """
    at = row.value if value else row.effect
    if row.ci_low is None or row.ci_high is None:
        return at, 0.0, 0.0
    return at, row.effect - row.ci_low, row.ci_high - row.effect


def is_value(row: EffectSize) -> bool:
    """Whether a row and what it is compared with are drawn at their values, not their effects."""
    return row.kind != "treatment"


def reach(shown: Sequence[list[Line]]) -> Iterator[float]:
    """How far rows, what they are compared with and their intervals reach."""
    value = is_value(shown[0][0].row)
    for row in (row for lines in shown for one in lines for row in (one.row, one.reference)):
        if row is not None:
            at, down, up = place_and_ends(row, value=value)
            yield from (at - down, at + up, *([row.baseline] if value else []))


def error_bars(rows: Sequence[EffectSize]) -> dict[str, Any]:
    """The intervals of rows as plotly's error bars; no bar where there is no interval."""
    ends = [place_and_ends(row, value=False) for row in rows]
    down, up = ([end[side] for end in ends] for side in (1, 2))
    bars = {"type": "data", "symmetric": False, "array": up, "arrayminus": down}
    return {**bars, "width": 3, "thickness": 1.5, "visible": any(down) or any(up)}


def points(
    name: str,
    rows: Sequence[EffectSize],
    heights: Sequence[float],
    *,
    value: bool,
    marker: dict[str, Any],
) -> Any:
    """Rows as points with their intervals, at given heights."""
    from plotly import graph_objects

    at = [place_and_ends(row, value=value)[0] for row in rows]
    return graph_objects.Scatter(
        x=at,
        y=list(heights),
        error_x={**error_bars(rows), "color": marker["color"]},
        mode="markers",
        name=name,
        marker={"size": 9, **marker},
        hovertext=[hover_of(row, place) for row, place in zip(rows, at, strict=True)],
        hoverinfo="text",
        cliponaxis=False,
    )


def _traces(result: Record, shown: Sequence[list[Line]]) -> Iterator[Any]:
    """The points of a panel: nulls, references, and the rows themselves on top."""
    value = is_value(shown[0][0].row)
    if value:
        yield from _strokes(result, [lines[0].row for lines in shown])
    references: dict[str, list[tuple[EffectSize, float]]] = {}
    groups: dict[bool, list[tuple[EffectSize, float]]] = {}
    for place, lines in enumerate(shown):
        beside = [line.reference for line in lines if line.reference is not None]
        heights = _heights(-float(place), len(beside) + 1)
        groups.setdefault(lines[0].is_grey, []).append((lines[0].row, heights[0]))
        for reference, height in zip(beside, heights[1:], strict=True):
            name = f"{reference.kind}: {reference.against}".replace("_", " ")
            references.setdefault(name, []).append((reference, height))
    for number, (name, ones) in enumerate(references.items()):
        symbol = REFERENCE_SYMBOLS[number % len(REFERENCE_SYMBOLS)]
        yield points(name, *_apart(ones), value=value, marker={"color": BESIDE, "symbol": symbol})
    for grey, ones in sorted(groups.items()):
        rows, heights = _apart(ones)
        name = HOLLOW if grey else FILLED[rows[0].kind]
        marker = {"color": COLOURS[0], "symbol": "square-open" if grey else "square"}
        yield points(name, rows, heights, value=value, marker=marker)


def _apart(
    ones: Sequence[tuple[EffectSize, float]],
) -> tuple[list[EffectSize], list[float]]:
    return [row for row, _ in ones], [height for _, height in ones]


def _heights(place: float, count: int) -> list[float]:
    """Where a row and its references stand, one below the other."""
    step = min(0.26, 0.7 / count)
    return [place + step * ((count - 1) / 2 - number) for number in range(count)]


def _strokes(result: Record, rows: Sequence[EffectSize]) -> Iterator[Any]:
    """The analytic nulls of measurements, as strokes."""
    from plotly import graph_objects

    words = [result.measure(row.metric, row.condition).null for row in rows]
    yield graph_objects.Scatter(
        x=[row.baseline for row in rows],
        y=[-place for place in range(len(rows))],
        mode="markers",
        name=NULL,
        marker={
            "symbol": "line-ns",
            "size": 18,
            "color": BESIDE,
            "line": {"width": 2.5, "color": BESIDE},
        },
        hovertext=[
            escaped(f"{word}: {written(row.baseline, '.3g')} {row.unit}".strip())
            for word, row in zip(words, rows, strict=True)
        ],
        hoverinfo="text",
        cliponaxis=False,
    )
