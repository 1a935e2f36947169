"""What makes a spike a sink: measurements on spikes that were found, and on matched models.

Each row stands beside its null; what is measured is said in `spike_sink_decoupling`. Figures of
weights or of first tokens have no spread over prompts: their rows repeat one number and have no
interval.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from .. import zoo
from ..capabilities import check
from ..controls import (
    gaussian_exceeds,
    gaussian_peak_ratio,
    uniform_sink_mass,
    uniform_sink_scores,
)
from ..effects import Row, paired_row
from ..engine import evaluate
from ..errors import SinklensError, UsageError
from ..hooks.intervention import seeded
from ..hooks.position0 import MEAN_TOKENS
from ..metrics import SINK_THRESHOLDS, mean_sink_mass, sink_rate
from ..models import Origin, load_like, ordinary_tokens, origin, weights_hash
from ..probes import (
    ChannelShares,
    GatedReads,
    PositionValues,
    Probe,
    ResidualPeaks,
    SinkScores,
)
from ..probes.entries import EntryValues
from ..probes.positions import first_token_values
from ..probes.sub_blocks import stage_name
from ..protocol import HookedModel
from ..quadratic_form import (
    GatedWeights,
    channel_norms,
    gated_weights,
    leading_eigenpair,
    symmetric_norm,
)
from ..results import Array
from ..text import Prompts
from .registry import ExperimentConfig
from .spike_search import Spikes

OTHER_CHANNELS = 20


def spike_nature(
    model: HookedModel,
    prompts: Prompts,
    config: ExperimentConfig,
    spikes: Spikes,
    entries: EntryValues,
) -> tuple[list[Row], dict[str, Array], int, str]:
    """Sparsity, constancy, and the quadratic form of the step-up block.

    Returns:
        Rows, arrays, how many forwards of the batch it took, and why there is no quadratic form.
    """
    at_spikes = torch.zeros(prompts.tokens.shape, dtype=torch.bool)
    at_spikes[entries.massive.prompt, entries.massive.position] = True
    rows: list[Row] = []
    arrays: dict[str, Array] = {}
    middle = PositionValues(model, ["residual"], _streams(model, spikes), prompts.length // 2)
    channels = entries.massive.channel.unique().tolist()
    shares = ChannelShares(model, spikes.layer, channels or spikes.channels)
    probes: list[Probe] = [middle, shares]
    weights, no_form = _step_up_weights(model, spikes)
    gated: GatedReads | None = None
    found: dict[int, dict[str, tuple[float, float, str]]] = {}
    if weights is not None:
        gated, found = _gated(weights, config, spikes)
        arrays["quadratic_norms"] = Array(channel_norms(weights).float(), ("channel",))
        probes.append(gated)
    evaluate(model, prompts, [], [], probes=probes, **config.for_engine())
    if bool(at_spikes.any()) and not bool(at_spikes.all()):
        read = shares.compute()
        # The channels were chosen at these tokens; elsewhere each token chooses its own.
        rows.append(_apart("sparsity", "spike_tokens", read.share, at_spikes, read.largest))
    rows += _constancy(model, prompts, config, spikes, entries, middle.compute())
    if gated is not None:
        reads = gated.compute()
        rows += [
            _constant(prompts, metric, f"channel {channel}", value, null, unit)
            for channel, figures in found.items()
            for metric, (value, null, unit) in figures.items()
        ]
        for number, channel in enumerate(found):
            name = f"channel {channel}"
            if bool(at_spikes.any()) and not bool(at_spikes.all()):
                squares = reads.cosine[..., number] ** 2
                rows.append(_apart("alignment", name, squares, at_spikes))
            lead = torch.arange(len(prompts)), spikes.positions
            written, predicted = reads.written[..., number][lead], reads.predicted[..., number]
            ordinary = (predicted * ~at_spikes).sum(1) / (~at_spikes).sum(1).clamp(min=1)
            rows.append(
                _row(
                    "quadratic_prediction",
                    name,
                    predicted[lead] / written,
                    (ordinary / written).double().numpy(),
                    "share of what is written",
                )
            )
        cosines = reads.cosine.mean(0)
        arrays["eigenvector_cosine"] = Array(cosines, ("position", "channel"))
    return rows, arrays, 1, no_form


def _row(metric: str, condition: str, values: Tensor, null: float | np.ndarray, unit: str) -> Row:
    """A measurement beside its null."""
    numbers = values.double().numpy()
    nulls = np.broadcast_to(np.asarray(null, float), numbers.shape)
    return paired_row(metric, condition, "measurement", numbers, nulls, unit=unit)


def _constant(
    prompts: Prompts, metric: str, condition: str, value: float, null: float, unit: str
) -> Row:
    """A figure that does not depend on the prompts."""
    row = _row(metric, condition, torch.full((len(prompts),), value).double(), null, unit)
    return replace(row, effect=replace(row.effect, ci_low=None, ci_high=None))


def _apart(
    metric: str, condition: str, values: Tensor, chosen: Tensor, elsewhere: Tensor | None = None
) -> Row:
    """The mean over chosen positions beside that over the others, in prompts that have both.

    What stands at the others may be another figure, `elsewhere`.
    """
    others = values if elsewhere is None else elsewhere
    both = chosen.any(1) & ~chosen.all(1)
    inside = (values * chosen).sum(1) / chosen.sum(1).clamp(min=1)
    outside = (others * ~chosen).sum(1) / (~chosen).sum(1).clamp(min=1)
    inside, outside = (torch.where(both, part, part[both].mean()) for part in (inside, outside))
    return _row(metric, condition, inside, outside.double().numpy(), "share")


def _streams(model: HookedModel, spikes: Spikes) -> list[int]:
    """The blocks that the stream enters before and behind the step-up."""
    last = int(model.cfg.n_layers) - 1
    return sorted({max(0, spikes.layer - 1), min(spikes.layer, last)})


def _constancy(
    model: HookedModel,
    prompts: Prompts,
    config: ExperimentConfig,
    spikes: Spikes,
    entries: EntryValues,
    later: dict[tuple[str, int], Tensor],
) -> Iterator[Row]:
    """How alike position 0 is over first tokens, beside the likeness of a later position.

    And which share of these tokens spikes at all: where few do, constancy says nothing of spikes.
    The median of a single position is another than that of a prompt; the prompts' is taken.
    """
    random = seeded(config.seed, "constancy")
    tokens = torch.from_numpy(random.choice(ordinary_tokens(model).numpy(), MEAN_TOKENS))
    layers = _streams(model, spikes)
    first = first_token_values(model, tokens, ["residual"], layers)
    for name, layer in (("position0:before", layers[0]), ("position0", layers[-1])):
        value = mean_cosine(first["residual", layer])
        null = mean_cosine(later["residual", layer]) if len(prompts) > 1 else 0.0
        yield _constant(prompts, "constancy", name, value, null, "cosine")
    size = first["residual", layers[-1]].abs()
    criterion = spikes.criteria[spikes.criterion]
    median = entries.median.mean()
    if criterion.median == "token_median":
        median = size.median(-1).values
    spiking = size.amax(-1) >= (criterion.times * median).clamp_min(criterion.magnitude)
    share = float(spiking.float().mean())
    times = max(criterion.times, criterion.magnitude / float(median.mean()))
    null = gaussian_exceeds(size.shape[-1], times)
    yield _constant(prompts, "first_token_spikes", "position0", share, null, "share of tokens")


def mean_cosine(vectors: Tensor) -> float:
    """The mean cosine over pairs of different vectors: (|sum of units|^2 - n) / (n (n - 1))."""
    units = torch.nn.functional.normalize(vectors.double(), dim=-1)
    count = len(units)
    return float((units.sum(0).square().sum() - count) / (count * (count - 1)))


def _step_up_weights(model: HookedModel, spikes: Spikes) -> tuple[GatedWeights | None, str]:
    """The gated MLP that writes the spike, or why there is none."""
    what = stage_name(spikes.step_up)
    if spikes.step_up == 0 or spikes.step_up % 2:
        return None, f"the {what} writes most of the spike, and only a gated MLP has such a form"
    weights = gated_weights(model, (spikes.step_up - 1) // 2)
    return weights, "" if weights else f"{what}, which writes most of the spike, has no gate"


def _gated(
    weights: GatedWeights, config: ExperimentConfig, spikes: Spikes
) -> tuple[GatedReads, dict[int, dict[str, tuple[float, float, str]]]]:
    """The quadratic form of the step-up block for the spike channels, beside other channels."""
    layer = (spikes.step_up - 1) // 2
    norms = channel_norms(weights)
    others = np.setdiff1d(np.arange(len(norms)), spikes.channels)
    random = seeded(config.seed, "other channels")
    others = random.choice(others, min(OTHER_CHANNELS, len(others)), replace=False)

    def leading(channel: int) -> tuple[float, float, Tensor]:
        value, vector = leading_eigenpair(weights, channel)
        return value, value**2 / symmetric_norm(weights, channel) ** 2, vector

    elsewhere = [leading(int(channel)) for channel in others]
    usual = float(np.median([abs(value) for value, _, _ in elsewhere]))
    null = float(np.median([share for _, share, _ in elsewhere]))
    found, vectors = {}, []
    for channel in spikes.channels:
        value, own, vector = leading(channel)
        vectors.append(vector)
        found[channel] = {
            "quadratic_norm": (float(norms[channel]), float(norms.median()), "norm"),
            "leading_eigenvalue": (abs(value), usual, "size"),
            "leading_share": (own, null, "share of the squared norm"),
        }
    return GatedReads(layer, weights, spikes.channels, torch.stack(vectors)), found


def matched_models(
    model: HookedModel, prompts: Prompts, config: ExperimentConfig, sources: Sequence[str]
) -> tuple[list[Row], dict[str, str]]:
    """Spike and sinks of other models on the same prompts, every seed of a shipped one.

    Returns:
        Rows, and the names of all models with a hash of their weights.

    Raises:
        SinklensError: It is not known where the model came from, or another model reads tokens
            differently.
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
        if source not in zoo.names():
            others.append((source, load_like(model, source)))
            continue
        seeds = zoo.seeds(source)
        ended = own.step in (None, zoo.card(source)["recipe"]["steps"])
        for seed in seeds:
            name = source if len(seeds) == 1 else f"{source}, seed {seed}"
            mine = (own.kind, own.name, own.seed or seeds[0]) == ("shipped", source, seed)
            if not (mine and ended):
                others.append((name, load_like(model, source, seed=seed)))
    rows = [
        row for name, other in others for row in _one_model(name, other, prompts, config, model)
    ]
    return rows, {name: weights_hash(other) for name, other in others}


def _full_name(own: Origin) -> str:
    """A model's name, and which of its checkpoints it is."""
    last = own.step if own.kind != "shipped" else zoo.card(own.name)["recipe"]["steps"]
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
    yield _row("peak_ratio", name, ratio.amax(1), gaussian, "times the median")
    unit = "share of attention"
    yield _row("sink_mass", name, mean_sink_mass(scores), float(np.mean(masses)), unit)
    yield _row("sink_rate", name, sink_rate(scores), rate, "share of heads")


def _reads_alike(one: HookedModel, other: HookedModel) -> bool:
    """Whether two models give the same ids to the same text."""
    if one.tokenizer is None or other.tokenizer is None:
        return int(one.cfg.d_vocab) == int(other.cfg.d_vocab)
    return bool(one.tokenizer.get_vocab() == other.tokenizer.get_vocab())
