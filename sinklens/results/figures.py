"""Figures as data: declared by the experiment, stored in the result, drawn from there.

A declaration names arrays and rows of the result; `drawing` never imports an experiment. The
default is `Effects`: rows by head as a map, rows by layer as curves, others as a forest. A custom
figure is a function of the result, called once, when the result is assembled; what it returns is
stored.
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
    """Rows with their 95 % confidence intervals beside controls and nulls, a panel a metric.

    Attributes:
        metrics: Which, in this order, as far as there are rows; empty takes all.
        title: What is shown; the model's name is added.
        queries: Rows about these queries only, such as `1:8`; empty takes all.
    """

    metrics: tuple[str, ...] = ()
    title: str = ""
    queries: str = ""


@dataclass(frozen=True)
class ByLayer:
    """Rows about one layer as curves, with intervals as bands and controls beside them.

    Attributes:
        metrics: Which, in this order, as far as there are such rows; empty takes all.
        title: What is shown; the model's name is added.
    """

    metrics: tuple[str, ...] = ()
    title: str = ""


@dataclass(frozen=True)
class ByStep:
    """Rows about one training step (`step256`) as a curve, beside its null and control.

    Attributes:
        metrics: Which, in this order, as far as there are such rows; empty takes all.
        title: What is shown; the model's name is added.
    """

    metrics: tuple[str, ...] = ()
    title: str = ""


@dataclass(frozen=True)
class ByHead:
    """Rows about one head as a map over layers and heads, one for each condition.

    Attributes:
        metrics: Which, in this order, as far as there are such rows; empty takes all.
        title: What is shown; the model's name is added.
    """

    metrics: tuple[str, ...] = ()
    title: str = ""


@dataclass(frozen=True)
class ByPosition:
    """Rows about one layer and position (`zero:residual@5`) as a map, one for each condition.

    Attributes:
        metrics: Which, in this order, as far as there are such rows; empty takes all.
        title: What is shown; the model's name is added.
    """

    metrics: tuple[str, ...] = ()
    title: str = ""


@dataclass(frozen=True)
class Effects:
    """Rows as a map or as curves where they are about heads, positions or layers; else a forest.

    Attributes:
        metrics: Which, in this order, as far as there are rows; empty takes all.
        title: What is shown; the model's name is added.
    """

    metrics: tuple[str, ...] = ()
    title: str = ""


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
        names: The curves of each array in words; empty takes the names of arrays and labels.
        curves: The most curves that are drawn of each array, the first ones.
    """

    arrays: tuple[str, ...]
    title: str
    x: str
    y: str
    log: bool = False
    from_zero: bool = False
    names: tuple[str, ...] = ()
    curves: int = 8


@dataclass(frozen=True)
class Interaction:
    """Where two metrics are without an intervention and under each condition, with intervals.

    Attributes:
        across: The metric on the horizontal axis, which is logarithmic.
        up: The other one.
        conditions: In the order of drawing.
        title: What is shown; the model's name is added.
    """

    across: str
    up: str
    conditions: tuple[str, ...]
    title: str = ""


@dataclass(frozen=True)
class Stack:
    """Several figures below each other.

    Attributes:
        parts: The figures; one whose rows or arrays are missing is left out.
        title: What they show; the model's name is added.
    """

    parts: tuple[Declared, ...]
    title: str = ""


@dataclass(frozen=True)
class Plotly:
    """A plotly figure as data.

    Attributes:
        content: Its JSON.
    """

    content: dict[str, Any]


Rows = Forest | ByLayer | ByStep | ByHead | ByPosition | Effects
Declared = Rows | Heatmap | Lines | Interaction | Stack | Plotly
Figured = Declared | Callable[[Record], "Declared | Figure"]
KINDS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        Effects,
        Forest,
        ByLayer,
        ByStep,
        ByHead,
        ByPosition,
        Heatmap,
        Lines,
        Interaction,
        Stack,
        Plotly,
    )
}


def figure_of(result: Record, figure: Figured) -> Declared:
    """The declaration for a result, where it is a function of the result its value.

    Raises:
        SinklensError: The function returned something else.
    """
    shown = figure(result) if callable(figure) else figure
    if isinstance(shown, Declared):
        return shown
    if not hasattr(shown, "to_plotly_json"):
        raise SinklensError(
            f"the figure of {result.experiment} is a function that returned a "
            f"{type(shown).__name__}; it has to return one of {', '.join(KINDS)}, or a plotly "
            "figure"
        )
    return Plotly(json.loads(shown.to_json()))


def to_json(figure: Declared) -> dict[str, Any]:
    """A declaration as `result.json` holds it."""
    if isinstance(figure, Stack):
        parts = [to_json(part) for part in figure.parts]
        return {"kind": "Stack", "parts": parts, "title": figure.title}
    fields = {n: list(v) if isinstance(v, tuple) else v for n, v in asdict(figure).items()}
    return {"kind": type(figure).__name__, **fields}


def from_json(content: Mapping[str, Any]) -> Declared:
    """What `to_json` made; `Panels`, which two figures side by side were, gives a `Stack`."""
    fields = {name: value for name, value in content.items() if name != "kind"}
    if content["kind"] == "Panels":
        return Stack(tuple(from_json(fields[side]) for side in ("left", "right")))
    if content["kind"] == "Stack":
        return Stack(tuple(from_json(part) for part in fields["parts"]), fields["title"])
    lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
    made: Declared = KINDS[content["kind"]](**{**fields, **lists})
    return made
