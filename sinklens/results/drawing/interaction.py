"""Where two metrics are without an intervention and under each of several."""

from __future__ import annotations

import math
from typing import Any

from ...stats.effects import EffectSize
from ..figures import Interaction
from ..record import Record
from .forests import error_bars
from .panel import Panel
from .style import COLOURS, SERIES, SYMBOLS
from .words import axis_words, in_lines, log_ticks

CLEAN = "clean"


def interaction_panel(figure: Interaction, result: Record) -> Panel | None:
    """The map of two metrics; None where no condition has both."""
    rows = {(e.metric, e.condition): e for e in result.effects if e.kind == "treatment"}
    across, up = figure.across, figure.up
    ran = [c for c in figure.conditions if (across, c) in rows and (up, c) in rows]
    if not ran:
        return None
    first = rows[across, ran[0]], rows[up, ran[0]]
    places = {CLEAN: (first[0].baseline, first[1].baseline)}
    places |= {c: (rows[across, c].value, rows[up, c].value) for c in ran}
    middle = math.sqrt(math.prod(end(x for x, _ in places.values()) for end in (min, max)))
    traces = [
        _point(
            name,
            place,
            {a: rows.get((m, name)) for a, m in (("x", across), ("y", up))},
            number,
            "right" if place[0] < middle else "left",
        )
        for number, (name, place) in enumerate(places.items())
    ]
    return Panel(
        "",
        traces,
        x={
            "title": {"text": in_lines(axis_words(first[0]))},
            "type": "log",
            **log_ticks([x for x, _ in places.values()]),
        },
        y={
            "title": {"text": in_lines(axis_words(first[1]))},
            "tickformat": ".0%" if first[1].unit.startswith("share") else "",
            "rangemode": "tozero",
        },
        height=320,
    )


def _point(
    name: str,
    place: tuple[float, float],
    rows: dict[str, EffectSize | None],
    number: int,
    side: str,
) -> Any:
    from plotly import graph_objects

    colour = COLOURS[number % SERIES]
    bars = {
        f"error_{axis}": {**error_bars([row]), "color": colour} for axis, row in rows.items() if row
    }
    return graph_objects.Scatter(
        x=[place[0]],
        y=[place[1]],
        name=name,
        mode="markers+text",
        text=[name],
        textposition=f"top {side}",
        showlegend=False,
        cliponaxis=False,
        marker={"size": 12, "color": colour, "symbol": SYMBOLS[number % SERIES]},
        hovertemplate=f"{name}: %{{x:.3g}}, %{{y:.3g}}<extra></extra>",
        **bars,
    )
