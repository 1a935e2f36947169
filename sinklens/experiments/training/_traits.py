"""Traits of a model that training brings about, each beside a null and references.

    sink_mass        mean weight of key 0 over later queries; null: uniform attention
    value_drain      norm of the value at position 0 over the mean one of later positions, mean over
                     layers and heads; falls where sinks read nothing; null: 1
    spike            largest entry of the residual stream over the median one; null: Gaussian
                     entries
    largest_early_column
                     mean attention that the most attended key gets, of the keys up to T / 2, by
                     head, then the mean over heads and layers (a central frame of Ruscio et al.
                     2025, 2508.02546); null: uniform attention

`value_drain` follows Guo et al. 2024 (2410.13835), which takes the value behind W_O; here it is the
value itself.

The control of the first three is the same at a later position p, in 1 .. T / 4: its weight over the
queries after it; its value; the largest entry at p against the largest at position 0, over the same
streams. `largest_early_column` has an empirical null, attention whose rows are permuted among the
keys that a query sees, since the largest of many columns was chosen. What it cannot show: a key
near the front gets more under any causal mask, which a null takes into account only where attention
is uniform.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...core.protocol import HookedModel
from ...hooks.matching import control_positions
from ...metrics import sink_mass
from ...models.capabilities import Capabilities, check
from ...probes import KeyMass, PositionValues, ResidualPeaks, SinkScores, ValueNorms
from ...probes.patterns import ROW_PERMUTED, MeanPatterns, PatternReader
from ...probes.positions import PartValues
from ...results.estimates import NOT_TESTED, Measure, Reference, Sample, proportion
from ...runner.run import Run
from ...stats.nulls import gaussian_peak_ratio, uniform_sink_mass, uniform_sink_scores

SIDES = {"sink_mass": 1, "value_drain": -1, "spike": 1, "largest_early_column": 1}
"""Where a trait lies once it has appeared: 1 above its null, -1 below."""
TRAIT_MEASURES = {
    "sink_mass": proportion("share of attention", "uniform attention", ".1%"),
    "value_drain": Measure("times later positions", "equal norms"),
    "spike": Measure("times the median", "Gaussian entries"),
    "largest_early_column": proportion("share of attention", "uniform attention", ".1%"),
}


def read_traits(run: Run[Any], model: HookedModel) -> dict[str, Sample]:
    """The traits of one model, in one forward."""
    capabilities, length = check(model), run.prompts.length
    scores, norms, peaks = run.read(
        SinkScores(model), ValueNorms(model), ResidualPeaks(model), model=model
    )
    half = length // 2 + 1
    uniform = [
        uniform_sink_scores(length, window=window, **_alike(capabilities))[:half].max()
        for window in capabilities.visible_keys(length)
    ]
    columns = scores.scores.mean(2)[..., :half].amax(-1).mean(1)
    drain = (norms.position0 / norms.others).flatten(1).mean(1)
    entries = peaks.ratio.shape[1] * length * int(model.cfg.d_model)
    traits = {
        "sink_mass": Sample(sink_mass(scores).mean(1), _uniform(capabilities, length, 0)),
        "value_drain": Sample(drain, 1.0),
        "spike": Sample(peaks.ratio.amax(1), gaussian_peak_ratio(entries)),
        "largest_early_column": Sample(columns, float(np.mean(uniform))),
    }
    return {name: traits[name] for name in run.conditions}


def references(
    run: Run[Any], model: HookedModel, traits: Mapping[str, Sample]
) -> dict[str, list[Reference]]:
    """What the traits of a model are set against besides random weights.

    There is nothing where draws is 0, and no control where no later position is left.
    """
    beside: dict[str, list[Reference]] = {name: [] for name in traits}
    places = control_positions(run.prompts.length, run.config.draws, run.config.seed)
    if places and traits.keys() - {"largest_early_column"}:
        run.drawn(control_positions=places)
        for name, control in _at_later_positions(run, model, places).items():
            if name in traits:
                beside[name].append(control)
    if run.config.draws and "largest_early_column" in traits:
        null = traits["largest_early_column"].null
        beside["largest_early_column"].append(_with_permuted_rows(run, model, null))
    return beside


def _at_later_positions(
    run: Run[Any], model: HookedModel, places: list[int]
) -> dict[str, Reference]:
    """The weight of a later key, its value's norm and the largest entry there, by draw."""
    capabilities, length = check(model), run.prompts.length
    layers = range(capabilities.n_layers)
    sites = ["value", "residual", "resid_post"]
    positions = {p: PositionValues(model, sites, layers, p) for p in {0, *places}}
    probes: list[Any] = [KeyMass(model, places), ValueNorms(model), ResidualPeaks(model)]
    received, norms, peaks, *values = run.read(*probes, *positions.values(), model=model)
    read = dict(zip(positions, values, strict=True))
    mass_null = np.mean([_uniform(capabilities, length, place) for place in places])
    spike_null = gaussian_peak_ratio((capabilities.n_layers + 1) * int(model.cfg.d_model))
    position0 = Sample(_peak(read[0], peaks.median), spike_null)
    if "spike" in run.conditions:
        run.facts(spike_at_position0=float(position0.values.mean()))

    def control(values: list[Tensor], null: float, own: Sample | None = None) -> Reference:
        sample = Sample(torch.stack(values), null, len(places))
        return Reference(sample, "later_position", own=own, models=NOT_TESTED)

    return {
        "sink_mass": control([received[p].mean((1, 2)) for p in places], float(mass_null)),
        "value_drain": control([_drain(read[p], norms.others) for p in places], 1.0),
        # The largest entry of all may lie anywhere: it is position 0's that is compared.
        "spike": control([_peak(read[p], peaks.median) for p in places], spike_null, position0),
    }


