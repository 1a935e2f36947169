"""Colours, fonts and titles of figures.

Colours are Okabe and Ito's, as far as they stand out on white and on black; marks and dashes
differ as well, so that figures can be read in grey. A template that the user has chosen as Plotly's
default is kept.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b8639a", "#8c6d1f", "#3d9ad1")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "star", "pentagon")
DASHES = ("solid", "dash", "dashdot", "longdash", "longdashdot", "dot")
BESIDE = "#7f7f7f"
"""Controls, nulls and lines of reference, on white and on black."""
SCALE = "Viridis"
"""A colour scale whose lightness grows with the value."""
SERIES, REFERENCES = len(COLOURS), 4
REFERENCE_SYMBOLS = ("circle-open", "diamond-open", "square-open", "triangle-up-open")
REFERENCE_LINES: tuple[dict[str, Any], ...] = (
    {"dash": "solid", "width": 7},
    {"dash": "dash", "width": 2},
    {"dash": "dot", "width": 2.5},
    {"dash": "longdashdot", "width": 1.5},
)
"""So that a curve that lies under another one is seen beside it."""
UNCHANGED = "plotly"
"""The template that Plotly starts with."""
LEGEND_LINE, LEGEND_MARK, TOP = 29, 48, 20
FONT, LETTER, NARROWEST = 12, 6.6, 390
WIDTHS = {
    **dict.fromkeys("ijl'|", 2.7),
    **dict.fromkeys("ft .,:;/I", 3.4),
    **dict.fromkeys("r-()", 4.0),
    **dict.fromkeys("mwMW%", 10.6),
    **dict.fromkeys("ABCDEGHKNOPQRSUVXY", 8.7),
}
"""Of letters that are not as wide as most, in Arial at `FONT` pixels."""


REMOVED = ("zoom", "pan", "select", "lasso", "zoomin", "zoomout", "autoscale")
"""Buttons that a figure can do without, since they would cover its title."""


def template() -> Any:
    """Dark on white; None where the user has chosen another default than Plotly's."""
    from plotly import graph_objects, io

    if io.templates.default != UNCHANGED:
        return None
    axis = {
        "showline": True,
        "linecolor": "#8a8a8a",
        "ticks": "outside",
        "tickcolor": "#8a8a8a",
        "showgrid": True,
        "gridcolor": "#ececec",
        "zeroline": False,
        "title": {"standoff": 8},
    }
    return graph_objects.layout.Template(
        layout={
            "font": {"color": "#2a2a2a", "size": FONT, "family": "Open Sans, Arial, sans-serif"},
            "paper_bgcolor": "white",
            "plot_bgcolor": "white",
            "colorway": list(COLOURS),
            "xaxis": axis,
            "yaxis": axis,
            "hoverlabel": {"align": "left"},
        }
    )


def wrapped(text: str, width: int | None, size: int = FONT) -> list[str]:
    """Lines of text that fit a figure; of a figure without a width, the narrowest page."""
    room = (width or NARROWEST) - 30
    return textwrap.wrap(text, max(20, int(room / (LETTER * size / FONT)))) or [""]


def text_width(text: str) -> float:
    """About how many pixels a text takes at the size of labels."""
    return sum(WIDTHS.get(letter, 6.7) for letter in text)


def titled(title: str, source: str, width: int | None) -> tuple[dict[str, Any], int]:
    """A title with what it is of below it, and how many pixels the two take."""
    if not title + source:
        return {}, TOP
    lines, small = wrapped(title, width, 15), wrapped(source, width, 12)
    text = f"<b>{'<br>'.join(map(escaped, lines))}</b>"
    text += f"<br><span style='font-size:12px'>{'<br>'.join(map(escaped, small))}</span>"
    place = {"x": 0, "xanchor": "left", "xref": "container", "pad": {"l": 12, "t": 40}}
    above = {"y": 1, "yanchor": "top", "yref": "container", "font": {"size": 15}}
    return {"text": text, **place, **above}, TOP + 34 + 20 * len(lines) + 17 * len(small)


def escaped(text: str) -> str:
    """Text in which Plotly finds no tags."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def legend(names: Sequence[str], room: int) -> tuple[dict[str, Any], int]:
    """A legend below the figure, and how many pixels it takes where that is so many pixels wide."""
    if not names:
        return {}, 4
    lines, taken = 1, 0.0
    for name in names:
        entry = LEGEND_MARK + text_width(name)
        if taken and taken + entry > room:
            lines, taken = lines + 1, 0.0
        taken += entry
    place = {"orientation": "h", "yanchor": "top", "x": 0, "xref": "container"}
    return place, 8 + LEGEND_LINE * lines


def coloured(drawn: Figure) -> Figure:
    """The figure with our template, where the user has not chosen one."""
    own = template()
    return drawn if own is None else drawn.update_layout(template=own)
