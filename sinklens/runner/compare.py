"""Comparisons: an intervention and its matched controls, and the resulting rows.

The effect of the treatment is compared with that of each control, paired by prompt; draws are
averaged within each prompt first. Where a control counts fewer predictions than the treatment (an
edit at position p changes nothing before p), the contrast reads the treatment at the control's, and
the treatment's own row keeps its own: early queries, among whose few keys one weighs most, would
else count for the treatment alone. A metric that is read by layer counts the layers that the
intervention can reach; what is compared is read over those that both can reach.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
import torch

from ..core.labels import row_label
from ..engine.evaluate import Evaluation
from ..engine.layers import is_by_layer
from ..hooks.intervention import Intervention
from ..metrics import Metric, needs_models
from ..results.estimates import Effect, Measure, Place, Reference, rows_of
from ..results.record import Array
from ..stats.effects import STUDENT_T, Row
from ..stats.models import OfModels, contrast_of

ContrastKey = tuple[str, str, int | None, int | None, str]
"""Metric, condition, layer, head and control of a contrast."""
UNREACHED = "the interventions reach no layer that is read"
NO_POSITION = "no later position is left whose predictions could count"


@dataclass(frozen=True)
class Control:
    """A matched control of a treatment.

    Attributes:
        name: Its name in tables, such as `later_position`.
        interventions: One per draw.
    """

    name: str
    interventions: Sequence[Intervention]


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

    def pairs(self, control: Control) -> list[tuple[Intervention, Intervention]]:
        """What is compared with a control, at the predictions that the control counts.

        The treatment and the control of one draw each, where there are as many draws of both or
        only one of either; else every treatment with every control.
        """
        own, others = list(self.treatment), list(control.interventions)
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
    return Measure(
        metric.unit,
        "the clean run",
        signed=metric.signed,
        lowest=metric.lowest,
        highest=metric.highest,
    )


class Beside(NamedTuple):
    """Interventions beside each other, read over the same layers.

    Attributes:
        effects: Of each of a group, by draw.
        layers: The layers that are averaged, in words; None where they are all or there is none.
    """

    effects: list[Effect]
    layers: str | None


class Compared:
    """What the engine measured of comparisons, by metric and intervention."""

    def __init__(self, evaluation: Evaluation, comparisons: Sequence[Comparison]) -> None:
        """Take what the engine measured of the comparisons' interventions, `in_order`."""
        self._evaluation, self.comparisons = evaluation, list(comparisons)
        self._number = {one.reading: i for i, one in enumerate(in_order(comparisons))}
        self.metrics = evaluation.metrics

    def beside(self, groups: Sequence[tuple[Intervention, ...]], axis: int) -> Beside | None:
        """The effects of interventions beside each other, over the layers that all of them reach.

        Args:
            groups: By draw, the interventions; those of a draw that share no layer are left out.
            axis: The number of the metric.

        Returns:
            None where no draw is left.
        """
        if len({tuple(one.reading for one in each) for each in groups}) == 1:
            groups = groups[:1]  # the same draw again and again is one
        layered = self._evaluation.by_layer[axis]
        firsts = [max(layered.first[self._number[one.reading]] for one in each) for each in groups]
        kept = [
            (each, first)
            for each, first in zip(groups, firsts, strict=True)
            if layered.is_left(first)
        ]
        if not kept:
            return None
        firsts = [first for _, first in kept]
        effects = []
        for draws in zip(*(each for each, _ in kept), strict=True):
            values, baselines = layered.over([self._number[one.reading] for one in draws], firsts)
            different = len({one.reading for one in draws})
            effects.append(Effect(values.numpy(), baselines.numpy(), different))
        return Beside(effects, layered.named(firsts))

    def rows(
        self,
        seed: int,
        nulls: Mapping[ContrastKey, np.ndarray] | None = None,
        method: str = STUDENT_T,
    ) -> Iterator[Row]:
        """Treatment, controls and contrasts of every metric and comparison that can change it.

        Args:
            seed: Seed of the resamples of the tests.
            nulls: The contrasts of models with random weights, of those that are judged by them.
            method: How intervals are made, a key of `stats.effects.INTERVALS`.
        """
        for axis, metric in enumerate(self.metrics):
            for one in self.comparisons:
                treated = self._treated(one, axis)
                if treated is None:
                    continue
                references = (self._reference(one, c, axis, nulls or {}) for c in one.made)
                _, layer, head = one.place
                yield from rows_of(
                    metric.name,
                    measure_of(metric),
                    one.condition,
                    treated.effects[0],
                    *(reference for reference in references if reference is not None),
                    prompts=treated.effects[0].values.shape[-1],
                    seed=seed,
                    place=Place(layer, head, layers=treated.layers),
                    method=method,
                )

    def _treated(self, comparison: Comparison, axis: int) -> Beside | None:
        """A treatment, over the layers that it reaches."""
        return self.beside([(one,) for one in comparison.treatment], axis)

    def _reference(
        self,
        comparison: Comparison,
        control: Control,
        axis: int,
        nulls: Mapping[ContrastKey, np.ndarray],
    ) -> Reference | None:
        """A control, with what it is compared with; None where they share no layer."""
        pair = self.beside(comparison.pairs(control), axis)
        if pair is None:
            return None
        own, other = pair.effects
        return Reference(
            other,
            control.name,
            own=own,
            models=self._models(axis, comparison, control, nulls),
            layers=pair.layers,
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
                    pair = self.beside(one.pairs(control), axis)
                    if pair is not None:
                        own, other = (effect.by_draw() for effect in pair.effects)
                        key = contrast_key(metric, one, control)
                        found[key] = contrast_of(own, other, ratio=not metric.signed)
        return found

    def unreached(self) -> dict[str, str]:
        """Rows and contrasts that are left out since no layer is reached, with the reason."""
        out: dict[str, list[str]] = {}
        for axis, metric in enumerate(self.metrics):
            labels = out.setdefault(metric.name, [])
            for one in self.comparisons:
                if self._treated(one, axis) is None:
                    labels.append(row_label(*one.place))
                    continue
                for control in one.made:
                    if self.beside(one.pairs(control), axis) is None:
                        labels.append(f"{row_label(*one.place)} against {control.name}")
        return {
            f"{metric} of {', '.join(which)}": UNREACHED for metric, which in out.items() if which
        }

    def arrays(self) -> dict[str, Array]:
        """Each metric that is read by layer, in each of them, mean over prompts and draws."""
        runs: dict[str, Sequence[Intervention]] = {}
        for one in self.comparisons:
            label = row_label(*one.place)
            runs[label] = one.treatment
            runs |= {f"{label} {control.name}": control.interventions for control in one.made}
        arrays = {}
        for metric, layered in zip(self.metrics, self._evaluation.by_layer, strict=True):
            if not (runs and is_by_layer(metric)):
                continue
            means = [layered.baselines[0].mean(-1)]
            for interventions in runs.values():
                numbers = [self._number[one.reading] for one in interventions]
                means.append(layered.values[numbers].mean((0, -1)))
            coords = {"run": ["clean", *runs], **layered.coords}
            arrays[f"{metric.name}_by_layer"] = Array(torch.stack(means), ("run", "layer"), coords)
        return arrays

    def control_draws(self) -> Array | None:
        """Each control draw's effect over prompts and the layers that it reaches.

        NaN where there are fewer draws, and where it reaches none.
        """
        controls = [(one, control) for one in self.comparisons for control in one.made]
        if not controls:
            return None
        most = max(len(control.interventions) for _, control in controls)
        means = torch.full((len(self.metrics), len(controls), most), torch.nan)
        effects = (self._evaluation.values - self._evaluation.baselines).mean(-1)
        for place, (_, control) in enumerate(controls):
            for draw, intervention in enumerate(control.interventions):
                means[:, place, draw] = effects[self._number[intervention.reading]]
        names = [f"{row_label(*one.place)} {control.name}" for one, control in controls]
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
