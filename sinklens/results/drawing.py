"""Drawing with plotly what a result declares as its figure (`figures`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from ..stats.effects import EffectSize
from .figures import Declared, Forest, Heatmap, Interaction, Lines, Panels, Plotly
from .record import Array, Record
from .wording import place_of

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

COLOURS = {
    "treatment": "#0b5394",
    "control": "#999999",
    "contrast": "#b45f06",
    "measurement": "#0b5394",
    "null": "#999999",
}
OFFSETS = {"treatment": 0.22, "contrast": -0.22}  # so that kinds do not hide each other


def draw(figure: Declared, result: Record) -> Figure:
    """The figure of a result; a forest where what it shows is not there."""
    if any(not list(_matching(name, result)) for name in _arrays_of(figure)):
        figure = Forest()
    if isinstance(figure, Heatmap):
        return _heatmap(figure, result)
    if isinstance(figure, Lines):
        return _lines(figure, result)
    if isinstance(figure, Interaction):
        return _interaction(figure, result)
    if isinstance(figure, Plotly):
        return _stored(figure)
    return _panels(figure, result) if isinstance(figure, Panels) else _forest(result)


def _arrays_of(figure: Declared) -> tuple[str, ...]:
    """The arrays that a figure shows."""
    if isinstance(figure, Panels):
        return (*_arrays_of(figure.left), *_arrays_of(figure.right))
    if isinstance(figure, Heatmap):
        return (figure.array,)
    return figure.arrays if isinstance(figure, Lines) else ()


def _matching(pattern: str, result: Record) -> Iterator[tuple[str, Array]]:
    """The arrays of a name or pattern."""
    return ((n, array) for n, array in result.arrays.items() if fnmatchcase(n, pattern))


def _forest(result: Record) -> Figure:
    from plotly.subplots import make_subplots

    metrics = list(dict.fromkeys(effect.metric for effect in result.effects))
    labels = list(dict.fromkeys(_label(effect) for effect in result.effects))
    heights = {label: -number for number, label in enumerate(labels)}
    drawn = make_subplots(rows=1, cols=len(metrics), subplot_titles=metrics, shared_yaxes=True)
    named: set[str] = set()
    for column, metric in enumerate(metrics, start=1):
        for kind in COLOURS:
            effects = [e for e in result.effects if e.metric == metric and e.kind == kind]
            if effects:
                drawn.add_trace(_points(effects, kind, heights, kind not in named), 1, column)
                named.add(kind)
                drawn.update_xaxes(title_text=effects[0].unit, row=1, col=column)
        drawn.add_vline(x=0, line_width=1, line_color="#444", row=1, col=column)
    drawn.update_yaxes(tickvals=list(heights.values()), ticktext=labels, zeroline=False)
    drawn.update_layout(
        title=f"{result.experiment}: effects with 95 % intervals, {_source(result)}",
        template="simple_white",
        height=240 + 46 * len(labels),
        margin={"b": 110},
        legend={"orientation": "h", "yref": "container", "y": 0.01, "yanchor": "bottom"},
    )
    return drawn


def _heatmap(figure: Heatmap, result: Record) -> Figure:
    from plotly import graph_objects

    array = result.arrays[figure.array]
    drawn = graph_objects.Figure(_cells(figure, array))
    rows, columns = array.values.shape
    drawn.update_layout(
        title=f"{figure.title}, {_source(result)}",
        template="simple_white",
        height=200 + 24 * rows,
        width=260 + 48 * columns,
    )
    drawn.update_xaxes(title_text=array.dims[1], dtick=1 if columns <= 32 else None)
    drawn.update_yaxes(title_text=array.dims[0], dtick=1 if rows <= 32 else None)
    return drawn


def _cells(figure: Heatmap, array: Array, **colour_bar: Any) -> Any:
    """The coloured cells of an array."""
    from plotly import graph_objects

    most = float(array.values.max()) if figure.most is None else figure.most
    return graph_objects.Heatmap(
        z=array.values.numpy(),
        colorscale="Blues",
        zmin=0,
        zmax=most,
        colorbar={"title": figure.colour, **colour_bar},
    )


def _lines(figure: Lines, result: Record) -> Figure:
    from plotly import graph_objects

    drawn = graph_objects.Figure(list(_curves(figure, result)))
    drawn.update_layout(
        title=f"{figure.title}, {_source(result)}", template="simple_white", height=440, width=900
    )
    drawn.update_xaxes(title_text=figure.x, nticks=24, type="category")
    drawn.update_yaxes(
        title_text=figure.y,
        type="log" if figure.log else "linear",
        exponentformat="power",
        rangemode="tozero" if figure.from_zero else "normal",
    )
    return drawn


def _curves(figure: Lines, result: Record) -> Iterator[Any]:
    """The curves of all arrays that a figure names."""
    from plotly import graph_objects

    for pattern in figure.arrays:
        for name, array in _matching(pattern, result):
            _, _, null = name.partition(":")
            places = array.labels(array.dims[0])
            columns = array.values[:, None] if array.values.ndim == 1 else array.values
            several = array.values.ndim > 1
            for number, values in enumerate(columns.T):
                label = array.labels(array.dims[1])[number] if several else null or name
                yield graph_objects.Scatter(
                    x=places,
                    y=values.tolist(),
                    name=label.replace("_", " "),
                    mode="lines+markers",
                    line={"dash": "dot"} if null else {},
                )


def _panels(figure: Panels, result: Record) -> Figure:
    from plotly.subplots import make_subplots

    left, right = figure.left, figure.right
    drawn = make_subplots(
        rows=1,
        cols=2,
        column_widths=[0.55, 0.45],
        subplot_titles=[left.title, right.title],
        horizontal_spacing=0.16,
    )
    array = result.arrays[left.array]
    drawn.add_trace(_cells(left, array, x=0.47), 1, 1)
    for curve in _curves(right, result):
        drawn.add_trace(curve, 1, 2)
    drawn.update_xaxes(title_text=array.dims[1], row=1, col=1)
    drawn.update_yaxes(title_text=array.dims[0], row=1, col=1)
    drawn.update_xaxes(title_text=right.x, row=1, col=2)
    drawn.update_yaxes(
        title_text=right.y, rangemode="tozero" if right.from_zero else "normal", row=1, col=2
    )
    title = f"{result.experiment.replace('_', ' ').capitalize()}, {_source(result)}"
    drawn.update_layout(title=title, template="simple_white", height=460, width=1100)
    return drawn


def _interaction(figure: Interaction, result: Record) -> Figure:
    from plotly import graph_objects

    rows = {(e.metric, e.condition): e for e in result.effects if e.kind == "treatment"}
    drawn = graph_objects.Figure()
    across, up = figure.across, figure.up
    ran = [c for c in figure.conditions if (across, c) in rows and (up, c) in rows]
    places = {c: (rows[across, c].value, rows[up, c].value) for c in ran}
    if ran:
        clean = rows[across, ran[0]].baseline, rows[up, ran[0]].baseline
        places = {"clean": clean, **places}
    for name, (x, y) in places.items():
        mine = {axis: rows.get((metric, name)) for axis, metric in (("x", across), ("y", up))}
        drawn.add_trace(
            graph_objects.Scatter(
                x=[x],
                y=[y],
                name=name,
                mode="markers+text",
                text=[name],
                textposition="top center",
                marker={"size": 11},
                showlegend=False,
                **{f"error_{axis}": error_bars([row]) for axis, row in mine.items() if row},
            )
        )
    drawn.update_layout(
        title=f"{result.experiment}, {_source(result)}",
        template="simple_white",
        height=480,
        width=640,
    )
    drawn.update_xaxes(title_text=across, type="log")
    drawn.update_yaxes(title_text=up)
    return drawn


def _stored(figure: Plotly) -> Figure:
    from plotly import graph_objects

    return graph_objects.Figure(figure.content)


def error_bars(effects: Sequence[EffectSize]) -> dict[str, Any]:
    """The intervals of effects as plotly's error bars; no bar where there is no interval."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [0 if e.ci_high is None else e.ci_high - e.effect for e in effects],
        "arrayminus": [0 if e.ci_low is None else e.effect - e.ci_low for e in effects],
    }


def _points(effects: list[EffectSize], kind: str, heights: dict[str, int], in_legend: bool) -> Any:
    """The effects of one kind as points with error bars; each kind at its own height."""
    from plotly import graph_objects

    return graph_objects.Scatter(
        x=[e.effect for e in effects],
        y=[heights[_label(e)] + OFFSETS.get(kind, 0) for e in effects],
        error_x=error_bars(effects),
        mode="markers",
        name=kind,
        legendgroup=kind,
        showlegend=in_legend,
        marker={"color": COLOURS[kind], "size": 8},
    )


def _label(effect: EffectSize) -> str:
    return f"{effect.condition} {place_of(effect)}".strip()


def _source(result: Record) -> str:
    bos = "with" if result.provenance["bos"] else "without"
    return f"{result.provenance['model']['name']} {bos} BOS"
