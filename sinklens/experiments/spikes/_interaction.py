"""The two-by-two table: spikes clamped, sink edges dropped, both, and what both do beyond the sum.

    interaction = effect of both - (effect of clamp_spikes + effect of drop_edge)

paired by prompt. The control of both, `combined`, makes the two controls at once: the clamp's
change in other channels, and the edge to a later key dropped. The interaction's is the same of the
three controls, read at the queries that the control of both counts. Where a spike comes in several
steps the table clamps all of them, and rows beside it each one alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ...comparisons.heads import HeadAblations
from ...comparisons.spikes import CLAMP, OTHER_CHANNELS, SpikeEdits
from ...core.labels import Head
from ...hooks.intervention import Intervention, together
from ...metrics import Metric
from ...results.estimates import Effect, Reference
from ...runner.compare import Compared, Comparison, Control
from ...runner.run import Run

DROP, BOTH, INTERACTION = "drop_edge", "both", "interaction"
CONDITIONS = (CLAMP, DROP, BOTH)
COMBINED = "combined"


class Table(NamedTuple):
    """The comparisons of a run.

    Attributes:
        conditions: By condition; the spikes of all steps are clamped together.
        steps: Where there are several steps, each of them clamped alone.
    """

    conditions: dict[str, Comparison]
    steps: list[Comparison]

    @property
    def comparisons(self) -> list[Comparison]:
        """All of them."""
        return [*self.steps, *self.conditions.values()]


def two_by_two(run: Run[Any], edits: SpikeEdits | None, heads: Sequence[Head]) -> Table:
    """The conditions that are run, with their controls.

    Args:
        run: The run.
        edits: Of the spikes; None where there are none.
        heads: Whose edge to position 0 is dropped.
    """
    table: dict[str, Comparison] = {}
    asked = set(run.conditions)
    steps: list[Comparison] = []
    if edits is not None and asked & {CLAMP, BOTH}:
        *steps, table[CLAMP] = edits.comparisons(CLAMP, [OTHER_CHANNELS])
    if asked & {DROP, BOTH}:
        table[DROP] = HeadAblations(run, heads, [], means={}, outputs={}).together(DROP)
    if BOTH in asked:
        clamp, drop = table[CLAMP], table[DROP]
        pairs = zip(_draws(clamp), _draws(drop), strict=False)  # none where one has no control
        table[BOTH] = Comparison(
            BOTH,
            [together(BOTH, *clamp.treatment, *drop.treatment)],
            (Control(COMBINED, [together(BOTH, *pair) for pair in pairs]),),
            no_control=clamp.no_control,
        )
    chosen = {condition: table[condition] for condition in run.conditions}
    return Table(chosen, steps if CLAMP in asked else [])


def compare_with_interaction(run: Run[Any], made: Table, metrics: Sequence[Metric]) -> None:
    """The rows of the table, and where all of it is there those of the interaction.

    Args:
        run: The run.
        made: The comparisons.
        metrics: What to measure.
    """
    table = made.conditions
    whole = set(table) == set(CONDITIONS)
    # The clamp's own control counts all predictions, as the clamp does; that of both those after
    # the later key.
    clamped: list[Intervention] = []
    if whole:
        pairs = zip(_draws(table[CLAMP]), _draws(table[DROP]), strict=False)
        clamped = [replace(edit, position=drop.position) for edit, drop in pairs]
    late = Compared(run.evaluate(clamped, metrics=metrics), clamped) if clamped else None
    compared = run.compare(made.comparisons, metrics)
    if not whole:
        return
    prompts = len(run.prompts)
    for axis, metric in enumerate(compared.metrics):
        clamp, drop, both = (
            compared.effect(table[name].treatment, axis).distance(prompts) for name in CONDITIONS
        )
        references = []
        if late is not None:
            dropped, beside = (
                compared.effect(_draws(table[name]), axis).distance(prompts)
                for name in (DROP, BOTH)
            )
            added = late.effect(clamped, axis).distance(prompts) + dropped
            references = [Reference(Effect(beside, added), COMBINED)]
        run.add(metric.name, INTERACTION, Effect(both, clamp + drop), *references)


def _draws(comparison: Comparison) -> Sequence[Intervention]:
    """The draws of the only control of a comparison."""
    return comparison.controls[0].interventions
