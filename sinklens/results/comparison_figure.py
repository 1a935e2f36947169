"""The figure of a comparison: differences of effects with their intervals, a panel a metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..stats.effects import EffectSize
from .drawing import error_bars
from .wording import place_of

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# Okabe and Ito's colours, which colour-blind people can tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
MOST_ROWS = 40


def draw_differences(title: str, points: Sequence[tuple[str, EffectSize]]) -> Figure:
    """Differences with their 95 % intervals; the largest where there are too many to be read.

    Args:
        title: What is shown.
        points: Of each difference the label of its result, and the row.
    """
    from plotly.subplots import make_subplots

    every = list(dict.fromkeys(_label(row) for _, row in points))
    chosen = set(_largest(points))
    labels = [label for label in every if label in chosen]
    metrics = list(dict.fromkeys(row.metric for _, row in points if _label(row) in chosen))
    results = list(dict.fromkeys(result for result, _ in points))
    drawn = make_subplots(rows=1, cols=len(metrics), subplot_titles=metrics, shared_yaxes=True)
    for column, metric in enumerate(metrics, start=1):
        for number, result in enumerate(results):
            rows = [
                row
                for name, row in points
                if (name, row.metric) == (result, metric) and _label(row) in chosen
            ]
            if rows:
                shift = 0.5 * ((number + 0.5) / len(results) - 0.5)
                heights = [-labels.index(_label(row)) - shift for row in rows]
                drawn.add_trace(_trace(result, rows, heights, number, column == 1), 1, column)
                drawn.update_xaxes(title_text=rows[0].unit, row=1, col=column)
        drawn.add_vline(x=0, line_width=1, line_color="#888", row=1, col=column)
    drawn.update_yaxes(
        tickvals=[-place for place in range(len(labels))], ticktext=labels, zeroline=False
    )
    cut = f" (the largest {len(labels)} of {len(every)} rows)" if len(labels) < len(every) else ""
    drawn.update_layout(
        title=f"{title}{cut}",
        height=240 + 24 * len(labels) * max(1, len(results) // 2),
        legend={"orientation": "h", "yref": "container", "y": 0.01, "yanchor": "bottom"},
        margin={"b": 110},
        template="simple_white",
    )
    return drawn


def _largest(points: Sequence[tuple[str, EffectSize]]) -> list[str]:
    """The labels of the rows whose difference is largest beside others of the same metric."""
    most: dict[str, float] = {}
    for _, row in points:
        most[row.metric] = max(most.get(row.metric, 0.0), abs(row.effect))
    sizes: dict[str, float] = {}
    for _, row in points:
        size = abs(row.effect) / most[row.metric] if most[row.metric] else 0.0
        sizes[_label(row)] = max(sizes.get(_label(row), 0.0), size)
    return sorted(sizes, key=lambda label: -sizes[label])[:MOST_ROWS]


def _trace(
    result: str, rows: Sequence[EffectSize], heights: Sequence[float], number: int, in_legend: bool
) -> object:
    """The differences of one result in one metric."""
    from plotly import graph_objects

    return graph_objects.Scatter(
        x=[row.effect for row in rows],
        y=heights,
        error_x=error_bars(rows),
        mode="markers",
        name=result,
        legendgroup=result,
        showlegend=in_legend,
        marker={"color": COLOURS[number % len(COLOURS)], "size": 8},
    )


def _label(row: EffectSize) -> str:
    """What names a row within its metric."""
    queries = f"queries {row.queries}" if row.queries else ""
    against = f"against {row.against}" if row.against else ""
    return " ".join(part for part in (row.condition, place_of(row), queries, against) if part)
