"""Find a model's massive activations without being told where: stages, channels, sub-blocks.

The peak is a ratio: the stage whose largest entry, over the median of its layer, is largest on
average over prompts. Each prompt's leading entry is its largest one there; the spike channels are
those that lead or follow it in most prompts. Following the leading entry through the model gives
its steps (`_steps`), of which the one with the peak is the main one. An earlier spike in another
channel or at another position than the leading entry's is not looked for.

In each step the criterion decides that is asked for, or else the first that any prompt meets where
the step enters a block.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...core.errors import SinklensError
from ...core.labels import stage_name
from ...functional.massive import Criterion
from ...probes.residual_trace import PeakTrace, PeakTraceValues, Written
from ...probes.stream_entries import EntryValues, StreamEntries
from ...results.estimates import Sample
from ...runner.run import Run
from ...stats.nulls import (
    gaussian_exceeds,
    gaussian_peak_kurtosis,
    gaussian_peak_ratio,
)
from ._steps import Step, find_steps

CHANNELS = 3
CRITERIA = ("absolute:token_median", "absolute:layer_median", "scale_free")


@dataclass(frozen=True)
class Spikes:
    """Where the massive activations of a model are.

    Attributes:
        trace: The largest entries after every sub-block.
        criteria: The criteria that were looked at, by name.
        chosen: The name of the one that was asked for, if one was.
        steps: The steps of the leading entry, in the order of the stages.
        positions: By prompt, the position of the leading entry.
        channels: The channels that lead, most frequent first.
        written: The residual stream's entries at the leading position, after every sub-block.
    """

    trace: PeakTraceValues
    criteria: dict[str, Criterion]
    chosen: str | None
    steps: list[Step]
    positions: Int[Tensor, " prompt"]
    channels: list[int]
    written: Float[Tensor, "prompt stage channel"]

    @property
    def main(self) -> Step:
        """The step with the peak."""
        return max(self.steps, key=lambda step: step.ratio)

    @property
    def peak(self) -> int:
        """The stage at which the leading entry stands out most."""
        return self.main.peak

    @property
    def leading(self) -> list[int]:
        """The channels of the prompts' leading entries, most frequent first."""
        count = Counter(self.trace.channel[:, self.peak, 0].long().tolist())
        return sorted(count, key=lambda channel: (-count[channel], channel))

    @property
    def step_up(self) -> int:
        """The stage after the sub-block that writes most of the peak (0 for the embedding)."""
        return self.main.step_up

    @property
    def layer(self) -> int:
        """The first block that the main step enters: its input is intervened on."""
        return self.main.layer

    @property
    def layers(self) -> list[int]:
        """The blocks that steps enter first, in their order."""
        return sorted({step.layer for step in self.steps})

    @property
    def criterion(self) -> str:
        """The name of the criterion that decides what is massive in the main step."""
        return self.criterion_at(self.layer)

    def criterion_at(self, layer: int) -> str:
        """The one asked for, or the first that any prompt meets entering a block, or the last."""
        met = self.trace.massive[:, 2 * layer].any(0).tolist()
        names = list(self.criteria)
        return self.chosen or names[met.index(True) if True in met else -1]

    def described(self) -> dict[str, Any]:
        """What was found, by its name among the findings of a result."""
        steps = [
            {**step.described(), "criterion": self.criterion_at(step.layer)} for step in self.steps
        ]
        main = steps[self.steps.index(self.main)]
        of_main = ("criterion", "peak_after", "peak_size", "largest_after", "largest_size")
        return {
            **{name: main[name] for name in (*of_main, "step_up", "step_down")},
            "channels": self.channels,
            "leading_channels": self.leading,
            "positions": {
                str(position): count
                for position, count in Counter(sorted(self.positions.tolist())).items()
            },
            "steps": steps,
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
    token, layer, free = CRITERIA
    return {
        token: Criterion(magnitude, times, "token_median"),
        layer: Criterion(magnitude, times),
        free: Criterion(0.0, scale_free),
    }


def find_spikes(
    run: Run[Any], candidates: Mapping[str, Criterion], chosen: str | None = None
) -> Spikes:
    """Run the prompts twice and look.

    Args:
        run: The run, on a model whose sub-blocks add to the residual stream.
        candidates: What may count as massive, by name, in the order of preference.
        chosen: The criterion that decides; None takes, for each step, the first that any prompt
            meets, and the last if none does.

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
    peak = int((trace.magnitude[..., 0] / trace.layer_median).mean(0).argmax())
    positions = trace.position[:, peak, 0].long()
    channels = _leading_channels(trace, peak)
    # Each prompt's leading entry may lie in a channel of its own.
    leads, which = trace.channel[:, peak, 0].long().unique(return_inverse=True)
    followed = list(dict.fromkeys([*leads.tolist(), *channels]))
    (written,) = run.read(Written(run.model, positions, followed))
    entry = written[torch.arange(len(written)), :, which]
    return Spikes(
        trace=trace,
        criteria=dict(candidates),
        chosen=chosen,
        steps=find_steps(entry, trace.layer_median, candidates[CRITERIA[-1]].times),
        positions=positions,
        channels=channels,
        written=written[..., [followed.index(channel) for channel in channels]],
    )


def read_entries(run: Run[Any], spikes: Spikes, layers: Sequence[int]) -> dict[int, EntryValues]:
    """The massive entries that enter blocks, and as many of median size; what is massive is kept.

    Args:
        run: The run.
        spikes: With the criterion at each block.
        layers: The blocks; one past the last is what leaves it.
    """
    names = {layer: spikes.criterion_at(layer) for layer in layers}
    readers = {
        layer: StreamEntries(run.model, layer, spikes.criteria[name], draws=run.config.draws)
        for layer, name in names.items()
    }
    run.read(*readers.values())
    entries = {layer: reader.compute() for layer, reader in readers.items()}
    points = {
        f"L{layer}": {
            "criterion": names[layer],
            "times": spikes.criteria[names[layer]].times,
            "per_prompt": len(own.massive.prompt) / len(run.prompts),
            "channels": own.massive.channel.unique().tolist(),
            "positions": own.massive.position.unique().tolist(),
        }
        for layer, own in entries.items()
    }
    run.facts(entry_points=points)
    return entries


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
    looked_at = trace.magnitude.shape[1] * run.prompts.length
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
    for step in spikes.steps:
        _add_step(run, step)
    stages = {"stage": list(map(stage_name, range(trace.magnitude.shape[1])))}
    ranks = [f"rank {rank + 1}" for rank in range(trace.magnitude.shape[2])]
    run.keep("top_magnitude", trace.magnitude.mean(0), "stage rank", rank=ranks, **stages)
    for name in ("layer_median", "token_median", "kurtosis"):
        run.keep(name, getattr(trace, name).mean(0), "stage", **stages)
    written_share = spikes.main.written.mean(0)
    run.keep("written_share", written_share, "writer", writer=stages["stage"][: len(written_share)])
    written = spikes.written.mean(0)
    run.keep("spike_channels", written, "stage channel", channel=spikes.channels, **stages)


def _add_step(run: Run[Any], step: Step) -> None:
    """The rows of what writes most of a step, and of what removes most of it."""
    if step.step_up:
        share = Sample(step.written[:, step.step_up], step.written_null)
        layer = (step.step_up - 1) // 2
        run.add("step_up", stage_name(step.step_up), share, layer=layer)
    if step.step_down is not None:
        removed = step.removed[:, step.step_down - step.largest - 1]
        layer = (step.step_down - 1) // 2
        run.add(
            "step_down", stage_name(step.step_down), Sample(removed, step.removed_null), layer=layer
        )
