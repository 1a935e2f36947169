"""`head_kl`: how alike heads are without their sink columns.

    head_kl         KL of heads to their mean, with the sink columns taken out and rows scaled to 1
                    (`functional.divergence`), beside random sets of as many columns, and sets of
                    columns near them; in nats, mean over heads, queries and layers
    kl_reduction_z  how many standard deviations of random sets the reduction lies above theirs

Sink columns are chosen for the attention that they get, so that heads become more alike without
them than without random columns on any weights: the contrasts are judged by those of models with
random weights. What it cannot show: whether heads differ in what they do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...core.protocol import HookedModel
from ...probes.divergences import DivergenceValues, HeadDivergences
from ...probes.patterns import PatternReader
from ...results.estimates import Effect, Reference, Sample
from ...results.record import Record
from ...results.wording import describe, null_verdict, phrase
from ...runner.compare import ContrastKey
from ...runner.null_models import few_prompts, random_contrasts
from ...runner.run import Run
from ...stats.models import OfModels

COLUMN_SETS = {"random_columns": "without_random", "nearby_columns": "without_nearby"}


def add_divergences(
    run: Run[Any], values: DivergenceValues, sets: int, of_random_models: Mapping[Any, OfModels]
) -> None:
    """KL of heads to their mean without sink columns; a reduction is a negative effect.

    Args:
        run: Takes rows and arrays.
        values: What was read.
        sets: How many sets of columns are averaged in each control.
        of_random_models: The contrasts that judge those of the rows.
    """
    percentiles = run.config.percentiles
    whole = values.whole.double().mean(1)
    for place, percentile in enumerate(percentiles):
        condition = without_sinks_at(percentile)
        controls = [
            Reference(
                Effect(_mean(getattr(values, removed), place), whole, sets),
                name,
                models=of_random_models.get(_contrast_key(percentile, name), np.zeros(0)),
            )
            for name, removed in COLUMN_SETS.items()
            if sets
        ]
        without = Effect(_mean(values.without_sinks, place), whole)
        run.add("head_kl", condition, without, *controls)
        if sets > 1:
            run.add("kl_reduction_z", condition, Sample(_mean(z_scores(values), place)))
    run.keep("head_kl", values.whole.mean(0), "layer")
    for name in ("without_sinks", *COLUMN_SETS.values(), "deviation"):
        mean = getattr(values, name).mean(0)
        run.keep(f"head_kl:{name}", mean, "layer percentile", percentile=percentiles)


def random_forwards(run: Run[Any], sets: int) -> int:
    """How many forward passes `random_divergences` takes."""
    few = run.prompts.take(few_prompts(run.prompts, run.config.seed))
    return run.config.null_models * run.batches(few) if sets else 0


def random_divergences(run: Run[Any], sets: int) -> Mapping[Any, OfModels]:
    """The contrasts of `head_kl` in models with random weights."""
    config = run.config
    prompts = run.prompts.take(few_prompts(run.prompts, config.seed))

    def contrasts(twin: HookedModel) -> dict[ContrastKey, float]:
        reader = PatternReader(twin, run.capabilities, prompts.tokens)
        probe = HeadDivergences(twin, reader, config.percentiles, sets=sets, seed=config.seed)
        (values,) = run.read(probe, model=twin, prompts=prompts)
        return {
            _contrast_key(percentile, name): float(
                (_mean(values.without_sinks, place) - _mean(getattr(values, removed), place)).mean()
            )
            for place, percentile in enumerate(config.percentiles)
            for name, removed in COLUMN_SETS.items()
        }

    if not (sets and config.null_models):
        return {}
    found, reason = random_contrasts(run.model, config.null_models, config.seed, contrasts)
    if reason:
        run.left_out("head_kl in models with random weights", reason)
    return found


def without_sinks_at(percentile: float) -> str:
    """The condition of a percentile."""
    return f"without_sinks:{percentile:g}"


def _contrast_key(percentile: float, control: str) -> ContrastKey:
    return "head_kl", without_sinks_at(percentile), None, None, control


def z_scores(values: DivergenceValues) -> Float[Tensor, "prompt layer percentile"]:
    """How far the reduction lies above that of random sets; 0 where all sets do the same."""
    more = values.without_random - values.without_sinks
    return torch.where(values.deviation > 1e-6, more / values.deviation.clamp_min(1e-6), 0.0)


def _mean(values: Float[Tensor, "prompt layer place"], place: int) -> Float[Tensor, " prompt"]:
    """The mean over layers at one place."""
    return values[..., place].double().mean(1)


def without_sinks(result: Record) -> Iterator[str]:
    """What removing the sink columns does to the KL of heads, at the middle percentile."""
    rows = [row for row in result.effects if (row.metric, row.kind) == ("head_kl", "treatment")]
    for row in rows[len(rows) // 2 :][:1]:
        share = 1 - float(row.condition.partition(":")[2])
        reduction = "; there is no KL reduction" if null_verdict(row) == "above" else ""
        yield (
            f"Removing the top {share:.0%} of columns changes the mean KL of heads to their mean "
            f"by {describe(row)}: {phrase(result, row)}{reduction}."
        )
