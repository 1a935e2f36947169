"""Comparisons: an intervention and its matched controls, and the resulting rows.

The effect of the treatment is compared with that of each control, paired by prompt; draws are
averaged within each prompt first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..engine.evaluate import Evaluation
from ..hooks.intervention import Intervention
from ..metrics import Metric
from ..results.estimates import Effect, Measure, Place, Reference, rows_of
from ..results.record import Array
from ..stats.effects import Row

NO_POSITION = "no later position is left whose predictions could count"


@dataclass(frozen=True)
class Control:
    """A matched control of a treatment.

    Attributes:
        name: Its name in tables, such as `later_position`.
        interventions: One per draw.
        own: What the contrast compares it with, if not the whole treatment (fewer control heads
            than treated ones).
    """

    name: str
    interventions: Sequence[Intervention]
    own: Sequence[Intervention] = ()


@dataclass(frozen=True)
class Comparison:
    """A condition: the treatment and its matched controls.

    Attributes:
        condition: The name.
        treatment: One intervention per draw.
        controls: Its controls; those without an intervention could not be made.
        no_control: Why there is none, where that is not for lack of a later position; empty where
            a note of the experiment says it.
    """

    condition: str
    treatment: Sequence[Intervention]
    controls: tuple[Control, ...] = ()
    no_control: str = NO_POSITION

    @property
    def made(self) -> list[Control]:
        """The controls that could be made."""
        return [control for control in self.controls if control.interventions]

    def interventions(self) -> Iterator[Intervention]:
        """All of them."""
        yield from self.treatment
        for control in self.made:
            yield from (*control.interventions, *control.own)


def in_order(comparisons: Sequence[Comparison]) -> list[Intervention]:
    """The interventions of all comparisons, those that several share once."""
    return list({id(i): i for one in comparisons for i in one.interventions()}.values())


def measure_of(metric: Metric) -> Measure:
    """What kind of number a metric is, beside the clean run."""
    return Measure(metric.unit, "the clean run", signed=metric.signed)


class Compared:
    """What the engine measured of comparisons, by metric and intervention."""

    def __init__(self, evaluation: Evaluation, order: Sequence[Intervention]) -> None:
        """Take the values of the interventions in the order in which the engine had them."""
        self._evaluation = evaluation
        self._number = {id(intervention): i for i, intervention in enumerate(order)}
        self.metrics = evaluation.metrics

    def effect(self, interventions: Sequence[Intervention], axis: int) -> Effect:
        """The mean over draws within each prompt, beside the clean run, in float64."""
        chosen = [self._number[id(intervention)] for intervention in interventions]
        found = self._evaluation
        values, baselines = (
            np.asarray(part[chosen, axis].double().mean(0))
            for part in (found.values, found.baselines)
        )
        return Effect(values, baselines, len(chosen))

    def rows(self, comparisons: Sequence[Comparison], seed: int) -> Iterator[Row]:
        """Treatment, controls and contrasts of every metric and comparison."""
        for axis, metric in enumerate(self.metrics):
            for one in comparisons:
                first = one.treatment[0]
                treated = self.effect(one.treatment, axis)
                references = [
                    Reference(
                        self.effect(control.interventions, axis),
                        control.name,
                        own=self.effect(control.own, axis) if control.own else None,
                    )
                    for control in one.made
                ]
                yield from rows_of(
                    metric.name,
                    measure_of(metric),
                    one.condition,
                    treated,
                    *references,
                    prompts=len(treated.values),
                    seed=seed,
                    place=Place(first.layer, first.head),
                )

    def control_draws(self, comparisons: Sequence[Comparison]) -> Array | None:
        """Each control draw's effect averaged over prompts; NaN where there are fewer draws."""
        controls = [(one, control) for one in comparisons for control in one.made]
        if not controls:
            return None
        most = max(len(control.interventions) for _, control in controls)
        means = torch.full((len(self.metrics), len(controls), most), torch.nan)
        effects = (self._evaluation.values - self._evaluation.baselines).mean(-1)
        for place, (_, control) in enumerate(controls):
            for draw, intervention in enumerate(control.interventions):
                means[:, place, draw] = effects[self._number[id(intervention)]]
        names = [
            " ".join(filter(None, (one.condition, _layer(one.treatment[0]), control.name)))
            for one, control in controls
        ]
        coords: Mapping[str, Sequence[str]] = {
            "metric": [metric.name for metric in self.metrics],
            "control": names,
        }
        return Array(means, ("metric", "control", "draw"), coords)


def without_control(comparisons: Sequence[Comparison]) -> list[str]:
    """A sentence for each reason why conditions have no control."""
    bare: dict[str, dict[str, None]] = {}
    for one in comparisons:
        if not one.made and one.no_control:
            bare.setdefault(one.no_control, {})[one.condition] = None
    return [f"No control for {', '.join(named)}: {reason}." for reason, named in bare.items()]


def _layer(intervention: Intervention) -> str:
    return "" if intervention.layer is None else f"L{intervention.layer}"
