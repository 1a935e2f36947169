"""Spike and sinks of matched models on the same prompts, each set against the model of the run.

2603.05498 separates spikes from sinks by training models that differ in where their norms stand.
For every model (every seed of a shipped one) the rows hold its spike, sink mass and sink rate
beside their nulls; its contrast is how much further from its null the model of the run is, paired
by prompt. Intervals are over prompts: each model is one training run, and only several seeds show
what another run of the same recipe gives.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from ...core.errors import SinklensError, UsageError
from ...core.protocol import HookedModel
from ...engine import evaluate
from ...metrics import SINK_THRESHOLDS, mean_sink_mass, sink_rate
from ...models import Origin, load_like, origin, shipped, weights_hash
from ...models.capabilities import check
from ...models.prompts import Prompts
from ...probes import ResidualPeaks, SinkScores
from ...runner.config import ExperimentConfig
from ...stats.effects import Row, paired_row
from ...stats.nulls import gaussian_peak_ratio, uniform_sink_mass, uniform_sink_scores


def matched_models(
    model: HookedModel, prompts: Prompts, config: ExperimentConfig, sources: Sequence[str]
) -> tuple[list[Row], dict[str, str]]:
    """Spike and sinks of other models on the same prompts, every seed of a shipped one.

    Args:
        model: The model of the run.
        prompts: The prompts.
        config: For the engine, and the seed of the tests.
        sources: The other models, by shipped name or as `load` takes them; without any, nothing is
            measured.

    Returns:
        Rows, and the names of all models with a hash of their weights, that of the run first.

    Raises:
        SinklensError: It is not known where the model came from.
        UsageError: Another model reads tokens differently, or was trained with BOS where the
            prompts have none.
    """
    if not sources:
        return [], {}
    own = origin(model)
    if own.kind in ("bridge", "hugging_face"):
        raise SinklensError(
            "compare= sets a model beside others by where it came from, and this one came as an "
            "object; load it with sinklens.load(...) by name, folder or hub id"
        )
    others: list[tuple[str, HookedModel]] = [(_full_name(own), model)]
    for source in dict.fromkeys(sources):
        if source not in shipped.names():
            others.append((source, load_like(model, source)))
            continue
        seeds = shipped.seeds(source)
        ended = own.step in (None, shipped.card(source)["recipe"]["steps"])
        for seed in seeds:
            name = source if len(seeds) == 1 else f"{source}, seed {seed}"
            same = (own.kind, own.name, own.seed or seeds[0]) == ("shipped", source, seed)
            if not (same and ended):
                others.append((name, load_like(model, source, seed=seed)))
    measured = {
        name: list(_one_model(name, other, prompts, config, model)) for name, other in others
    }
    mine, *theirs = measured.values()
    against = [
        _against(*pair, config.seed) for rows in theirs for pair in zip(mine, rows, strict=True)
    ]
    rows = [row for rows in measured.values() for row in rows] + against
    return rows, {name: weights_hash(other) for name, other in others}


def _against(mine: Row, other: Row, seed: int) -> Row:
    """How much further from its null the model of the run is than another one."""
    named = (other.effect.metric, other.effect.condition, "contrast")
    values, baselines = (row.values - row.baselines for row in (mine, other))
    return paired_row(*named, values, baselines, unit=other.effect.unit, tested=True, seed=seed)


def _full_name(own: Origin) -> str:
    """A model's name, and which of its checkpoints it is."""
    last = own.step if own.kind != "shipped" else shipped.card(own.name)["recipe"]["steps"]
    step = "" if own.step in (None, last) else f", step {own.step}"
    revision = f", revision {own.revision}" if own.revision else ""
    seed = f", seed {own.seed}" if own.seed is not None else ""
    return f"{own.name}{step}{revision}{seed}"


def _one_model(
    name: str, other: HookedModel, prompts: Prompts, config: ExperimentConfig, model: HookedModel
) -> Iterator[Row]:
    """Spike and sinks of one model."""
    if other is not model and not _reads_alike(model, other):
        raise UsageError(f"{name} has another tokenizer, so these prompts are no text to it")
    if other.cfg.default_prepend_bos != prompts.bos:
        raise UsageError(
            f"{name} was trained {'with' if other.cfg.default_prepend_bos else 'without'} BOS, "
            "and these prompts are the other way; zoo.compare gives each member its own prompts"
        )
    capabilities = check(other)
    sinks, peaks = SinkScores(other), ResidualPeaks(other)
    plain = replace(prompts, answers=None)
    evaluate(other, plain, [], [], probes=[sinks, peaks], **config.for_engine())
    scores, causal, length = sinks.compute(), capabilities.causal, prompts.length
    windows = [None if w is None or w >= length else w for w in capabilities.windows]
    masses = [uniform_sink_mass(length, window=w, causal=causal) for w in windows]
    uniform = [uniform_sink_scores(length, window=w, causal=causal)[0] for w in windows]
    rate = float(np.mean(np.array(uniform) > SINK_THRESHOLDS["gu"]))
    ratio = peaks.compute().ratio
    gaussian = gaussian_peak_ratio(ratio.shape[1] * length * int(other.cfg.d_model))
    for metric, values, null, unit in (
        ("peak_ratio", ratio.amax(1), gaussian, "times the median"),
        ("sink_mass", mean_sink_mass(scores), float(np.mean(masses)), "share of attention"),
        ("sink_rate", sink_rate(scores), rate, "share of heads"),
    ):
        numbers = values.double().numpy()
        nulls = np.full_like(numbers, null)
        yield paired_row(metric, name, "measurement", numbers, nulls, unit=unit)


def _reads_alike(one: HookedModel, other: HookedModel) -> bool:
    """Whether two models give the same ids to the same text."""
    if one.tokenizer is None or other.tokenizer is None:
        return int(one.cfg.d_vocab) == int(other.cfg.d_vocab)
    return bool(one.tokenizer.get_vocab() == other.tokenizer.get_vocab())
