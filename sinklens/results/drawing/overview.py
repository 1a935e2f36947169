"""The overview of a diagnosis: where the sink is, what stands at position 0, what it is for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from ...core.errors import SinklensError
from ..figures import Heatmap, Lines
from ..record import Record
from ..table import Line
from .curves import line_panel
from .forests import forest_panel, rows_by_metric
from .maps import array_panel
from .panel import Panel, below_each_other, beside_each_other, fit_beside
from .static import to_svg
from .words import source_of

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

SINKS = Heatmap("sink_mass", "Attention to position 0 by layer and head", "sink mass")
NORMS = Lines(
    ("position0_norm", "other_norm"),
    "Norm of the residual stream",
    "entering layer",
    "norm (mean over prompts)",
    log=True,
    names=("position 0", "other positions"),
)
PROFILE = "sink_profile"
PICTURE = 300
"""The width of one panel of the overview as a picture."""
DONE = {
    "bos_replacement": "BOS:",
    "sink_head_ablation": "heads:",
    "position0_patching": "pos. 0:",
}
"""What is done in each experiment, before the name of a condition."""


def draw_overview(
    results: Mapping[str, Record], *, width: int | None = None, title: str | None = None
) -> Figure:
    """The overview: side by side, or below each other on a narrow page.

    Args:
        results: Results of the diagnosis by experiment.
        width: In pixels; None fits a wide page.
        title: None names the model.

    Raises:
        SinklensError: The diagnosis has no profile of sinks.
    """
    if PROFILE not in results:
        raise SinklensError(
            f"an overview shows {PROFILE}, which this diagnosis does not hold; "
            f"plot(NAME) draws one of {', '.join(results) or 'its results, of which it has none'}"
        )
    profile = results[PROFILE]
    said = f"Attention sinks of {profile.model_name()}" if title is None else title
    panels = list(overview_panels(results))
    arrange = beside_each_other if fit_beside(panels, width) else below_each_other
    return arrange(panels, said, source_of(profile), width)


def overview_pictures(results: Mapping[str, Record]) -> list[str]:
    """The panels of the overview as pictures of their own, for a page on which they can wrap.

    None without a profile of sinks.
    """
    if PROFILE not in results:
        return []
    figures = [below_each_other([panel], "", "", PICTURE) for panel in overview_panels(results)]
    return [picture for figure in figures if (picture := to_svg(figure)) is not None]


def overview_panels(results: Mapping[str, Record]) -> Iterator[Panel]:
    """The map of sinks, the norms, and effects beside their controls; without any, the inputs."""
    profile = results[PROFILE]
    yield array_panel(SINKS, profile)
    yield line_panel(NORMS, profile)
    ran = [name for name in DONE if name in results]
    effects = [lines for name in ran for lines in _costs(results[name], DONE[name])]
    if effects:
        metric = effects[0][0].row.metric
        what = "KL divergence" if metric == "kl" else metric
        yield forest_panel(profile, f"Effects of interventions: {what}", effects)
    else:
        masses = rows_by_metric(profile, ("sink_mass",))["sink_mass"]
        yield forest_panel(profile, "Attention to position 0", masses)


def _costs(result: Record, done: str) -> Iterator[list[Line]]:
    """The effects of an experiment on the loss, else on the logits, named by what was done."""
    for rows in rows_by_metric(result, ("loss|kl",)).values():
        for lines in rows:
            condition = lines[0].row.condition.removesuffix(":residual")
            named = f"{done} {condition}"
            yield [replace(line, row=replace(line.row, condition=named)) for line in lines]
