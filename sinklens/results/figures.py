"""Figures as data: declared by the experiment, stored in the result, drawn from there.

A declaration names arrays and rows of the result; `drawing` never imports an experiment. The
default is a forest of effects with their intervals. A custom figure is a function of the result,
called once, when the result is assembled; what it returns is stored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..core.errors import SinklensError
from .record import Record

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True)
class Forest:
    """Effects with their 95 % confidence intervals, one panel per metric."""


@dataclass(frozen=True)
class Heatmap:
    """A two-dimensional array of shares, its first axis upwards.

    Attributes:
        array: Its name.
        title: What is shown; the model's name is added.
        colour: What the colours stand for.
        most: Where the colours end; None takes the largest value.
    """

    array: str
    title: str
    colour: str
    most: float | None = 1.0


@dataclass(frozen=True)
class Lines:
    """Arrays as curves over their first axis; a second axis gives several curves.

    Attributes:
        arrays: Names, or patterns such as `largest_column*`; what stands behind a colon names a
            null, which is dotted.
        title: What is shown; the model's name is added.
        x: What the first axis is.
        y: What the values are.
        log: Whether the values have a logarithmic axis.
        from_zero: Whether their axis starts at 0.
    """

    arrays: tuple[str, ...]
    title: str
    x: str
    y: str
    log: bool = False
    from_zero: bool = False


@dataclass(frozen=True)
class Interaction:
    """Where two metrics are without an intervention and under each condition, with intervals.

    Attributes:
        across: The metric on the horizontal axis, which is logarithmic.
        up: The other one.
        conditions: In the order of drawing.
    """

    across: str
    up: str
    conditions: tuple[str, ...]


@dataclass(frozen=True)
class Panels:
    """Two figures side by side."""

    left: Heatmap
    right: Lines


@dataclass(frozen=True)
class Plotly:
    """A plotly figure as data.

    Attributes:
        content: Its JSON.
    """

    content: dict[str, Any]


Declared = Forest | Heatmap | Lines | Interaction | Panels | Plotly
Figured = Declared | Callable[[Record], "Declared | Figure"]
KINDS: dict[str, Any] = {k.__name__: k for k in (Forest, Heatmap, Lines, Interaction, Plotly)}


def figure_of(result: Record, figure: Figured) -> Declared:
    """The declaration for a result, where it is a function of the result its value.

    Raises:
        SinklensError: The function returned something else.
    """
    shown = figure(result) if callable(figure) else figure
    if isinstance(shown, Declared):
        return shown
    if not hasattr(shown, "to_plotly_json"):
        kinds = ", ".join([*KINDS, "Panels"])
        raise SinklensError(
            f"the figure of {result.experiment} is a function that returned a "
            f"{type(shown).__name__}; it has to return one of {kinds}, or a plotly figure"
        )
    return Plotly(json.loads(shown.to_json()))


def to_json(figure: Declared) -> dict[str, Any]:
    """A declaration as `result.json` holds it."""
    if isinstance(figure, Panels):
        return {"kind": "Panels", "left": to_json(figure.left), "right": to_json(figure.right)}
    return {"kind": type(figure).__name__, **asdict(figure)}


def from_json(content: Mapping[str, Any]) -> Declared:
    """What `to_json` made."""
    fields = {name: value for name, value in content.items() if name != "kind"}
    if content["kind"] == "Panels":
        return Panels(*(from_json(fields[side]) for side in ("left", "right")))  # type: ignore[arg-type]
    lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
    made: Declared = KINDS[content["kind"]](**{**fields, **lists})
    return made
