"""Maps: arrays, and rows about heads or about layers and positions, as coloured cells."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ...core.labels import head_label
from ...stats.effects import EffectSize
from ..figures import ByHead, ByPosition, Heatmap
from ..record import Array, Record
from ..table import Line
from .forests import rows_by_metric
from .panel import Panel
from .style import SCALE
from .words import axis_of, hover_of, metric_words, ticks_of

LEAST_HEADS, MOST_MAPS = 4, 4
MOST_WRITTEN = 8
SMALLEST, LARGEST, MOST_HEIGHT = 7, 26, 460
PLACE = "@"
Cells = Mapping[tuple[int, int], EffectSize]


def array_panel(figure: Heatmap, result: Record) -> Panel:
    """The coloured cells of an array, with the name of a head under the pointer."""
    array = result.arrays[figure.array]
    values = np.asarray(array)
    most = float(np.nanmax(values)) if figure.most is None else figure.most
    return _panel(
        figure.title,
        values,
        _names(array),
        (array.dims[0], array.labels(array.dims[0])),
        (array.dims[1], array.labels(array.dims[1])),
        figure.colour,
        (0.0, most),
        _form(values),
    )


def _form(values: np.ndarray) -> str:
    """How values are written: shares in percent, with the digits that the largest needs."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if low < 0 or high > 1:
        return ""
    return f".{max(0, math.ceil(-math.log10(high)) - 1)}%" if high else ".0%"


def _names(array: Array) -> list[list[str]]:
    """What each cell is: `L18H8`, or the labels of its axes."""
    rows, columns = (array.labels(dim) for dim in array.dims)
    if array.dims == ("layer", "head"):
        return [[head_label((int(y), x)) for x in range(len(columns))] for y in rows]
    first, second = (dim.replace("_", " ") for dim in array.dims)
    return [[f"{first} {y}, {second} {x}" for x in columns] for y in rows]


def head_panels(figure: ByHead, result: Record) -> Iterator[Panel]:
    """A map over layers and heads for each metric and condition with rows about heads."""
    yield from _row_panels(
        result, figure.metrics, lambda row: (row.condition, row.head), "head", LEAST_HEADS
    )


def position_panels(figure: ByPosition, result: Record) -> Iterator[Panel]:
    """A map over layers and positions for each metric and condition with rows about both."""
    yield from _row_panels(result, figure.metrics, _at_position, "position", LEAST_HEADS)


def _at_position(row: EffectSize) -> tuple[str, int | None]:
    """The condition without its position, and the position: 0 where it names none."""
    name, _, place = row.condition.partition(PLACE)
    return name, int(place or 0) if place.isdigit() or not place else None


def _row_panels(
    result: Record,
    metrics: Sequence[str],
    column_of: Callable[[EffectSize], tuple[str, int | None]],
    across: str,
    least: int,
) -> Iterator[Panel]:
    """The maps of the conditions with the largest effects."""
    for metric, rows in rows_by_metric(result, metrics).items():
        maps = cells_of(rows, column_of, least)
        if len({column for cells in maps.values() for _, column in cells}) < 2:
            continue
        sizes = {
            name: max(abs(row.effect) for row in cells.values()) for name, cells in maps.items()
        }
        chosen = sorted(sizes, key=lambda name: -sizes[name])[:MOST_MAPS]
        for name in (name for name in maps if name in chosen):
            cut = "" if len(maps) == len(chosen) else f"one of {len(maps)}, the largest are shown"
            yield _map_of_rows(maps[name], f"{metric_words(metric)}: {name}", across, cut)


def cells_of(
    rows: Sequence[list[Line]],
    column_of: Callable[[EffectSize], tuple[str, int | None]],
    least: int,
) -> dict[str, dict[tuple[int, int], EffectSize]]:
    """By condition the rows at each layer and column, where there are enough of them."""
    maps: dict[str, dict[tuple[int, int], EffectSize]] = {}
    for lines in rows:
        row = lines[0].row
        name, column = column_of(row)
        if row.layer is not None and column is not None:
            maps.setdefault(name, {})[row.layer, column] = row
    return {name: cells for name, cells in maps.items() if len(cells) >= least}


def _map_of_rows(cells: Cells, title: str, across: str, cut: str) -> Panel:
    """The effects of one condition; blank where nothing was run."""
    layers = range(min(y for y, _ in cells), max(y for y, _ in cells) + 1)
    columns = sorted({x for _, x in cells})
    if across == "head":
        columns = list(range(max(columns) + 1))
    values = np.full((len(layers), len(columns)), np.nan)
    names = [["" for _ in columns] for _ in layers]
    for (layer, column), row in cells.items():
        y, x = layer - layers[0], columns.index(column)
        values[y, x] = row.effect
        names[y][x] = hover_of(row, row.effect)
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    rows = list(cells.values())
    return _panel(
        title,
        values,
        names,
        ("layer", [str(layer) for layer in layers]),
        (across, [str(column) for column in columns]),
        axis_of(rows[0]),
        (min(0.0, low), max(high, 0.0)),
        ticks_of(rows, [1.0])["tickformat"],
        cut,
    )


def _panel(
    title: str,
    values: np.ndarray,
    names: list[list[str]],
    up: tuple[str, list[str]],
    across: tuple[str, list[str]],
    colour: str,
    ends: tuple[float, float],
    form: str,
    cut: str = "",
) -> Panel:
    """Cells with their names under the pointer, and their values in them where there is room."""
    from plotly import graph_objects

    rows, columns = values.shape
    height = int(np.clip(MOST_HEIGHT / rows, SMALLEST, LARGEST))
    written = columns <= MOST_WRITTEN and height > 14
    number = f"%{{z:{form}}}" if form else "%{z:.2g}"
    cells = graph_objects.Heatmap(
        z=values,
        colorscale=SCALE,
        zmin=ends[0],
        zmax=ends[1],
        customdata=names,
        hovertemplate=f"%{{customdata}}<br>{colour} {number}<extra></extra>",
        texttemplate=number if written else None,
        hoverongaps=False,
        xgap=1,
        ygap=1,
        colorbar={
            "title": {"text": colour, "side": "right"},
            "tickformat": form,
            "thickness": 12,
        },
    )
    return Panel(
        title,
        [cells],
        x={"title": {"text": across[0].replace("_", " ")}, "showgrid": False, **_ticks(across[1])},
        y={"title": {"text": up[0].replace("_", " ")}, "showgrid": False, **_ticks(up[1])},
        height=max(60, rows * height),
        cut=cut,
    )


def _ticks(labels: list[str]) -> dict[str, Any]:
    """At most a dozen labels at their cells."""
    step = max(1, -(-len(labels) // 12))
    places = list(range(0, len(labels), step))
    return {"tickvals": places, "ticktext": [labels[place] for place in places]}
