"""What makes a spike a sink: measurements on spikes that were found.

Each row stands beside its null; what is measured is said in `spike_sink_decoupling`. Figures of
weights or of first tokens have no spread over prompts: their rows repeat one number and have no
interval.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ...core.labels import stage_name
from ...core.protocol import HookedModel
from ...core.seeds import seeded
from ...engine import evaluate
from ...functional.quadratic_form import (
    GatedWeights,
    channel_norms,
    gated_weights,
    leading_eigenpair,
    symmetric_norm,
)
from ...hooks.position0 import MEAN_TOKENS
from ...models import ordinary_tokens
from ...models.prompts import Prompts
from ...probes import ChannelShares, GatedReads, PositionValues, Probe
from ...probes.positions import first_token_values
from ...probes.stream_entries import EntryValues
from ...results.record import Array
from ...runner.config import ExperimentConfig
from ...runner.old_comparison import constant_row
from ...stats.effects import Row, paired_row
from ...stats.nulls import gaussian_exceeds
from ._search import Spikes

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
    block, sites = _around_the_step(spikes)
    middle = PositionValues(model, sites, [block], prompts.length // 2)
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
    # Some prompt has spikes, and not at all of its tokens.
    apart = bool((at_spikes.any(1) & ~at_spikes.all(1)).any())
    if apart:
        read = shares.compute()
        # The channels were chosen at these tokens; elsewhere each token chooses its own.
        rows.append(_apart("sparsity", "spike_tokens", read.share, at_spikes, read.largest))
    rows += _constancy(model, prompts, config, spikes, entries, middle.compute())
    if gated is not None:
        reads = gated.compute()
        rows += [
            constant_row(metric, f"channel {channel}", value, null, unit, prompts=len(prompts))
            for channel, figures in found.items()
            for metric, (value, null, unit) in figures.items()
        ]
        for number, channel in enumerate(found):
            name = f"channel {channel}"
            if apart:
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


def _around_the_step(spikes: Spikes) -> tuple[int, list[str]]:
    """A block, and the sites at which the stream before the step-up and behind it is read."""
    # What leaves a block enters the next one, and behind the last one there is no other.
    return max(0, spikes.layer - 1), ["residual", *(["resid_post"] if spikes.layer else [])]


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
    block, sites = _around_the_step(spikes)
    first = first_token_values(model, tokens, sites, [block])
    for name, site in (("position0:before", sites[0]), ("position0", sites[-1])):
        value = mean_cosine(first[site, block])
        null = mean_cosine(later[site, block]) if len(prompts) > 1 else 0.0
        yield constant_row("constancy", name, value, null, "cosine", prompts=len(prompts))
    size = first[sites[-1], block].abs()
    criterion = spikes.criteria[spikes.criterion]
    median = entries.median.mean()
    if criterion.median == "token_median":
        median = size.median(-1).values
    spiking = size.amax(-1) >= (criterion.times * median).clamp_min(criterion.magnitude)
    share = float(spiking.float().mean())
    times = max(criterion.times, criterion.magnitude / float(median.mean()))
    null = gaussian_exceeds(size.shape[-1], times)
    named = ("first_token_spikes", "position0")
    yield constant_row(*named, share, null, "share of tokens", prompts=len(prompts))


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
    why = f"{what}, which writes most of the spike, has no gate, or several experts"
    return weights, "" if weights else why


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
