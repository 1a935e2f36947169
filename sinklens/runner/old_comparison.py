"""What the causal experiments share: run conditions with their controls, and say what came out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..core.protocol import HookedModel
from ..engine import announce, evaluate
from ..metrics import Metric
from ..models.prompts import Prompts
from ..results.record import Array
from ..results.result import ExperimentResult, assemble
from ..results.wording import describe
from ..stats.effects import EffectSize, Row, Values, is_significant, paired_row, with_q_values
from .config import ExperimentConfig
from .old_compare import Comparison, compare
from .ranking import rank

ROUNDING = 1e-6


def run_comparisons(
    experiment: str,
    model: HookedModel,
    prompts: Prompts,
    config: ExperimentConfig,
    comparisons: Sequence[Comparison],
    metrics: Sequence[Metric],
    *,
    left_out: Mapping[str, str],
    measured: Sequence[Row] = (),
    derive: Callable[[Sequence[Row]], list[Row]] = lambda _: [],
    notes: Sequence[str] = (),
    footnotes: Mapping[str, str] | None = None,
    draws: Mapping[str, Any],
    arrays: Mapping[str, Array] | None = None,
    extra_forwards: int = 0,
) -> ExperimentResult:
    """Evaluate all treatments and controls together and make the result.

    Args:
        experiment: The experiment's name.
        model: The model.
        prompts: The prompts.
        config: The settings.
        comparisons: The conditions.
        metrics: What to measure.
        left_out: What was left out, with reasons.
        measured: Rows that were measured before; they come first.
        derive: Makes further rows of those that were compared.
        notes: Sentences for the foot of the table.
        footnotes: By condition, what a reader of its rows has to know; they get a star.
        draws: What was drawn (tokens, positions, heads), for whoever wants to repeat it.
        arrays: Arrays to keep.
        extra_forwards: Forwards of the batch that were run before.

    Raises:
        UsageError: `config.screen` has nothing to rank.
    """
    notes = list(notes)
    if config.draws == 0:
        notes.append("No controls and no contrasts: draws is 0.")
    kept = dict(arrays or {})
    ranking: Any = None
    if config.screen:
        ranking = rank(model, prompts, config, comparisons, metrics)  # type: ignore[arg-type]
        comparisons = ranking.chosen
        extra_forwards += ranking.forwards
        kept["screening_estimates"] = ranking.array()
    if config.draws:
        notes += _without_control(comparisons)
    # A control that several conditions share is run once.
    order = list({id(i): i for one in comparisons for i in one.interventions()}.values())
    announce(experiment, 1 + len(order) + extra_forwards, prompts, config.progress)
    evaluation = evaluate(model, prompts, order, metrics, **config.for_engine())
    compared = compare(comparisons, evaluation, order, config.seed)
    rows = with_q_values([*measured, *compared, *derive(compared)])
    fired: Counter[str] = Counter()
    for intervention, count in zip(order, evaluation.fired, strict=True):
        fired[intervention.name] += count
    settings = {
        **config.recorded(),
        "left_out": dict(left_out),
        "notes": notes,
        "footnotes": dict(footnotes or {}),
        "draws_made": dict(draws),
    }
    if ranking is not None:
        settings["screening"] = ranking.settings([row.effect for row in rows])
        settings["notes"] = [*notes, ranking.note(settings["screening"])]
    control = _control_draws(comparisons, evaluation, order)
    if control is not None:
        kept["control_draws"] = control
    return assemble(
        experiment,
        model,
        prompts,
        rows,
        arrays=kept,
        settings=settings,
        fired=fired,
        shortcuts=evaluation.shortcuts,
        forwards=evaluation.forwards + extra_forwards,
    )


def _without_control(comparisons: Sequence[Comparison]) -> list[str]:
    """A sentence for each reason why conditions have no control."""
    bare: dict[str, dict[str, None]] = {}
    for one in comparisons:
        if not one.control and one.no_control:
            bare.setdefault(one.no_control, {})[one.condition] = None
    return [f"No control for {', '.join(named)}: {reason}." for reason, named in bare.items()]


def _control_draws(
    comparisons: Sequence[Comparison], evaluation: Any, order: Sequence[Any]
) -> Array | None:
    """Each control draw's effect averaged over prompts; NaN where a condition has fewer draws."""
    most = max((len(comparison.control) for comparison in comparisons), default=0)
    if most == 0:
        return None
    number = {id(intervention): i for i, intervention in enumerate(order)}
    shape = (len(evaluation.metrics), len(comparisons), most)
    means = torch.full(shape, torch.nan)
    effects = (evaluation.values - evaluation.baselines).mean(-1)
    for place, comparison in enumerate(comparisons):
        for draw, intervention in enumerate(comparison.control):
            means[:, place, draw] = effects[number[id(intervention)]]
    return Array(means, ("metric", "comparison", "draw"))


