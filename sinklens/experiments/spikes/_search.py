"""Find a model's massive activations without being told where: stages, channels, sub-blocks.

The peak is the stage whose largest entry, over the median of its layer, is largest on average over
prompts. Each prompt's leading entry is its largest one there; the spike channels are those that
lead or follow it in most prompts. Following the leading entry through the model gives what every
sub-block writes there:

    share_b = (stream after b - stream before b) / plateau,   plateau = the entry at the peak

A sub-block steps up if its mean share is at least 0.5, and steps down if it is at most -0.5. The
rule is sinklens's own: 2603.05498 names step-up and step-down blocks without one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...core.errors import SinklensError
from ...core.labels import stage_name
from ...functional.massive import Criterion
from ...probes.residual_trace import PeakTrace, PeakTraceValues, Written
from ...results.estimates import Sample
from ...runner.run import Run
from ...stats.nulls import (
    gaussian_exceeds,
    gaussian_peak_kurtosis,
    gaussian_peak_ratio,
    largest_share,
)

STEP_SHARE = 0.5
NAMED_SHARE = 0.1  # sub-blocks that write less of the peak are in the arrays only
CHANNELS = 3
CRITERIA = ("absolute:layer_median", "absolute:token_median", "scale_free")


@dataclass(frozen=True)
class Spikes:
    """Where the massive activations of a model are.

    Attributes:
        trace: The largest entries after every sub-block.
        criteria: The criteria that were looked at, by name.
        criterion: The name of the one that decides what counts as massive.
        peak: The stage at which the largest entry stands out most.
        positions: By prompt, the position of the leading entry.
        channels: The channels that lead, most frequent first.
        written: The residual stream's entries at the leading position, after every sub-block.
        shares: By prompt, what every sub-block writes of the leading entry's plateau.
    """

    trace: PeakTraceValues
    criteria: dict[str, Criterion]
    criterion: str
    peak: int
    positions: Int[Tensor, " prompt"]
    channels: list[int]
    written: Float[Tensor, "prompt stage channel"]
    shares: Float[Tensor, "prompt stage"]

    @property
    def step_up(self) -> int:
        """The stage after the sub-block that writes most of the peak (0 for the embedding)."""
        return int(self.shares[:, : self.peak + 1].mean(0).argmax())

    @property
    def step_down(self) -> int | None:
        """The stage after the sub-block that takes most away after the peak, if one does."""
        after = self.shares[:, self.peak + 1 :].mean(0)
        return self.peak + 1 + int(after.argmin()) if len(after) else None

    @property
    def layer(self) -> int:
        """The first block that the whole spike enters: its input is intervened on."""
        return (self.step_up + 1) // 2

    def described(self) -> dict[str, Any]:
        """What was found, by its name among the findings of a result."""
        down = self.step_down
        return {
            "criterion": self.criterion,
            "peak_after": stage_name(self.peak),
            "peak_size": float(self.trace.magnitude[:, self.peak, 0].mean()),
            "channels": self.channels,
            "positions": {
                str(position): count
                for position, count in Counter(sorted(self.positions.tolist())).items()
            },
            "step_up": stage_name(self.step_up),
            "step_down": None if down is None else stage_name(down),
            "writers": {
                stage_name(stage): share
                for stage, share in enumerate(self.shares.mean(0).tolist())
                if stage and abs(share) >= NAMED_SHARE
            },
        }


def criteria(
    *, magnitude: float | int = 100.0, times: float | int = 1000.0, scale_free: float | int = 50.0
) -> dict[str, Criterion]:
    """What may count as massive, by name, in the order of preference.

    Args:
        magnitude: Least size under the absolute criteria.
        times: Least size over the median under the absolute criteria.
        scale_free: Least size over the layer's median under the scale-free criterion.
    """
    layer, token, free = CRITERIA
    return {
        layer: Criterion(magnitude, times),
        token: Criterion(magnitude, times, "token_median"),
        free: Criterion(0.0, scale_free),
    }


def find_spikes(
    run: Run[Any], candidates: Mapping[str, Criterion], chosen: str | None = None
) -> Spikes:
    """Run the prompts twice and look.

    Args:
        run: The run, on a model whose sub-blocks add to the residual stream.
        candidates: What may count as massive, by name, in the order of preference.
        chosen: The criterion that decides; None takes the first that any prompt meets, and the last
            if none does.

    Raises:
        SinklensError: The model norms the residual stream itself, or most of its stream is 0.
    """
    top = min(CHANNELS, int(run.model.cfg.d_model))
    trace: PeakTraceValues
    (trace,) = run.read(PeakTrace(run.model, list(candidates.values()), top=top))
    if not bool(trace.layer_median.all()) or not bool(trace.token_median.all()):
        raise SinklensError(
            "the median entry of the residual stream is 0 somewhere, as in models whose weights "
            "were set by hand, so that no entry can be compared with it; probes.ResidualPeaks "
            "reads the largest entries of any model"
        )
    met = [name for number, name in enumerate(candidates) if trace.massive[..., number].any()]
    peak = int((trace.magnitude[..., 0] / trace.layer_median).mean(0).argmax())
    positions = trace.position[:, peak, 0].long()
    channels = _leading_channels(trace, peak)
    # Each prompt's leading entry may lie in a channel of its own.
    leads, which = trace.channel[:, peak, 0].long().unique(return_inverse=True)
    followed = list(dict.fromkeys([*leads.tolist(), *channels]))
    (written,) = run.read(Written(run.model, positions, followed))
    entry = written[torch.arange(len(written)), :, which]
    differences = torch.cat([entry[:, :1], entry.diff(dim=1)], 1)
    return Spikes(
        trace=trace,
        criteria=dict(candidates),
        criterion=chosen or (met or list(candidates))[0 if met else -1],
        peak=peak,
        positions=positions,
        channels=channels,
        written=written[..., [followed.index(channel) for channel in channels]],
        shares=differences / entry[:, peak : peak + 1],
    )


def _leading_channels(trace: PeakTraceValues, peak: int) -> list[int]:
    """The channels that lead at the peak, or hold a large entry beside the leading one."""
    prompts = len(trace.position)
    # A channel counts where it holds a large entry at the leading position, not at another one.
    together = trace.position[:, peak] == trace.position[:, peak, :1]
    seen = Counter(trace.channel[:, peak][together].long().tolist())
    leading = Counter(trace.channel[:, peak, 0].long().tolist())
    frequent = [c for c, count in seen.items() if count >= prompts / 2 or c in leading]
    return sorted(frequent, key=lambda c: (-leading[c], -seen[c], c))[:CHANNELS]


def add_search(run: Run[Any], spikes: Spikes) -> None:
    """The rows of the peak and the steps, each beside its null, and the arrays of the search.

    The peak is the largest entry of all stages and positions; its null is chosen likewise, the
    stages taken as independent.
    """
    trace, peak, width = spikes.trace, spikes.peak, int(run.model.cfg.d_model)
    looked_at = spikes.shares.shape[1] * run.prompts.length
    for name in ("layer_median", "token_median"):
        ratio = trace.magnitude[:, peak, 0] / getattr(trace, name)[:, peak]
        run.add("peak_ratio", name, Sample(ratio, gaussian_peak_ratio(looked_at * width)))
    null = gaussian_peak_kurtosis(looked_at, width)
    run.add("kurtosis", "peak", Sample(trace.kurtosis[:, peak], null))
    first = (spikes.positions == 0).float()
    run.add("peak_at_position0", "peak", Sample(first, 1 / run.prompts.length))
    for number, (name, criterion) in enumerate(spikes.criteria.items()):
        typical = float(getattr(trace, criterion.median)[:, peak].mean())
        times = max(criterion.times, criterion.magnitude / typical)
        massive = Sample(
            trace.massive[..., number].amax(1), gaussian_exceeds(looked_at * width, times)
        )
        run.add("massive", name, massive)
    steps = {"step_up": spikes.step_up, "step_down": spikes.step_down}
    for name, stage in steps.items():
        if stage:
            share = Sample(spikes.shares[:, stage], _broken_stick(spikes, name))
            run.add(name, stage_name(stage), share, layer=(stage - 1) // 2)
    stages = {"stage": list(map(stage_name, range(spikes.shares.shape[1])))}
    ranks = [f"rank {rank + 1}" for rank in range(trace.magnitude.shape[2])]
    run.keep("top_magnitude", trace.magnitude.mean(0), "stage rank", rank=ranks, **stages)
    for name in ("layer_median", "token_median", "kurtosis"):
        run.keep(name, getattr(trace, name).mean(0), "stage", **stages)
    run.keep("written_share", spikes.shares.mean(0), "stage", **stages)
    written = spikes.written.mean(0)
    run.keep("spike_channels", written, "stage channel", channel=spikes.channels, **stages)


def _broken_stick(spikes: Spikes, name: str) -> float:
    """The largest of random shares, on average, of all that is written or removed again."""
    if name == "step_up":
        return largest_share(spikes.peak + 1)
    after = spikes.shares[:, spikes.peak + 1 :]
    return min(0.0, float(after.sum(1).mean())) * largest_share(after.shape[1])