def _drain(
    values: PartValues, usual: Float[Tensor, "prompt layer head"]
) -> Float[Tensor, " prompt"]:
    """Norm of the value at a position over the mean one of later positions."""
    here = [value.norm(dim=-1) for (site, _), value in values.items() if site == "value"]
    return (torch.stack(here, 1) / usual).flatten(1).mean(1)


def _peak(values: PartValues, medians: Float[Tensor, "prompt site"]) -> Float[Tensor, " prompt"]:
    """The largest entry at a position over the median one of the same stream."""
    streams = [stream for (site, _), stream in values.items() if site == "residual"]
    streams.append(values["resid_post", len(streams) - 1])
    return (torch.stack([s.abs().amax(-1) for s in streams], 1) / medians).amax(1)


def _with_permuted_rows(run: Run[Any], model: HookedModel, null: float) -> Reference:
    """The largest column of attention whose rows are permuted, mean over draws."""
    draws, seed = run.config.draws, run.config.seed
    reader = PatternReader(model, check(model), run.prompts.tokens, draws=draws, seed=seed)
    probe = MeanPatterns(model, reader, [largest_column], uniform=False)
    (columns,) = run.read(probe, model=model)
    values = columns[ROW_PERMUTED, "largest"].mean((1, 2))
    return Reference(Sample(values, null, draws), ROW_PERMUTED, "null")


def largest_column(pattern: Tensor, visible: Tensor, layer: int) -> dict[str, Tensor]:
    """The sink score of the most attended key among those up to T / 2."""
    length = pattern.shape[-1]
    scores = pattern.tril().sum(-2) / torch.arange(length, 0, -1, device=pattern.device)
    return {"largest": scores[..., : length // 2 + 1].amax(-1)}


def _alike(capabilities: Capabilities) -> dict[str, bool]:
    """How attention without a mechanism is like that of a model."""
    return {"causal": capabilities.causal, "learned_sink": capabilities.learned_sinks}


def _uniform(capabilities: Capabilities, length: int, key: int) -> float:
    """The weight of a key over the queries after it under uniform attention, mean over layers."""
    masses = [
        uniform_sink_mass(length, window=window, key=key, **_alike(capabilities))
        for window in capabilities.visible_keys(length)
    ]
    return float(np.mean(masses))
