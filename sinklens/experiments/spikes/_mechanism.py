"""What makes a spike a sink: measurements on spikes, after Sun et al. 2026 (2603.05498).

Each row stands beside its null; what is measured is said in `spike_sink_decoupling`. Figures of
weights or of first tokens have no spread over prompts, and so no interval.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...core.labels import stage_name
from ...core.seeds import seeded
from ...functional.quadratic_form import (
    GatedWeights,
    channel_norms,
    leading_eigenpair,
    symmetric_norm,
)
from ...hooks.position0 import MEAN_TOKENS
from ...models import ordinary_tokens
from ...models.weights import gated_weights
from ...probes import ChannelShares, GatedReads, PositionValues, Probe
from ...probes.channel_energy import ChannelShareValues, GatedReadValues
from ...probes.positions import PartValues, first_token_values
from ...probes.stream_entries import EntryValues
from ...results.estimates import Sample
from ...results.record import Record
from ...results.wording import listed, number
from ...runner.run import Run
from ...stats.nulls import gaussian_exceeds
from ._search import Spikes

OTHER_CHANNELS = 20
ONE_PROMPT = "it stands beside a later position over prompts, and there is one prompt"


def add_mechanism(run: Run[Any], spikes: Spikes, entries: EntryValues) -> None:
    """Sparsity, constancy, and the quadratic form of the step-up block.

    Args:
        run: The run.
        spikes: Where the spikes are.
        entries: The massive entries of the residual stream behind the step-up.
    """
    at_spikes = torch.zeros(run.prompts.tokens.shape, dtype=torch.bool)
    at_spikes[entries.massive.prompt, entries.massive.position] = True
    block, sites = _around_the_step(spikes)
    later = PositionValues(run.model, sites, [block], run.prompts.length // 2)
    channels = entries.massive.channel.unique().tolist()
    shares = ChannelShares(run.model, spikes.layer, channels or spikes.channels)
    probes: list[Probe] = [later, shares]
    weights, no_form = _step_up_weights(run, spikes)
    if weights is None:
        run.left_out("quadratic_form", no_form)
    else:
        probes.append(_add_quadratic_form(run, spikes, weights))
    read = run.read(*probes)
    _add_constancy(run, spikes, entries, read[0])
    if bool((at_spikes.any(1) & ~at_spikes.all(1)).any()):
        energy: ChannelShareValues = read[1]
        # The channels were chosen at these tokens; elsewhere each token chooses its own.
        sparsity = _at_spikes(energy.share, energy.largest, at_spikes)
        run.add("sparsity", "spike_tokens", sparsity)
    if weights is not None:
        _add_gated_reads(run, spikes, read[2], at_spikes)


def _at_spikes(
    here: Float[Tensor, "prompt pos"],
    elsewhere: Float[Tensor, "prompt pos"],
    at_spikes: Bool[Tensor, "prompt pos"],
) -> Sample:
    """The mean at spike tokens beside that at the others, in prompts that have both."""
    both = at_spikes.any(1) & ~at_spikes.all(1)
    inside = (here * at_spikes).sum(1) / at_spikes.sum(1).clamp(min=1)
    outside = (elsewhere * ~at_spikes).sum(1) / (~at_spikes).sum(1).clamp(min=1)
    inside, outside = (torch.where(both, part, part[both].mean()) for part in (inside, outside))
    return Sample(inside, outside)


def _around_the_step(spikes: Spikes) -> tuple[int, list[str]]:
    """A block, and the sites at which the stream before the step-up and behind it is read."""
    # What leaves a block enters the next one, and behind the last one there is no other.
    return max(0, spikes.layer - 1), ["residual", *(["resid_post"] if spikes.layer else [])]


def _add_constancy(run: Run[Any], spikes: Spikes, entries: EntryValues, later: PartValues) -> None:
    """How alike position 0 is over first tokens, beside the likeness of a later position.

    And which share of these tokens spikes at all: where few do, constancy says nothing of spikes.
    The median of a single position is another than that of a prompt; the prompts' is taken.
    """
    random = seeded(run.config.seed, "constancy")
    tokens = torch.from_numpy(random.choice(ordinary_tokens(run.model).numpy(), MEAN_TOKENS))
    block, sites = _around_the_step(spikes)
    first = first_token_values(run.model, tokens, sites, [block])
    if len(run.prompts) > 1:
        for name, site in (("position0:before", sites[0]), ("position0", sites[-1])):
            alike, null = (mean_cosine(values[site, block]) for values in (first, later))
            run.add("constancy", name, Sample(alike, null))
    else:
        run.left_out("constancy", ONE_PROMPT)
    size = first[sites[-1], block].abs()
    criterion = spikes.criteria[spikes.criterion]
    median = entries.median.mean()
    if criterion.median == "token_median":
        median = size.median(-1).values
    spiking = size.amax(-1) >= (criterion.times * median).clamp_min(criterion.magnitude)
    times = max(criterion.times, criterion.magnitude / float(median.mean()))
    share = Sample(float(spiking.float().mean()), gaussian_exceeds(size.shape[-1], times))
    run.add("first_token_spikes", "position0", share)


def mean_cosine(vectors: Float[Tensor, "vector channel"]) -> float:
    """The mean cosine over pairs of different vectors: (|sum of units|^2 - n) / (n (n - 1))."""
    units = torch.nn.functional.normalize(vectors.double(), dim=-1)
    count = len(units)
    return float((units.sum(0).square().sum() - count) / (count * (count - 1)))


def _step_up_weights(run: Run[Any], spikes: Spikes) -> tuple[GatedWeights | None, str]:
    """The gated MLP that writes the spike, or why there is none."""
    what, most = stage_name(spikes.step_up), "writes most of the leading entry"
    if spikes.step_up == 0 or spikes.step_up % 2:
        return None, f"the {what} {most}, and only a gated MLP has such a form"
    weights = gated_weights(run.model, (spikes.step_up - 1) // 2)
    why = f"{what}, which {most}, has no gate, has several experts, or is changed by a hook"
    return weights, "" if weights else why


def _add_quadratic_form(run: Run[Any], spikes: Spikes, weights: GatedWeights) -> GatedReads:
    """The form of every spike channel beside other channels, and what reads its eigenvectors."""
    norms = channel_norms(weights)
    run.keep("quadratic_norms", norms.float(), "channel")
    others = np.setdiff1d(np.arange(len(norms)), spikes.channels)
    random = seeded(run.config.seed, "other channels")
    others = random.choice(others, min(OTHER_CHANNELS, len(others)), replace=False)

    def leading(channel: int) -> tuple[float, float, Tensor]:
        value, vector = leading_eigenpair(weights, channel)
        return abs(value), value**2 / symmetric_norm(weights, channel) ** 2, vector

    elsewhere = [leading(int(channel))[:2] for channel in others]
    usual, usual_share = map(float, np.median(elsewhere, axis=0))
    vectors = []
    for channel in spikes.channels:
        value, share, vector = leading(channel)
        vectors.append(vector)
        name = f"channel {channel}"
        norm = Sample(float(norms[channel]), float(norms.median()))
        run.add("quadratic_norm", name, norm)
        run.add("leading_eigenvalue", name, Sample(value, usual))
        run.add("leading_share", name, Sample(share, usual_share))
    layer = (spikes.step_up - 1) // 2
    return GatedReads(layer, weights, spikes.channels, torch.stack(vectors))


def quadratic_norms(result: Record) -> Iterator[str]:
    """The norm of the form of each spike channel, against that of the median channel."""
    rows = [row for row in result.effects if row.metric == "quadratic_norm"]
    if rows:
        measure = result.measure("quadratic_norm")
        norms = [f"{number(measure, row.value)} in {row.condition}" for row in rows]
        yield (
            f"Norm of the step-up block's quadratic form: {listed(norms)}, against "
            f"{number(measure, rows[0].baseline)} in the median channel."
        )


def _add_gated_reads(
    run: Run[Any], spikes: Spikes, reads: GatedReadValues, at_spikes: Bool[Tensor, "prompt pos"]
) -> None:
    """How the step-up block's inputs lie to the eigenvectors, and what the form predicts."""
    apart = bool((at_spikes.any(1) & ~at_spikes.all(1)).any())
    lead = torch.arange(len(run.prompts)), spikes.positions
    for place, channel in enumerate(spikes.channels):
        name = f"channel {channel}"
        if apart:
            squares = reads.cosine[..., place] ** 2
            run.add("alignment", name, _at_spikes(squares, squares, at_spikes))
        written, predicted = reads.written[..., place][lead], reads.predicted[..., place]
        ordinary = (predicted * ~at_spikes).sum(1) / (~at_spikes).sum(1).clamp(min=1)
        share = Sample(predicted[lead] / written, ordinary / written)
        run.add("quadratic_prediction", name, share)
    coords = {"channel": spikes.channels}
    run.keep("eigenvector_cosine", reads.cosine.mean(0), "position channel", **coords)
