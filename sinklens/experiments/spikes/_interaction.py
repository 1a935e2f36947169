"""The two-by-two table: spikes clamped, sink edges dropped, both, and what both do beyond the sum.

    interaction = effect of both - (effect of clamp_spikes + effect of drop_edge)

paired by prompt. The control of both, `combined`, makes the two controls at once: the clamp's
change in other channels, and the edge to a later key dropped. The interaction's is the same of the
three controls, read at the queries that the control of both counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

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


def two_by_two(run: Run[Any], edits: SpikeEdits, heads: Sequence[Head]) -> dict[str, Comparison]:
    """The conditions that are run, with their controls.

    Args:
        run: The run.
        edits: Of the spikes.
        heads: Whose edge to position 0 is dropped.
    """
    table: dict[str, Comparison] = {}
    asked = set(run.conditions)
    if asked & {CLAMP, BOTH}:
        table[CLAMP] = edits.comparison(CLAMP, [OTHER_CHANNELS])
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
    return {condition: table[condition] for condition in run.conditions}


def compare_with_interaction(
    run: Run[Any], table: Mapping[str, Comparison], metrics: Sequence[Metric]
) -> None:
    """The rows of the table, and where all of it is there those of the interaction.

    Args:
        run: The run.
        table: The conditions.
        metrics: What to measure.
    """
    whole = set(table) == set(CONDITIONS)
    # The clamp's own control counts all predictions, as the clamp does; that of both those after
    # the later key.
    clamped: list[Intervention] = []
    if whole:
        pairs = zip(_draws(table[CLAMP]), _draws(table[DROP]), strict=False)
        clamped = [replace(edit, position=drop.position) for edit, drop in pairs]
    late = Compared(run.evaluate(clamped, metrics=metrics), clamped) if clamped else None
    compared = run.compare(list(table.values()), metrics)
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
