"""Traits of a model that training brings about, each beside a null and something to set against it.

    sink_mass        mean weight of key 0 over later queries; null: uniform attention
    value_drain      norm of the value at position 0 over the mean one of later positions, mean over
                     layers and heads; falls where sinks read nothing; null: 1
    spike            largest entry of the stream over the median one; null: Gaussian entries
    largest_column   mean attention that the most attended key gets, head average by layer, keys up
                     to T / 2 (a central frame, 2508.02546); null: uniform attention

`value_drain` follows 2410.13835, which takes the value behind W_O; here it is the value itself.

Set against them: for the first three the same at a later position p, in 1 .. T / 4 (its weight over
the queries after it; its value; the largest entry at p against the largest at position 0, over the
same streams), for `largest_column` the same of attention whose rows are permuted among the keys
that a query sees, since the largest of many columns was chosen. Each has a null of its own. What it
cannot show: a key near the front gets more under any causal mask, which a null takes into account
only where attention is uniform.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...core.protocol import HookedModel
from ...engine import evaluate
from ...hooks.matching import control_positions
from ...metrics import mean_sink_mass
from ...models.capabilities import Capabilities, check
from ...models.prompts import Prompts
from ...probes import KeyMass, PositionValues, ResidualPeaks, SinkScores, ValueNorms
from ...probes.patterns import ROW_PERMUTED, MeanPatterns, PatternReader
from ...runner.config import ExperimentConfig
from ...stats.nulls import gaussian_peak_ratio, uniform_sink_mass, uniform_sink_scores

TRAITS = ("sink_mass", "value_drain", "spike", "largest_column")
LATER = "later_position"
Values = Float[np.ndarray, " prompt"]


class Other(NamedTuple):
    """What a trait is set against.

    Attributes:
        name: What it is: `later_position`, `row_permuted` or `random_weights`.
        kind: Of its row: `control` or `null`.
        values: One number a prompt, mean over draws.
        null: What no mechanism would give there.
        own: What it is compared with: the trait, or for a later spike that at position 0.
        own_null: The null of that.
        draws: Draws that were averaged.
    """

    name: str
    kind: str
    values: Values
    null: float | Values
    own: Values
    own_null: float | Values
    draws: int


class Trait(NamedTuple):
    """One trait of one model, by prompt.

    Attributes:
        values: One number a prompt.
        null: What no mechanism would give; one number a prompt where each has its own.
        unit: The unit.
        side: Where the trait lies once it has appeared: 1 above the null, -1 below, 0 either.
        others: What it is set against.
    """

    values: Values
    null: float | Values
    unit: str
    side: int
    others: tuple[Other, ...] = ()


def read_traits(
    model: HookedModel, prompts: Prompts, config: ExperimentConfig, wanted: Sequence[str]
) -> dict[str, Trait]:
    """The traits of one model, in one forward."""
    capabilities, length = check(model), prompts.length
    sinks, norms, peaks = SinkScores(model), ValueNorms(model), ResidualPeaks(model)
    evaluate(model, prompts, [], [], probes=[sinks, norms, peaks], **config.for_engine())
    scores, values, ratio = sinks.compute(), norms.compute(), peaks.compute().ratio
    half = length // 2 + 1
    uniform = [
        uniform_sink_scores(length, window=window, causal=capabilities.causal)[:half].max()
        for window in _windows(capabilities, length)
    ]
    columns = scores.scores.mean(2)[..., :half].amax(-1).mean(1)
    entries = ratio.shape[1] * length * int(model.cfg.d_model)
    attention = "share of attention"
    traits = {
        "sink_mass": Trait(
            _array(mean_sink_mass(scores)), _uniform_mass(capabilities, length, 0), attention, 1
        ),
        "value_drain": Trait(
            _array((values.position0 / values.others).flatten(1).mean(1)),
            1.0,
            "times later positions",
            -1,
        ),
        "spike": Trait(_array(ratio.amax(1)), gaussian_peak_ratio(entries), "times the median", 1),
        "largest_column": Trait(_array(columns), float(np.mean(uniform)), attention, 1),
    }
    return {name: traits[name] for name in wanted}


def with_others(
    traits: Mapping[str, Trait], model: HookedModel, prompts: Prompts, config: ExperimentConfig
) -> tuple[dict[str, Trait], int]:
    """The traits of a model with what each is set against, and the forwards that it took.

    They stay as they are where draws is 0, or no later position is left.
    """
    places = control_positions(prompts.length, config.draws, config.seed)
    others: dict[str, Other] = {}
    forwards = 0
    if places and traits.keys() & {"sink_mass", "value_drain", "spike"}:
        others |= _at_later_positions(traits, model, prompts, config, places)
        forwards += 1
    if config.draws and "largest_column" in traits:
        others["largest_column"] = _with_permuted_rows(
            traits["largest_column"], model, prompts, config
        )
        forwards += 1
    found = {
        name: trait._replace(others=(others[name],)) if name in others else trait
        for name, trait in traits.items()
    }
    return found, forwards


def _at_later_positions(
    traits: Mapping[str, Trait],
    model: HookedModel,
    prompts: Prompts,
    config: ExperimentConfig,
    places: Sequence[int],
) -> dict[str, Other]:
    """The weight of a later key, its value's norm and the largest entry there, mean over draws."""
    capabilities = check(model)
    masses, norms, peaks = KeyMass(model, places), ValueNorms(model), ResidualPeaks(model)
    positions = {p: _AtPosition(model, p) for p in {0, *places}}
    reading = [probe for one in positions.values() for probe in one.probes]
    probes: list[Any] = [masses, norms, peaks, *reading]
    evaluate(model, prompts, [], [], probes=probes, **config.for_engine())
    received, usual, medians = masses.compute(), norms.compute().others, peaks.compute().median
    mass_null = np.mean([_uniform_mass(capabilities, prompts.length, p) for p in places])
    spike_null = gaussian_peak_ratio((capabilities.n_layers + 1) * int(model.cfg.d_model))
    at_position0 = _array(positions[0].peak(medians))
    figures: dict[str, tuple[Callable[[int], Tensor], float]] = {
        "sink_mass": (lambda p: received[p].mean((1, 2)), float(mass_null)),
        "value_drain": (lambda p: positions[p].drain(usual), 1.0),
        "spike": (lambda p: positions[p].peak(medians), spike_null),
    }
    others = {}
    for name, (read, null) in figures.items():
        if name in traits:
            values = _array(torch.stack([read(p) for p in places]).mean(0))
            own, own_null = traits[name].values, traits[name].null
            if name == "spike":  # whose largest entry may lie anywhere
                own, own_null = at_position0, spike_null
            others[name] = Other(LATER, "control", values, null, own, own_null, len(places))
    return others