def with_control(
    measured: Row, control: Values | None, control_null: float, seed: int, draws: int
) -> Iterator[Row]:
    """A measurement, its control, and their distances from their nulls set against each other.

    Args:
        measured: The measurement.
        control: The same elsewhere, one number a prompt; None where there is no control.
        control_null: What no mechanism would give there.
        seed: Decides the resamples of the test.
        draws: Draws that were averaged in the control.
    """
    yield measured
    if control is None:
        return
    row = measured.effect
    nulls = np.full_like(control, control_null)
    named: dict[str, Any] = {
        "unit": row.unit,
        "layer": row.layer,
        "queries": row.queries,
        "n_draws": draws,
    }
    yield paired_row(row.metric, row.condition, "control", control, nulls, **named)
    yield paired_row(
        row.metric,
        row.condition,
        "contrast",
        measured.values - measured.baselines,
        control - nulls,
        tested=True,
        seed=seed,
        **named,
    )


def constant_row(
    metric: str, condition: str, value: float, null: float, unit: str, *, prompts: int, **place: Any
) -> Row:
    """A figure that does not depend on the prompts, beside its null; it has no interval."""
    values, nulls = np.full(prompts, value), np.full(prompts, null)
    row = paired_row(metric, condition, "measurement", values, nulls, unit=unit, **place)
    return replace(row, effect=replace(row.effect, ci_low=None, ci_high=None))


def sentences(
    result: ExperimentResult,
    what: str,
    metrics: Sequence[str],
    of: Callable[[str], bool] = lambda _: True,
) -> list[str]:
    """A sentence for each condition and metric: the effect, and whether it exceeds its control.

    Args:
        result: The result.
        what: What was done, without the condition's name.
        metrics: Which metrics.
        of: Which conditions.
    """
    lines = []
    for metric in metrics:
        named = [e.condition for e in result.effects if e.metric == metric and of(e.condition)]
        for condition in dict.fromkeys(named):
            rows = [e for e in result.effects if (e.metric, e.condition) == (metric, condition)]
            treatments = [e for e in rows if e.kind == "treatment"]
            strongest = max(treatments, key=lambda e: abs(e.effect))
            contrast = next(
                (
                    e
                    for e in rows
                    if e.kind == "contrast"
                    and (e.layer, e.head) == (strongest.layer, strongest.head)
                ),
                None,
            )
            lines.append(sentence(what, strongest, contrast, of=len(treatments)))
    return lines


def sentence(what: str, treatment: EffectSize, contrast: EffectSize | None, *, of: int = 1) -> str:
    """One effect in words, led by its contrast with the control."""
    where = f"{what} {treatment.condition}"
    if treatment.layer is not None:
        where += f" at L{treatment.layer}" if treatment.head is None else ""
        where += f" at L{treatment.layer}H{treatment.head}" if treatment.head is not None else ""
    if of > 1:
        where += f" (the largest of {of} rows)"
    itself = describe(treatment)
    if contrast is None:
        return f"{where}: {treatment.metric} {itself}; there is no control."
    against = describe(contrast)
    if is_significant(contrast):
        return f"{where}: {treatment.metric} {against} against its control; by itself {itself}."
    return (
        f"{where}: {treatment.metric} not told apart from its control ({against} against it); by "
        f"itself {itself}."
    )


def beside_null(row: EffectSize) -> str:
    """Whether a row's interval lies above its null, beyond float rounding.

    A row without an interval, as of a single prompt, cannot tell.
    """
    if row.ci_low is None:
        return "not told apart from"
    return "above" if row.ci_low > ROUNDING else "not above"
