"""Comparisons: an intervention and its matched controls, and the resulting rows.

The effect of the treatment is compared with that of each control, paired by prompt; draws are
averaged within each prompt first. Where a control counts fewer predictions than the treatment (an
edit at position p changes nothing before p), the contrast reads the treatment at the control's, and
the treatment's own row keeps its own: early queries, among whose few keys one weighs most, would
else count for the treatment alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

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

    def pairs(self, control: Control) -> list[tuple[Intervention, Intervention]]:
        """What is compared with a control, at the predictions that the control counts.

        The treatment and the control of one draw each, where there are as many draws of both or
        only one of either; else every treatment with every control.
        """
        own, others = list(control.own or self.treatment), list(control.interventions)
        if 1 in (len(own), len(others)):
            draws = max(len(own), len(others))
            own, others = own * (draws // len(own)), others * (draws // len(others))
        paired = zip(own, others, strict=True) if len(own) == len(others) else product(own, others)
        return [(one.read_after(other.last_uncounted), other) for one, other in paired]

    def interventions(self) -> Iterator[Intervention]:
        """All of them, with the treatments as contrasts read them."""
        yield from self.treatment
        for control in self.made:
            for pair in self.pairs(control):
                yield from pair


def in_order(comparisons: Sequence[Comparison]) -> list[Intervention]:
    """The interventions of all comparisons, those that several share once."""
    return list({i.reading: i for one in comparisons for i in one.interventions()}.values())


def measure_of(metric: Metric) -> Measure:
    """What kind of number a metric is, beside the clean run."""
    return Measure(metric.unit, "the clean run", signed=metric.signed)


class Compared:
    """What the engine measured of comparisons, by metric and intervention."""

    def __init__(self, evaluation: Evaluation, order: Sequence[Intervention]) -> None:
        """Take the values of the interventions in the order in which the engine had them."""
        self._evaluation = evaluation
        self._number = {one.reading: i for i, one in enumerate(order)}
        self.metrics = evaluation.metrics

    def effect(self, draws: Sequence[Intervention], axis: int) -> Effect:
        """Each draw beside the clean run, `[draw, prompt]` in float64."""
        chosen, found = [self._number[one.reading] for one in draws], self._evaluation
        values, baselines = (
            np.asarray(part[chosen, axis].double()) for part in (found.values, found.baselines)
        )
        return Effect(values, baselines, len({one.reading for one in draws}))

    def rows(self, comparisons: Sequence[Comparison], seed: int) -> Iterator[Row]:
        """Treatment, controls and contrasts of every metric and comparison."""
        for axis, metric in enumerate(self.metrics):
            for one in comparisons:
                first = one.treatment[0]
                treated = self.effect(one.treatment, axis)
                yield from rows_of(
                    metric.name,
                    measure_of(metric),
                    one.condition,
                    treated,
                    *(self._reference(one, control, axis) for control in one.made),
                    prompts=treated.values.shape[-1],
                    seed=seed,
                    place=Place(first.layer, first.head),
                )

    def _reference(self, comparison: Comparison, control: Control, axis: int) -> Reference:
        """A control, with what it is compared with."""
        own, others = zip(*comparison.pairs(control), strict=True)
        return Reference(self.effect(others, axis), control.name, own=self.effect(own, axis))

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
                means[:, place, draw] = effects[self._number[intervention.reading]]
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