def _with_permuted_rows(
    trait: Trait, model: HookedModel, prompts: Prompts, config: ExperimentConfig
) -> Other:
    """The largest column of attention whose rows are permuted, mean over draws."""
    reader = PatternReader(
        model, check(model), prompts.tokens, draws=config.draws, seed=config.seed
    )
    columns = MeanPatterns(model, reader, [largest_column], uniform=False)
    evaluate(model, prompts, [], [], probes=[columns], **config.for_engine())
    drawn = _array(columns.compute()[ROW_PERMUTED, "largest"].mean((1, 2)))
    return Other(ROW_PERMUTED, "null", drawn, trait.null, trait.values, trait.null, config.draws)


def largest_column(pattern: Tensor, visible: Tensor, layer: int) -> dict[str, Tensor]:
    """The sink score of the most attended key among those up to T / 2."""
    length = pattern.shape[-1]
    scores = pattern.tril().sum(-2) / torch.arange(length, 0, -1, device=pattern.device)
    return {"largest": scores[..., : length // 2 + 1].amax(-1)}


class _AtPosition:
    """Values and streams at one position, reduced to one number a prompt."""

    def __init__(self, model: HookedModel, position: int) -> None:
        layers = range(int(model.cfg.n_layers))
        self._values = PositionValues(model, ["value"], layers, position)
        self._streams = PositionValues(model, ["residual"], layers, position)
        self._last = PositionValues(model, ["resid_post"], layers[-1:], position)
        self.probes = [self._values, self._streams, self._last]

    def drain(self, usual: Float[Tensor, "prompt layer head"]) -> Float[Tensor, " prompt"]:
        """Norm of the value over the mean one of later positions."""
        values = self._values.compute().values()
        here = torch.stack([one.float().norm(dim=-1) for one in values], 1)
        return (here / usual).flatten(1).mean(1)

    def peak(self, medians: Float[Tensor, "prompt site"]) -> Float[Tensor, " prompt"]:
        """The largest entry over the median one of the same stream."""
        streams = [*self._streams.compute().values(), *self._last.compute().values()]
        here = torch.stack([one.float().abs().amax(-1) for one in streams], 1)
        return (here / medians).amax(1)


def _windows(capabilities: Capabilities, length: int) -> list[int | None]:
    """By layer how many keys a query sees, None for all of them."""
    return [None if w is None or w >= length else w for w in capabilities.windows]


def _uniform_mass(capabilities: Capabilities, length: int, key: int) -> float:
    """The weight of a key over the queries after it under uniform attention, mean over layers."""
    windows = _windows(capabilities, length)
    found = [
        uniform_sink_mass(length, window=window, causal=capabilities.causal, key=key)
        for window in windows
    ]
    return float(np.mean(found))


def _array(values: Tensor) -> Values:
    return np.asarray(values.double())
