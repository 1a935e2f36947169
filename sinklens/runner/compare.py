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
from ..metrics import Metric, needs_models
from ..results.estimates import Effect, Measure, Place, Reference, rows_of
from ..results.record import Array
from ..stats.effects import Row
from ..stats.models import OfModels, contrast_of

ContrastKey = tuple[str, str, int | None, int | None, str]
"""Metric, condition, layer, head and control of a contrast."""
LATER_QUERIES = (
    "A difference from a control at a later position is read at the queries after that position, "
    "for the treatment too, whose own row counts all queries; it is not the difference of the two "
    "effects shown."
)
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
        besides: Readings that the experiment needs for rows of its own.
        no_control: Why there is none, where that is not for lack of a later position; empty where
            a note of the experiment says it.
    """

    condition: str
    treatment: Sequence[Intervention]
    controls: tuple[Control, ...] = ()
    no_control: str = NO_POSITION
    besides: Sequence[Intervention] = ()

    @property
    def made(self) -> list[Control]:
        """The controls that could be made."""
        return [control for control in self.controls if control.interventions]

    @property
    def place(self) -> tuple[str, int | None, int | None]:
        """Condition, layer and head."""
        first = self.treatment[0]
        return self.condition, first.layer, first.head

    @property
    def reads_later(self) -> bool:
        """Whether a control counts other predictions than the treatment."""
        own = {one.last_uncounted for one in self.treatment}
        return any(
            other.last_uncounted not in own for one in self.made for other in one.interventions
        )

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
        yield from self.besides


def in_order(comparisons: Sequence[Comparison]) -> list[Intervention]:
    """The interventions of all comparisons, those that several share once."""
    return list({i.reading: i for one in comparisons for i in one.interventions()}.values())


def contrast_key(metric: Metric, comparison: Comparison, control: Control) -> ContrastKey:
    """What names a contrast."""
    return metric.name, *comparison.place, control.name


def measure_of(metric: Metric) -> Measure:
    """What kind of number a metric is, beside the clean run."""
    return Measure(metric.unit, "the clean run", signed=metric.signed)


class Compared:
    """What the engine measured of comparisons, by metric and intervention."""

    def __init__(self, evaluation: Evaluation, comparisons: Sequence[Comparison]) -> None:
        """Take what the engine measured of the comparisons' interventions, `in_order`."""
        self._evaluation, self.comparisons = evaluation, list(comparisons)
        self._number = {one.reading: i for i, one in enumerate(in_order(comparisons))}
        self.metrics = evaluation.metrics

    def effect(self, draws: Sequence[Intervention], axis: int) -> Effect:
        """Each draw beside the clean run, `[draw, prompt]` in float64."""
        chosen, found = [self._number[one.reading] for one in draws], self._evaluation
        values, baselines = (
            np.asarray(part[chosen, axis].double()) for part in (found.values, found.baselines)
        )
        return Effect(values, baselines, len({one.reading for one in draws}))

    def rows(
        self,
        seed: int,
        nulls: Mapping[ContrastKey, np.ndarray] | None = None,
    ) -> Iterator[Row]:
        """Treatment, controls and contrasts of every metric and comparison.

        Args:
            seed: Seed of the resamples of the tests.
            nulls: The contrasts of models with random weights, of those that are judged by them.
        """
        for axis, metric in enumerate(self.metrics):
            for one in self.comparisons:
                first = one.treatment[0]
                treated = self.effect(one.treatment, axis)
                yield from rows_of(
                    metric.name,
                    measure_of(metric),
                    one.condition,
                    treated,
                    *(self._reference(one, c, axis, nulls or {}) for c in one.made),
                    prompts=treated.values.shape[-1],
                    seed=seed,
                    place=Place(first.layer, first.head),
                )

    def _reference(
        self,
        comparison: Comparison,
        control: Control,
        axis: int,
        nulls: Mapping[ContrastKey, np.ndarray],
    ) -> Reference:
        """A control, with what it is compared with."""
        own, others = zip(*comparison.pairs(control), strict=True)
        return Reference(
            self.effect(others, axis),
            control.name,
            own=self.effect(own, axis),
            models=self._models(axis, comparison, control, nulls),
        )

    def _models(
        self,
        axis: int,
        comparison: Comparison,
        control: Control,
        nulls: Mapping[ContrastKey, np.ndarray],
    ) -> OfModels | None:
        """The contrasts that judge one of a metric that needs them: none where there are none."""
        metric = self.metrics[axis]
        if not needs_models(metric):
            return None
        return nulls.get(contrast_key(metric, comparison, control), np.zeros(0))

    def contrasts(self) -> dict[ContrastKey, float]:
        """Each contrast as one number, as it is compared with that of other models."""
        found: dict[ContrastKey, float] = {}
        for axis, metric in enumerate(self.metrics):
            for one in self.comparisons:
                for control in one.made:
                    own, others = (
                        self.effect(side, axis).by_draw()
                        for side in zip(*one.pairs(control), strict=True)
                    )
                    key = contrast_key(metric, one, control)
                    found[key] = contrast_of(own, others, ratio=not metric.signed)
        return found

    def control_draws(self) -> Array | None:
        """Each control draw's effect averaged over prompts; NaN where there are fewer draws."""
        controls = [(one, control) for one in self.comparisons for control in one.made]
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
