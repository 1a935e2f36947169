"""Traits of a model that training brings about, each beside a null and a control.

    sink_mass        attention of later queries to position 0; null: uniform attention
    value_drain      norm of the value at position 0 over the mean one of later positions, mean over
                     layers and heads (2410.13835); falls where sinks read nothing; null: 1
    spike            largest entry of the stream over the median one; null: Gaussian entries
    largest_column   mean attention that the most attended key gets, head average by layer, keys up
                     to T / 2 (a central frame, 2508.02546); null: uniform attention

The control is the same at a later position p, in 1 .. T / 4: what the key at p gets, its own query
included (for `sink_mass` and `largest_column` alike, since another column is what both would be
without a sink), the norm of its value, the largest entry at p. Each control has a null of its own.
What it cannot show: a key near the front gets more under any causal mask, which the null takes into
account only where attention is uniform.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..capabilities import check
from ..controls import (
    control_positions,
    gaussian_peak_ratio,
    uniform_sink_mass,
    uniform_sink_scores,
)
from ..engine import evaluate
from ..metrics import mean_sink_mass
from ..probes import PositionValues, ResidualPeaks, SinkScores, ValueNorms
from ..protocol import HookedModel
from ..text import Prompts
from .registry import ExperimentConfig

TRAITS = ("sink_mass", "value_drain", "spike", "largest_column")
Values = Float[np.ndarray, " prompt"]


class Trait(NamedTuple):
    """One trait of one model, by prompt.

    Attributes:
        values: One number a prompt.
        null: What no mechanism would give.
        unit: The unit.
        side: Where the trait lies once it has appeared: 1 above the null, -1 below, 0 either.
        control: The same at a later position, mean over draws; None where there is none.
        control_null: What no mechanism would give there.
    """

    values: Values
    null: float
    unit: str
    side: int
    control: Values | None = None
    control_null: float = 0.0


def read_traits(
    model: HookedModel, prompts: Prompts, config: ExperimentConfig, wanted: Sequence[str]
) -> dict[str, Trait]:
    """The traits of one model, in one forward."""
    capabilities = check(model)
    length, width, layers = prompts.length, int(model.cfg.d_model), int(model.cfg.n_layers)
    places = control_positions(length, config.draws, config.seed)
    sinks, norms, peaks = SinkScores(model), ValueNorms(model), ResidualPeaks(model)
    drained = {p: PositionValues(model, ["value"], range(layers), p) for p in set(places)}
    streams = {p: PositionValues(model, ["residual"], range(layers), p) for p in set(places)}
    probes: list[Any] = [sinks, norms, peaks, *drained.values(), *streams.values()]
    evaluate(model, prompts, [], [], probes=probes, **config.for_engine())

    scores, values, stream = sinks.compute(), norms.compute(), peaks.compute()
    windows = [None if w is None or w >= length else w for w in capabilities.windows]
    causal = capabilities.causal
    masses = [uniform_sink_mass(length, window=w, causal=causal) for w in windows]
    uniform = np.mean(
        [uniform_sink_scores(length, window=w, causal=causal) for w in windows], axis=0
    )
    largest = np.mean(
        [
            uniform_sink_scores(length, window=w, causal=causal)[: length // 2 + 1].max()
            for w in windows
        ]
    )
    columns = scores.scores.mean(2)
    attention = "share of attention"
    received = _over_draws(places, lambda p: columns[..., p].mean(1))
    at_places = float(uniform[places].mean()) if places else 0.0
    traits = {
        "sink_mass": Trait(
            _array(mean_sink_mass(scores)),
            float(np.mean(masses)),
            attention,
            1,
            received,
            at_places,
        ),
        "value_drain": Trait(
            _array((values.position0 / values.others).flatten(1).mean(1)),
            1.0,
            "times later positions",
            -1,
            _over_draws(places, lambda p: _drain(drained[p].compute(), values.others)),
            1.0,
        ),
        "spike": Trait(
            _array(stream.ratio.amax(1)),
            gaussian_peak_ratio(stream.ratio.shape[1] * length * width),
            "times the median",
            1,
            _over_draws(places, lambda p: _peak(streams[p].compute(), stream.median)),
            gaussian_peak_ratio(layers * width),
        ),
        "largest_column": Trait(
            _array(columns[..., : length // 2 + 1].amax(-1).mean(1)),
            float(largest),
            attention,
            1,
            received,
            at_places,
        ),
    }
    return {name: traits[name] for name in wanted}


def _over_draws(places: Sequence[int], read: Any) -> Values | None:
    """The mean over the draws of a position, by prompt."""
    return _array(torch.stack([read(p) for p in places]).mean(0)) if places else None


def _drain(
    values: dict[tuple[str, int], Tensor], others: Float[Tensor, "prompt layer head"]
) -> Float[Tensor, " prompt"]:
    """Norm of the value at a position over the mean one of later positions."""
    here = torch.stack([one.float().norm(dim=-1) for one in values.values()], 1)
    return (here / others).flatten(1).mean(1)


def _peak(
    streams: dict[tuple[str, int], Tensor], medians: Float[Tensor, "prompt site"]
) -> Float[Tensor, " prompt"]:
    """The largest entry at a position over the median one of the stream entering the same block."""
    here = torch.stack([one.float().abs().amax(-1) for one in streams.values()], 1)
    return (here / medians[:, : here.shape[1]]).amax(1)


def _array(values: Tensor) -> Values:
    return np.asarray(values.double())
