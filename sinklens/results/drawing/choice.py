"""Which figure a result is drawn as: what it declares, or a kind and metric that are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ...core.errors import UsageError, unknown_name
from ..figures import (
    ByHead,
    ByLayer,
    ByPosition,
    ByStep,
    Declared,
    Effects,
    Forest,
    Heatmap,
    Interaction,
    Lines,
    Plotly,
    Rows,
    Stack,
)
from ..record import Record
from .curves import layer_panels, line_panel, matching, step_panels
from .forests import forest_panels
from .interaction import interaction_panel
from .maps import array_panel, head_panels, position_panels
from .panel import Panel, below_each_other
from .words import source_of

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

BY_KIND: dict[str, Callable[[tuple[str, ...]], Rows]] = {
    "heads": ByHead,
    "positions": ByPosition,
    "layers": ByLayer,
    "steps": ByStep,
    "forest": Forest,
}
"""By the name that a user asks for, in the order in which the first that applies is taken."""


def draw(
    figure: Declared,
    result: Record,
    *,
    kind: str | None = None,
    metric: str | None = None,
    width: int | None = None,
    title: str | None = None,
) -> Figure:
    """The figure of a result.

    Args:
        figure: What the result declares.
        result: Its rows and arrays.
        kind: `forest`, `layers`, `steps`, `heads` or `positions`; None draws what is declared, or
            for a metric that is asked for what its rows are about.
        metric: The metric of the rows; None takes all.
        width: In pixels; None fits the page.
        title: None says what is shown and of which model.

    Raises:
        UsageError: There is no such kind or metric, or the rows cannot be drawn as that.
    """
    if kind is not None or metric is not None:
        figure = chosen(result, kind, metric)
    if isinstance(figure, Plotly):
        return _stored(figure, width, title)
    if not any(panels_of(figure, result)):
        figure = Effects()
    panels = list(panels_of(figure, result))
    said = title if title is not None else heading(figure, result, panels)
    if said.endswith(panels[0].title):
        panels[0] = replace(panels[0], title="")
    return below_each_other(panels, said, source_of(result), width)


def heading(figure: Declared, result: Record, panels: Sequence[Panel]) -> str:
    """What a figure shows: as declared, else what its only panel shows."""
    declared = getattr(figure, "title", "")
    only = f"{result.experiment}: {panels[0].title}" if len(panels) == 1 else ""
    return declared or only or f"{result.experiment}: effects beside controls and nulls"


def chosen(result: Record, kind: str | None, metric: str | None) -> Rows:
    """The rows that are asked for.

    Raises:
        UsageError: There is no such kind or metric, or the rows cannot be drawn as that.
    """
    metrics = dict.fromkeys(row.metric for row in result.effects if row.against is None)
    if metric is not None and metric not in metrics:
        raise unknown_name(f"metric of {result.experiment}", metric, metrics)
    asked = () if metric is None else (metric,)
    fitting = kinds_of(result, asked)
    if kind is None:
        return BY_KIND[fitting[0]](asked)
    if kind not in BY_KIND:
        raise unknown_name("kind of figure", kind, BY_KIND)
    if kind not in fitting:
        about = "" if metric is None else f" of {metric}"
        raise UsageError(
            f"the rows{about} of {result.experiment} cannot be drawn as {kind!r}; they can be as "
            f"{' or '.join(map(repr, fitting))}"
        )
    return BY_KIND[kind](asked)


def kinds_of(result: Record, metrics: tuple[str, ...] = ()) -> list[str]:
    """The kinds as which the rows of these metrics can be drawn, the most telling first."""
    return [name for name, make in BY_KIND.items() if any(panels_of(make(metrics), result))]


def panels_of(figure: Declared, result: Record) -> Iterator[Panel]:
    """The panels of a figure, as far as its rows and arrays are there."""
    if isinstance(figure, Stack):
        for part in figure.parts:
            yield from panels_of(part, result)
    elif isinstance(figure, Effects):
        kinds = kinds_of(result, figure.metrics)
        if kinds:
            yield from panels_of(BY_KIND[kinds[0]](figure.metrics), result)
    elif isinstance(figure, Heatmap):
        if figure.array in result.arrays:
            yield array_panel(figure, result)
    elif isinstance(figure, Lines):
        if all(any(matching(name, result)) for name in figure.arrays):
            yield line_panel(figure, result)
    elif isinstance(figure, Interaction):
        panel = interaction_panel(figure, result)
        if panel is not None:
            yield panel
    elif isinstance(figure, ByHead):
        yield from head_panels(figure, result)
    elif isinstance(figure, ByPosition):
        yield from position_panels(figure, result)
    elif isinstance(figure, ByLayer):
        yield from layer_panels(figure, result)
    elif isinstance(figure, ByStep):
        yield from step_panels(figure, result)
    elif isinstance(figure, Forest):
        yield from forest_panels(figure, result)


def _stored(figure: Plotly, width: int | None, title: str | None) -> Figure:
    """A figure of the experiment's own."""
    from .shown import ShownFigure

    drawn = ShownFigure(figure.content)
    if width is not None:
        drawn.update_layout(width=width)
    return drawn if title is None else drawn.update_layout(title=title)
