"""Spike and sinks of matched models on the same prompts, as controls of the model of the run.

Sun, Canziani, LeCun and Zhu 2026 (2603.05498) separate spikes from sinks by training models that
differ in where their norms stand. The rows hold the spike, sink mass and sink rate of the run's
model beside their nulls, and every other model (every seed of a shipped one) as a control, beside
nulls of its own; the contrast is how much further from its null the model of the run is, paired by
prompt. Intervals are over prompts: each model is one training run, and only several seeds show what
another run of the same recipe gives.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...core.errors import SinklensError, UsageError
from ...core.protocol import HookedModel
from ...metrics import SINK_THRESHOLDS, sink_mass, sink_rate
from ...models import Origin, load_like, origin, shipped, weights_hash
from ...models.capabilities import check
from ...probes import ResidualPeaks, SinkScores
from ...results.estimates import Reference, Sample
from ...runner.run import Run
from ...stats.nulls import gaussian_peak_ratio, uniform_sink_mass, uniform_sink_scores

FIGURES = ("peak_ratio", "sink_mass", "sink_rate")


def add_matched_models(run: Run[Any], sources: Sequence[str]) -> None:
    """The rows of the run's model, with every other model as a control.

    Args:
        run: The run; the names of all models with a hash of their weights are kept in it.
        sources: The other models, by shipped name or as `load` takes them.

    Raises:
        SinklensError: It is not known where the model of the run came from.
        UsageError: Another model reads tokens differently, or was trained with BOS where the
            prompts have none.
    """
    own = origin(run.model)
    if own.kind in ("bridge", "hugging_face"):
        raise SinklensError(
            "compare= sets a model beside others by where it came from, and this one came as an "
            "object; load it with sinklens.load(...) by name, folder or hub id"
        )
    others = dict(_other_models(run.model, own, sources))
    samples = _spike_and_sinks(run, run.model, _full_name(own))
    controls = {name: _spike_and_sinks(run, model, name) for name, model in others.items()}
    for figure in FIGURES:
        references = [Reference(found[figure], name) for name, found in controls.items()]
        run.add(figure, _full_name(own), samples[figure], *references)
    models = {_full_name(own): run.model, **others}
    run.facts(compared={name: weights_hash(model) for name, model in models.items()})


def _other_models(
    model: HookedModel, own: Origin, sources: Sequence[str]
) -> Iterator[tuple[str, HookedModel]]:
    """The other models by name: every seed of a shipped one, but not the model itself."""
    for source in dict.fromkeys(sources):
        if source not in shipped.names():
            yield source, load_like(model, source)
            continue
        seeds = shipped.seeds(source)
        ended = own.step in (None, shipped.card(source)["recipe"]["steps"])
        for seed in seeds:
            same = (own.kind, own.name, own.seed or seeds[0]) == ("shipped", source, seed)
            if not (same and ended):
                name = source if len(seeds) == 1 else f"{source}, seed {seed}"
                yield name, load_like(model, source, seed=seed)


def _full_name(own: Origin) -> str:
    """A model's name, and which of its checkpoints it is."""
    last = own.step if own.kind != "shipped" else shipped.card(own.name)["recipe"]["steps"]
    step = "" if own.step in (None, last) else f", step {own.step}"
    revision = f", revision {own.revision}" if own.revision else ""
    seed = f", seed {own.seed}" if own.seed is not None else ""
    return f"{own.name}{step}{revision}{seed}"


def _spike_and_sinks(run: Run[Any], model: HookedModel, name: str) -> dict[str, Sample]:
    """Largest entry, sink mass and sink rate of one model, beside its nulls."""
    prompts, length = run.prompts, run.prompts.length
    if model is not run.model and not _reads_alike(run.model, model):
        raise UsageError(f"{name} has another tokenizer, so these prompts are no text to it")
    if model.cfg.default_prepend_bos != prompts.bos:
        raise UsageError(
            f"{name} was trained {'with' if model.cfg.default_prepend_bos else 'without'} BOS, "
            "and these prompts are the other way; zoo.compare gives each member its own prompts"
        )
    sinks, peaks = SinkScores(model), ResidualPeaks(model)
    scores, spikes = run.read(sinks, peaks, model=model, prompts=replace(prompts, answers=None))
    capabilities = check(model)
    windows, causal = capabilities.visible_keys(length), capabilities.causal
    alike = {"causal": causal, "learned_sink": capabilities.learned_sinks}
    masses = [uniform_sink_mass(length, window=w, **alike) for w in windows]
    uniform = [uniform_sink_scores(length, window=w, **alike)[0] for w in windows]
    rate = float(np.mean(np.array(uniform) > SINK_THRESHOLDS["gu"]))
    gaussian = gaussian_peak_ratio(spikes.ratio.shape[1] * length * int(model.cfg.d_model))
    samples = (
        Sample(spikes.ratio.amax(1), gaussian),
        Sample(sink_mass(scores).mean(1), float(np.mean(masses))),
        Sample(sink_rate(scores).mean(1), rate),
    )
    return dict(zip(FIGURES, samples, strict=True))


def _reads_alike(one: HookedModel, other: HookedModel) -> bool:
    """Whether two models give the same ids to the same text."""
    if one.tokenizer is None or other.tokenizer is None:
        return int(one.cfg.d_vocab) == int(other.cfg.d_vocab)
    return bool(one.tokenizer.get_vocab() == other.tokenizer.get_vocab())
