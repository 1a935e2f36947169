"""Rows of another experiment, followed over training as traits of their own.

A row is named `metric:condition`, with `@1:8` behind it where it is about some queries. Where it is
set against a reference, the contrast is followed, else its effect or its value beside the null; a
checkpoint at which it is of another kind than at the first is left out. Rows without an interval
over prompts and rows of one layer or head are not followed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ...core.errors import SinklensError, UsageError, unknown_name
from ...core.protocol import HookedModel
from ...metrics import resolve_metrics
from ...results.estimates import Measure, Sample
from ...results.record import Record
from ...runner import registry
from ...runner.run import Run
from ...stats.effects import OVER_PROMPTS

RANK = {"contrast": 0, "treatment": 1, "measurement": 2}


def require_rows(experiment: str, rows: Sequence[str]) -> None:
    """Refuse an experiment that does not exist, and rows of metrics that it does not have.

    Raises:
        UsageError: There is one.
    """
    declared = registry.get(experiment)
    metrics = resolve_metrics(declared.metrics) if declared.metrics else []
    known = {*(name.partition("/")[0] for name in declared.measures), *(m.name for m in metrics)}
    for row in rows:
        metric, _, condition = row.partition(":")
        if known and metric not in known:
            raise unknown_name(f"metric of {experiment}", metric, known)
        if not condition:
            raise UsageError(f"rows are named metric:condition, and {row!r} has no condition")


def follow_rows(
    run: Run[Any], model: HookedModel, step: int, kinds: dict[str, Measure]
) -> dict[str, Sample]:
    """The followed rows of another experiment at a checkpoint; none where it refuses the model.

    Args:
        run: The run; its settings name experiment and rows, and it keeps what is left out.
        model: The checkpoint.
        step: Its step.
        kinds: What kind of number each row is at the checkpoints before; those met first here are
            added.
    """
    name, rows = run.config.experiment, run.config.rows
    if not name:
        return {}
    shared = {key: getattr(run.config, key) for key in ("seed", "batch_size", "memory")}
    try:
        result = registry.run(name, model, run.prompts, progress=False, **shared)
    except UsageError:
        raise
    except SinklensError as error:
        run.left_out(f"{name} at step {step}", str(error))
        return {}
    run.count(int(result.provenance["forwards"]))
    traits = traits_of(result, rows)
    for row in rows:
        if row not in traits:
            run.left_out(f"{row} at step {step}", "the experiment has no such row with an interval")
    for row, (measure, _) in traits.items():
        run.declare(row, kinds.setdefault(row, measure))
        if kinds[row] != measure:
            reason = f"its null is {measure.null!r} there, and {kinds[row].null!r} before"
            run.left_out(f"{row} at step {step}", reason)
    return {row: sample for row, (measure, sample) in traits.items() if kinds[row] == measure}


def traits_of(result: Record, wanted: Sequence[str]) -> dict[str, tuple[Measure, Sample]]:
    """Model-level rows of a result by name: what kind of number, and the numbers.

    Args:
        result: Of another experiment.
        wanted: Names of rows; empty takes the first of each metric.
    """
    traits: dict[str, tuple[Measure, Sample]] = {}
    metrics: set[str] = set()
    order = sorted(enumerate(result.effects), key=lambda pair: RANK.get(pair[1].kind, len(RANK)))
    for place, row in order:
        name = f"{row.metric}:{row.condition}" + (f"@{row.queries}" if row.queries else "")
        of_model = row.kind in RANK and row.layer is None and row.resampled in OVER_PROMPTS
        spread = row.ci_low is not None or row.n_prompts == 1
        chosen = name in wanted if wanted else row.metric not in metrics
        if not (of_model and spread and chosen) or name in traits:
            continue
        metrics.add(row.metric)
        values, baselines = (
            result.per_prompt[side][place].double().numpy() for side in ("value", "baseline")
        )
        measure = replace(result.measure(row.metric), unit=row.unit)
        if row.kind == "measurement":
            traits[name] = measure, Sample(values, baselines)
        else:
            null = "no difference from its control" if row.kind == "contrast" else "no effect"
            traits[name] = replace(measure, null=null), Sample(values - baselines)
    return traits
