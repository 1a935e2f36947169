"""Comparisons: an intervention and its matched control, and the rows that they give.

A contrast sets the effect of the treatment against that of the control, paired by prompt; draws are
averaged within a prompt first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ..engine.evaluate import Evaluation
from ..hooks.intervention import Intervention
from ..metrics import Metric
from ..stats.effects import Row, Values, paired_row, with_q_values

NO_POSITION = "no later position is left whose predictions could count"


@dataclass(frozen=True)
class Comparison:
    """A condition: what is done, and what its matched control does.

    Attributes:
        condition: The name.
        treatment: One intervention a draw.
        control: One intervention a draw; empty where no control can be made.
        against: What the contrast sets against the control, if it is not the whole treatment
            (fewer control heads than treated ones).
        no_control: Why there is no control, where that is not for lack of a later position; empty
            where a note of the experiment says it.
    """

    condition: str
    treatment: list[Intervention]
    control: list[Intervention] = field(default_factory=list)
    against: list[Intervention] | None = None
    no_control: str = NO_POSITION

    def interventions(self) -> list[Intervention]:
        """All of them, each once."""
        return [*self.treatment, *self.control, *(self.against or [])]


def compare(
    comparisons: Sequence[Comparison],
    evaluation: Evaluation,
    order: Sequence[Intervention],
    seed: int,
) -> list[Row]:
    """Treatment, control and contrast rows of every comparison and metric.

    Args:
        comparisons: The conditions.
        evaluation: What the engine measured.
        order: The interventions in the order in which the engine was given them.
        seed: Decides the resamples of the tests.
    """
    number = {id(intervention): i for i, intervention in enumerate(order)}
    rows: list[Row] = []
    for axis, metric in enumerate(evaluation.metrics):
        for comparison in comparisons:
            rows += _compare_one(comparison, metric, axis, evaluation, number, seed)
    return with_q_values(rows)


def _compare_one(
    comparison: Comparison,
    metric: Metric,
    axis: int,
    evaluation: Evaluation,
    number: dict[int, int],
    seed: int,
) -> list[Row]:
    """The rows of one condition and metric."""

    def read(interventions: list[Intervention]) -> tuple[Values, Values]:
        chosen = [number[id(intervention)] for intervention in interventions]
        return (
            _mean_over_draws(evaluation.values[chosen, axis]),
            _mean_over_draws(evaluation.baselines[chosen, axis]),
        )

    first = comparison.treatment[0]
    place = {"unit": metric.unit, "layer": first.layer, "head": first.head, "seed": seed}
    named = (metric.name, comparison.condition)
    values, baselines = read(comparison.treatment)
    treated = paired_row(
        *named,
        "treatment",
        values,
        baselines,
        tested=metric.signed,
        n_draws=len(comparison.treatment),
        **place,  # type: ignore[arg-type]
    )
    if not comparison.control:
        return [treated]
    values, baselines = read(comparison.control)
    control = paired_row(
        *named,
        "control",
        values,
        baselines,
        n_draws=len(comparison.control),
        **place,  # type: ignore[arg-type]
    )
    values, baselines = read(comparison.against or comparison.treatment)
    contrast = paired_row(
        *named,
        "contrast",
        values - baselines,
        control.values - control.baselines,
        tested=True,
        n_draws=max(len(comparison.control), len(comparison.against or ())),
        **place,  # type: ignore[arg-type]
    )
    return [treated, control, contrast]


def _mean_over_draws(values: Float[Tensor, "draw prompt"]) -> Values:
    """The mean over draws within each prompt, in float64."""
    return np.asarray(values.double().mean(0))
