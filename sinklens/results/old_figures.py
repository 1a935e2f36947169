"""Building blocks for figures (plotly), and the figure of a result.

An experiment may bring a figure of its own (`@experiment(plot=...)`); the default is a forest of
effects with their intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from ..core.labels import head_label

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from ..stats.effects import EffectSize
    from .record import Array
    from .result import ExperimentResult

FIGURES: dict[str, Callable[[ExperimentResult], Figure]] = {}
COLOURS = {
    "treatment": "#0b5394",
    "control": "#999999",
    "contrast": "#b45f06",
    "measurement": "#0b5394",
    "null": "#999999",
}
OFFSETS = {"treatment": 0.22, "contrast": -0.22}  # so that kinds do not hide each other


def figure(result: ExperimentResult) -> Figure:
    """The figure of a result: its experiment's own, else a forest."""
    # A result that was loaded from disk may come before its experiment was ever imported.
    import_module("sinklens.runner.registry").all_experiments()
    return FIGURES.get(result.experiment, forest)(result)


def forest(result: ExperimentResult) -> Figure:
    """Effects with their 95 % intervals, one panel a metric."""
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


def heatmap(array: Array, title: str, colour_title: str) -> Figure:
    """A two-dimensional array of shares, its first axis upwards; the colours run from 0 to 1."""
    from plotly import graph_objects

    drawn = graph_objects.Figure(
        graph_objects.Heatmap(
            z=array.values.numpy(),
            colorscale="Blues",
            zmin=0,
            zmax=1,
            colorbar={"title": colour_title},
        )
    )
    rows, columns = array.values.shape
    drawn.update_layout(
        title=title, template="simple_white", height=200 + 24 * rows, width=260 + 48 * columns
    )
    drawn.update_xaxes(title_text=array.dims[1], dtick=1 if columns <= 32 else None)
    drawn.update_yaxes(title_text=array.dims[0], dtick=1 if rows <= 32 else None)
    return drawn


def lines(
    curves: Mapping[str, Float[Tensor, " place"]],
    places: Sequence[str],
    *,
    title: str,
    x_title: str,
    y_title: str,
    log: bool = False,
) -> Figure:
    """Curves over named places, such as the stages of a model."""
    from plotly import graph_objects

    drawn = graph_objects.Figure(
        [
            graph_objects.Scatter(
                x=list(places), y=values.tolist(), name=name, mode="lines+markers"
            )
            for name, values in curves.items()
        ]
    )
    drawn.update_layout(title=title, template="simple_white", height=440, width=900)
    drawn.update_xaxes(title_text=x_title, nticks=24, type="category")
    drawn.update_yaxes(title_text=y_title, type="log" if log else "linear", exponentformat="power")
    return drawn


def interaction(
    result: ExperimentResult, across: str, up: str, conditions: Sequence[str]
) -> Figure:
    """Where two metrics are without an edit and under each condition, with 95 % intervals."""
    from plotly import graph_objects

    rows = {(e.metric, e.condition): e for e in result.effects if e.kind == "treatment"}
    drawn = graph_objects.Figure()
    ran = [c for c in conditions if (across, c) in rows and (up, c) in rows]
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
                **{f"error_{axis}": _error(row) for axis, row in mine.items() if row},
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


def _error(effect: EffectSize) -> dict[str, Any]:
    """The interval of an effect as an error bar around its value."""
    if effect.ci_low is None or effect.ci_high is None:
        return {}
    return {
        "type": "data",
        "symmetric": False,
        "array": [effect.ci_high - effect.effect],
        "arrayminus": [effect.effect - effect.ci_low],
    }


def _points(effects: list[EffectSize], kind: str, heights: dict[str, int], in_legend: bool) -> Any:
    """The effects of one kind as points with error bars; each kind at its own height."""
    from plotly import graph_objects

    return graph_objects.Scatter(
        x=[e.effect for e in effects],
        y=[heights[_label(e)] + OFFSETS.get(kind, 0) for e in effects],
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [0 if e.ci_high is None else e.ci_high - e.effect for e in effects],
            "arrayminus": [0 if e.ci_low is None else e.effect - e.ci_low for e in effects],
        },
        mode="markers",
        name=kind,
        legendgroup=kind,
        showlegend=in_legend,
        marker={"color": COLOURS[kind], "size": 8},
    )


def _label(effect: EffectSize) -> str:
    if effect.layer is None:
        return effect.condition
    if effect.head is None:
        return f"{effect.condition} L{effect.layer}"
    return f"{effect.condition} {head_label((effect.layer, effect.head))}"


def _source(result: ExperimentResult) -> str:
    bos = "with" if result.provenance["bos"] else "without"
    return f"{result.provenance['model']['name']} {bos} BOS"
