"""Metrics by layer, and their averages over the layers that an intervention can reach.

A layer below the first hook is that of the clean run, and would only dilute the average. Where no
layer is reached there is no value (NaN), rather than an effect of 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

import torch
from jaxtyping import Float
from torch import Tensor

from ..hooks.intervention import Intervention
from ..hooks.reach import named_layers, reach_of
from ..metrics import Metric, ProbeMetric


@dataclass(frozen=True)
class ByLayer:
    """A metric by layer; one that is not read by layer has a single column, which all reach.

    Attributes:
        metric: The metric.
        values: Of the intervened run.
        baselines: Of the clean run.
        first: By intervention, the place of the first layer that it can reach; their count where it
            reaches none.
        layers: The numbers of the layers, those with attention for what is in it; where the stream
            is read, one past the last block stands for what leaves it.
    """

    metric: Metric
    values: Float[Tensor, "intervention layer prompt"]
    baselines: Float[Tensor, "intervention layer prompt"]
    first: list[int]
    layers: Sequence[int]

    def over(
        self, numbers: Sequence[int], firsts: Sequence[int]
    ) -> Float[Tensor, "side chosen prompt"]:
        """Values, and baselines, of some interventions in float64, NaN where no layer is left.

        Args:
            numbers: Of the interventions.
            firsts: For each the first layer that counts.
        """
        found = torch.zeros(2, len(numbers), self.values.shape[-1], dtype=torch.float64)
        for place, (number, first) in enumerate(zip(numbers, firsts, strict=True)):
            for row, side in zip(found, (self.values, self.baselines), strict=True):
                row[place] = over_layers(self.metric, side[number, first:])
        return found

    def is_left(self, first: int) -> bool:
        """Whether a layer is left from `first` on."""
        return first < self.values.shape[1]

    @property
    def coords(self) -> dict[str, Sequence[int]]:
        """The numbers of the layers, where their places do not say them."""
        numbers = list(self.layers)
        return {} if numbers == list(range(len(numbers))) else {"layer": numbers}

    def named(self, firsts: Sequence[int]) -> str | None:
        """The layers of some averages in words; None where they are all layers."""
        if not is_by_layer(self.metric):
            return None
        if len(set(firsts)) > 1:
            return "differing by draw"
        return named_layers(firsts[0], self.layers, str(self.metric.reads))


def is_by_layer(metric: Metric) -> TypeGuard[ProbeMetric]:
    """Whether a metric is read layer by layer."""
    return isinstance(metric, ProbeMetric) and metric.reads is not None


def over_layers(metric: Metric, part: Float[Tensor, "some prompt"]) -> Float[Tensor, " prompt"]:
    """One number of some layers, in float64; NaN where there is none."""
    if not len(part):
        return torch.full(part.shape[1:], torch.nan, dtype=torch.float64)
    reduce = metric.over_layers if is_by_layer(metric) else torch.mean
    return reduce(part.double(), 0)


def split_by_layer(
    metrics: Sequence[Metric],
    widths: Sequence[int],
    interventions: Sequence[Intervention],
    values: Float[Tensor, "intervention column prompt"],
    baselines: Float[Tensor, "intervention column prompt"],
    layers: Sequence[Sequence[int]],
    n_layers: int,
) -> list[ByLayer]:
    """Each metric by layer, with the layers that each intervention can reach.

    Args:
        metrics: The metrics.
        widths: How many columns each has, one for each layer.
        interventions: The interventions.
        values: Of the intervened runs.
        baselines: Of the clean run.
        layers: By metric, the numbers of the layers that it has a column for.
        n_layers: Blocks of the model.
    """
    reaches = [reach_of((name for name, _ in one.fwd_hooks), n_layers) for one in interventions]
    sides = (side.split(list(widths), 1) for side in (values, baselines))
    made = []
    for metric, value, baseline, numbers in zip(metrics, *sides, layers, strict=True):
        first = [0] * len(reaches)
        if is_by_layer(metric):
            first = [reach.first(str(metric.reads), numbers) for reach in reaches]
        made.append(ByLayer(metric, value, baseline, first, numbers))
    return made
