"""Building blocks for figures (plotly), and the figure of a result.

An experiment may bring a figure of its own (`@experiment(plot=...)`); the default is a forest of
effects with their intervals.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .hooks.heads import head_label

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from .effects import EffectSize
    from .results import Array, ExperimentResult

FIGURES: dict[str, Callable[[ExperimentResult], Figure]] = {}
COLOURS = {
    "treatment": "#0b5394",
    "control": "#999999",
    "contrast": "#b45f06",
    "measurement": "#0b5394",
    "null": "#999999",
}


def figure(result: ExperimentResult) -> Figure:
    """The figure of a result: its experiment's own, else a forest."""
    # A result that was loaded from disk may come before its experiment was ever imported.
    import_module("sinklens.experiments.registry").all_experiments()
    return FIGURES.get(result.experiment, forest)(result)


def forest(result: ExperimentResult) -> Figure:
    """Effects with their 95 % intervals, one panel a metric."""
    from plotly.subplots import make_subplots

    metrics = list(dict.fromkeys(effect.metric for effect in result.effects))
    rows = list(dict.fromkeys(_label(effect) for effect in result.effects))
    drawn = make_subplots(rows=1, cols=len(metrics), subplot_titles=metrics, shared_yaxes=True)
    named: set[str] = set()
    for column, metric in enumerate(metrics, start=1):
        for kind, colour in COLOURS.items():
            effects = [e for e in result.effects if e.metric == metric and e.kind == kind]
            if effects:
                drawn.add_trace(_points(effects, kind, colour, kind not in named), 1, column)
                named.add(kind)
                drawn.update_xaxes(title_text=effects[0].unit, row=1, col=column)
        drawn.add_vline(x=0, line_width=1, line_color="#444", row=1, col=column)
    drawn.update_yaxes(categoryorder="array", categoryarray=rows[::-1])
    drawn.update_layout(
        title=f"{result.experiment}: effects with 95 % intervals, {_source(result)}",
        template="simple_white",
        height=200 + 34 * len(rows),
        legend={
            "orientation": "h",
            "y": 1,
            "yanchor": "bottom",
            "yref": "container",
            "x": 1,
            "xanchor": "right",
        },
    )
    return drawn


def heatmap(array: Array, title: str, colour_title: str) -> Figure:
    """A two-dimensional array, its first axis upwards."""
    from plotly import graph_objects

    drawn = graph_objects.Figure(
        graph_objects.Heatmap(
            z=array.values.numpy(), colorscale="Blues", zmin=0, colorbar={"title": colour_title}
        )
    )
    drawn.update_layout(title=title, template="simple_white")
    drawn.update_xaxes(title_text=array.dims[1], dtick=1 if array.values.shape[1] <= 32 else None)
    drawn.update_yaxes(title_text=array.dims[0])
    return drawn


def curves(array: Array, effects_title: str, value_title: str, names: list[str]) -> Figure:
    """Rows of a two-dimensional array as lines over its second axis."""
    from plotly import graph_objects

    drawn = graph_objects.Figure(
        [
            graph_objects.Scatter(y=row.tolist(), name=name)
            for row, name in zip(array.values, names, strict=True)
        ]
    )
    drawn.update_layout(title=effects_title, template="simple_white")
    drawn.update_xaxes(title_text=array.dims[1])
    drawn.update_yaxes(title_text=value_title)
    return drawn


def _points(effects: list[EffectSize], kind: str, colour: str, in_legend: bool) -> Any:
    """The effects of one kind as points with error bars."""
    from plotly import graph_objects

    return graph_objects.Scatter(
        x=[e.effect for e in effects],
        y=[_label(e) for e in effects],
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
        marker={
            "color": colour,
            "size": 8,
            "symbol": "diamond" if kind == "contrast" else "circle",
        },
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
