"""The figure of a pooled effect: units sorted, each with its interval, the pooled one below."""

from __future__ import annotations

from typing import Any, Literal

import pandas as pd

from ..results.drawing.panel import Panel, below_each_other
from ..results.drawing.style import COLOURS
from ..results.drawing.words import in_two_lines
from ..stats.pooled import PooledEffect

ROW = 22


def draw_pooled(
    name: str,
    measure: str,
    units: pd.DataFrame,
    pooled: PooledEffect | None,
    width: int | None = None,
) -> Any:
    """Effects by unit, and the pooled effect below a line.

    Args:
        name: What was pooled.
        measure: The unit of the numbers.
        units: A line for each: `label`, `effect`, `ci_low`, `ci_high`.
        pooled: The random-effects mean, where there is one.
        width: In pixels; None fits the page.
    """
    labels = [in_two_lines(str(label), "") for label in units["label"]]
    heights = [-float(place) for place in range(len(units))]
    traces = [
        points("each", units["effect"], units["ci_low"], units["ci_high"], heights, 0, "circle")
    ]
    last = -len(units) - 0.5
    if pooled is not None:
        labels.append("pooled")
        heights.append(last)
        ends = ([pooled.estimate], [pooled.ci_low], [pooled.ci_high])
        traces.append(points("pooled, random effects", *ends, [last], 1, "diamond"))
    unit = f" ({measure})" if measure else ""
    panel = Panel(
        "",
        traces,
        x={"title": {"text": f"effect{unit}"}, "nticks": 6},
        y={
            "tickvals": heights,
            "ticktext": labels,
            "range": [last - 0.6, 0.6],
            "showgrid": False,
        },
        height=max(80, ROW * (len(units) + 2)),
        zero=0.0,
    )
    return below_each_other([panel], name, "95 % intervals", width)


def points(
    name: str,
    at: Any,
    low: Any,
    high: Any,
    places: list[float],
    number: int,
    symbol: str,
    along: Literal["x", "y"] = "x",
) -> Any:
    """Points with their intervals.

    Args:
        name: In the legend.
        at: The values.
        low: Lower ends of their intervals.
        high: Upper ends.
        places: Where they stand on the other axis.
        number: Of their colour.
        symbol: Their mark.
        along: The axis of values.
    """
    from plotly import graph_objects

    at, low, high = list(at), list(low), list(high)
    bars = {
        "type": "data",
        "symmetric": False,
        "array": [top - middle for top, middle in zip(high, at, strict=True)],
        "arrayminus": [middle - bottom for bottom, middle in zip(low, at, strict=True)],
        "color": COLOURS[number],
        "width": 3,
        "thickness": 1.5,
    }
    return graph_objects.Scatter(
        **{along: at, "y" if along == "x" else "x": places, f"error_{along}": bars},
        mode="markers",
        name=name,
        marker={"size": 9, "symbol": symbol, "color": COLOURS[number]},
        hovertext=[
            f"{middle:.4g} [{bottom:.4g}, {top:.4g}]"
            for middle, bottom, top in zip(at, low, high, strict=True)
        ],
        hoverinfo="text",
        cliponaxis=False,
    )
