"""The two-by-two table: spikes clamped, sink edges dropped, both, and what both do beyond the sum.

    interaction = effect of both - (effect of clamp_spikes + effect of drop_edge)

paired by prompt. The control of both, `combined`, makes the two controls at once: the clamp's
change in other channels, and the edge to a later key dropped. The interaction's is the same of the
three controls; that contrast is read at the queries that the control of both counts. It is tested
where its metric has a sign and is not about position 0 (`metrics.needs_models`): the others are no
sums, so that models with random weights have an interaction as well. A metric that is read by layer
counts the layers that clamp and dropped edge both reach: before them the interaction is 0 by
construction. Where a spike comes in several steps the table clamps all of them, and rows beside it
each one alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ...comparisons.heads import HeadAblations
from ...comparisons.spikes import CLAMP, OTHER_CHANNELS, SpikeEdits
from ...core.labels import Head
from ...hooks.intervention import Intervention, together
from ...metrics import Metric, needs_models
from ...results.estimates import Effect, Reference
from ...runner.compare import UNREACHED, Comparison, Control
from ...runner.run import Run

DROP, BOTH, INTERACTION = "drop_edge", "both", "interaction"
CONDITIONS = (CLAMP, DROP, BOTH)
COMBINED = "combined"
SHARES = ("sink_mass", "sink_rate")
NEARLY_ALL = 0.9  # of a share, beyond which two effects leave an interaction no room below 0


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
        table[DROP] = HeadAblations(run, heads, []).edges(DROP)
    if BOTH in asked:
        clamp, drop = table[CLAMP], table[DROP]
        pairs = zip(_draws(clamp), _draws(drop), strict=False)  # none where one has no control
        table[BOTH] = Comparison(
            BOTH,
            [together(BOTH, *clamp.treatment, *drop.treatment)],
            (Control(COMBINED, [together(BOTH, *pair) for pair in pairs]),),
            no_control=clamp.no_control,
        )
    if set(table) == set(CONDITIONS) == asked:
        late = [
            edit.read_after(later.last_uncounted)
            for clamp, later in _pairs(table)
            for edit in (*table[CLAMP].treatment, clamp)
        ]
        table[CLAMP] = replace(table[CLAMP], besides=late)
    chosen = {condition: table[condition] for condition in run.conditions}
    return Table(chosen, steps if CLAMP in asked else [])


def compare_with_interaction(
    run: Run[Any], make: Callable[[Run[Any]], Table], metrics: Sequence[Metric]
) -> None:
    """The rows of the table, and where all of it is there those of the interaction.

    Args:
        run: The run.
        make: Makes the table for a run.
        metrics: What to measure.
    """
    compared = run.compare(lambda run: make(run).comparisons, metrics)
    asked, floors = len(run.conditions), []
    table = dict(zip(run.conditions, compared.comparisons[-asked:], strict=True)) if asked else {}
    if set(table) != set(CONDITIONS):
        return
    for axis, metric in enumerate(compared.metrics):
        alone = compared.beside([_treated(table)], axis)
        if alone is None:
            run.left_out(f"{metric.name} of {INTERACTION}", UNREACHED)
            continue
        references = []
        pairs = compared.beside(_at_the_same_queries(table), axis)
        if pairs is not None:
            references = [
                Reference(
                    _interaction(pairs.effects[3:]),
                    COMBINED,
                    own=_interaction(pairs.effects[:3]),
                    models=np.zeros(0) if needs_models(metric) else None,
                    layers=pairs.layers,
                )
            ]
        row = _interaction(alone.effects)
        run.add(metric.name, INTERACTION, row, *references, layers=alone.layers)
        summed, clean = float(np.mean(row.null)), float(np.mean(alone.effects[0].null))
        if metric.name in SHARES and summed < -NEARLY_ALL * clean:
            floors.append(f"{summed:.3g} of the clean run's {clean:.3g} ({metric.name})")
        if metric.name == "loss":
            guess = float(np.log(run.model.cfg.d_vocab_out))
            losses = [float(one.by_draw().mean()) for one in alone.effects]
            for note in ceiling_notes(table[CLAMP].condition, guess, clean, losses):
                run.note(note)
    if floors:
        run.note(
            f"The effects of {table[CLAMP].condition} and {DROP} alone sum to "
            f"{' and '.join(floors)}. A share cannot fall below 0, so that such an interaction "
            "cannot be much below 0 either, and one above 0 may be a floor effect alone."
        )


def ceiling_notes(name: str, guess: float, clean: float, effects: Sequence[float]) -> Iterator[str]:
    """Where a loss is, or two of them would add up to be, above that of a guess.

    A ceiling leaves the loss of both at that of the larger one; it cannot make it smaller.

    Args:
        name: What clamps.
        guess: The loss of a uniform guess, nats.
        clean: The loss of the clean run.
        effects: On the loss, of the clamp, of the dropped edge and of both.
    """
    clamp, drop, both = (clean + effect for effect in effects)
    if clamp > guess:
        yield (
            f"{name} alone leaves a loss of {clamp:.3g} nats, above that of a uniform guess "
            f"({guess:.3g})."
        )
    if clamp + drop - clean > guess and both >= max(clamp, drop):
        yield (
            f"With the effects of {name} and {DROP} added, the loss would be "
            f"{clamp + drop - clean:.3g} nats, above that of a uniform guess ({guess:.3g}): the "
            "interaction of the loss may be a ceiling effect alone."
        )


def _interaction(effects: Sequence[Effect]) -> Effect:
    """The effect of both beside the sum of the effects of the clamp and of the dropped edge."""
    clamp, drop, both = (effect.by_draw() for effect in effects)
    return Effect(both, clamp + drop)


def _treated(table: Mapping[str, Comparison]) -> tuple[Intervention, ...]:
    """The clamp, the dropped edge, and both."""
    return tuple(table[name].treatment[0] for name in CONDITIONS)


def _pairs(table: Mapping[str, Comparison]) -> list[tuple[Intervention, Intervention]]:
    """By draw the controls of the clamp and of the dropped edge."""
    return list(zip(_draws(table[CLAMP]), _draws(table[DROP]), strict=False))


def _at_the_same_queries(table: Mapping[str, Comparison]) -> list[tuple[Intervention, ...]]:
    """By draw the clamp, the dropped edge and both, then the control of each."""
    groups = []
    for (clamp, drop), both in zip(_pairs(table), _draws(table[BOTH]), strict=True):
        own = (edit.read_after(drop.last_uncounted) for edit in _treated(table))
        groups.append((*own, clamp.read_after(drop.last_uncounted), drop, both))
    return groups


def _draws(comparison: Comparison) -> Sequence[Intervention]:
    """The draws of the only control of a comparison."""
    return comparison.controls[0].interventions
