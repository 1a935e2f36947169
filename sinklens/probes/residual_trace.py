"""Where massive activations come from: the residual stream after every sub-block.

A model of L blocks has 2 L sub-blocks, attention and MLP, each of which adds to the stream (the
"blocks" of 2603.05498, numbered from 1). A stage is the stream after one of them; stage 0 is what
enters the first block. An entry x (position, channel) is massive by a `Criterion`:

    |x| >= magnitude  and  |x| >= times * median |x|

2402.17762 takes 100 and 1,000 and means the median of the position's own vector (`token_median`);
the code of 2503.22329 takes that of the whole prompt at that stage (`layer_median`). Of evenly many
the lower middle one is the median. The scale-free criterion asks for the ratio alone, which small
models can meet. `kurtosis` needs no threshold:

    d * sum x^4 / (sum x^2)^2  over the d channels of a position, between 1 and d

3 d / (d + 2) for Gaussian entries, d where one channel holds everything. Magnitudes are in the
model's own units. In blocks whose attention and MLP read the same input the stage between them
exists in the sum only. A massive entry stands out; that anything depends on it is another question.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core.errors import SinklensError
from ..core.labels import stage_name
from ..core.protocol import HookedModel
from ..models.capabilities import hook_name
from .base import Gathered

ADDITIVE = 1e-3  # of the largest entry; a norm on the stream is far above it
ROUNDINGS = 4  # of a sum of three terms in another order, which parallel blocks may take


@dataclass(frozen=True)
class Criterion:
    """When an entry counts as massive.

    Attributes:
        magnitude: The least |x|.
        times: The least |x| over the median.
        median: `layer_median` or `token_median`.
    """

    magnitude: float
    times: float
    median: str = "layer_median"

    def holds(
        self, stream: Float[Tensor, "batch pos channel"]
    ) -> Bool[Tensor, "batch pos channel"]:
        """Which entries are massive."""
        size = stream.abs()
        axes = (-1,) if self.median == "token_median" else (-2, -1)
        median = size.flatten(-len(axes)).median(-1).values[(..., *(None,) * len(axes))]
        threshold = (self.times * median).clamp_min(self.magnitude)
        # A ratio to a median of 0 says nothing: without a magnitude no entry is massive there.
        return (size >= threshold) & (threshold > 0)


def kurtosis(stream: Float[Tensor, "*place channel"]) -> Float[Tensor, " *place"]:
    """How much of each vector a few channels hold, between 1 and their number."""
    squares = (stream**2).sum(-1).clamp_min(torch.finfo(stream.dtype).tiny ** 0.5)
    return stream.shape[-1] * (stream**4).sum(-1) / squares**2


class PeakTraceValues(NamedTuple):
    """The largest entries after every sub-block."""

    magnitude: Float[Tensor, "prompt stage rank"]
    position: Float[Tensor, "prompt stage rank"]
    channel: Float[Tensor, "prompt stage rank"]
    layer_median: Float[Tensor, "prompt stage"]
    token_median: Float[Tensor, "prompt stage"]
    kurtosis: Float[Tensor, "prompt stage"]
    massive: Float[Tensor, "prompt stage criterion"]


class PeakTrace:
    """The largest entries of the stream, and its medians, after every sub-block."""

    def __init__(self, model: HookedModel, criteria: Sequence[Criterion], *, top: int = 3) -> None:
        """Read what every sub-block of `model` adds.

        Args:
            model: The model.
            criteria: For each, whether any entry of a stage is massive.
            top: How many entries to keep, the largest first.
        """
        self._criteria, self._top = tuple(criteria), top
        self._stages = 2 * int(model.cfg.n_layers) + 1
        self._seen = Gathered()
        self.fwd_hooks = _stage_hooks(model, self._read)

    def _read(self, stream: Float[Tensor, "batch pos channel"], stage: int) -> None:
        size = stream.float().abs()
        entries = size.flatten(1)
        largest, where = entries.topk(self._top)
        position, channel = where // size.shape[-1], where % size.shape[-1]
        holder = size[torch.arange(len(size)), position[:, 0]]
        massive = [one.holds(stream.float()).flatten(1).any(1) for one in self._criteria]
        seen = PeakTraceValues(
            magnitude=largest,
            position=position,
            channel=channel,
            layer_median=entries.median(1).values,
            token_median=holder.median(1).values,
            kurtosis=kurtosis(holder),
            massive=torch.stack(massive, -1) if massive else entries[:, :0],
        )
        for what, values in seen._asdict().items():
            self._seen.add((what, stage), values)

    def compute(self) -> PeakTraceValues:
        """Of all prompts."""
        return PeakTraceValues(
            *(self._seen.stacked(what, range(self._stages)) for what in PeakTraceValues._fields)
        )

    def reset(self) -> None:
        """Forget everything."""
        self._seen.clear()


class PositionPeakValues(NamedTuple):
    """The largest entry and the kurtosis at every position of one stage."""

    largest: Float[Tensor, "prompt pos"]
    kurtosis: Float[Tensor, "prompt pos"]


class PositionPeaks:
    """The largest entry and the kurtosis at every position of one stage."""

    def __init__(self, model: HookedModel, stage: int) -> None:
        """Read the stream after `stage` sub-blocks; 2 l is what enters block l."""
        self._stage = stage
        self._seen = Gathered()
        self.fwd_hooks = _stage_hooks(model, self._read, [max(0, stage - 1) // 2])

    def _read(self, stream: Float[Tensor, "batch pos channel"], stage: int) -> None:
        if stage == self._stage:
            self._seen.add("largest", stream.float().abs().amax(-1))
            self._seen.add("kurtosis", kurtosis(stream.float()))

    def compute(self) -> PositionPeakValues:
        """Of all prompts."""
        return PositionPeakValues(*map(self._seen.concatenated, PositionPeakValues._fields))

    def reset(self) -> None:
        """Forget everything."""
        self._seen.clear()


class Written:
    """What every sub-block writes into some channels at one position of each prompt, signed."""

    def __init__(
        self, model: HookedModel, positions: Int[Tensor, " prompt"], channels: Sequence[int]
    ) -> None:
        """Read `channels` at `positions`, one a prompt, in the order in which prompts will run."""
        self._positions, self._channels = positions, list(channels)
        self._stages = 2 * int(model.cfg.n_layers) + 1
        self._seen = Gathered()
        self.fwd_hooks = _stage_hooks(model, self._read)

    def _read(self, stream: Float[Tensor, "batch pos channel"], stage: int) -> None:
        done = sum(map(len, self._seen.parts(stage)))
        mine = self._positions[done : done + len(stream)].to(stream.device)
        rows = torch.arange(len(stream), device=stream.device)
        self._seen.add(stage, stream[rows, mine][:, self._channels])

    def compute(self) -> Float[Tensor, "prompt stage channel"]:
        """The stream's entries after every sub-block; differences are what sub-blocks write."""
        return torch.stack([self._seen.concatenated(stage) for stage in range(self._stages)], 1)

    def reset(self) -> None:
        """Forget everything."""
        self._seen.clear()


def _stage_hooks(
    model: HookedModel, read: Any, blocks: Iterable[int] | None = None
) -> list[tuple[str, Any]]:
    """Hooks that call `read(stream, stage)` at every stage, or at those of some blocks.

    The stage between attention and MLP is summed up from what attention adds: TransformerLens names
    it by the input of a norm, which parallel blocks and norms after sub-blocks do not have there.
    """
    hooks: list[tuple[str, Any]] = []
    for layer in range(int(model.cfg.n_layers)) if blocks is None else blocks:
        held: list[Tensor] = []
        stage = 2 * layer
        hooks += [
            (hook_name("residual", layer), partial(_enter, held=held, read=read, stage=stage)),
            (hook_name("attn_out", layer), partial(_add, held=held, read=read, stage=stage + 1)),
            (hook_name("mlp_out", layer), partial(_add, held=held, read=None, stage=stage + 2)),
            (
                hook_name("resid_post", layer),
                partial(_leave, held=held, read=read, stage=stage + 2),
            ),
        ]
    return hooks


def _enter(stream: Tensor, hook: Any, *, held: list[Tensor], read: Any, stage: int) -> None:
    """Take in the stream that enters a block."""
    held[:] = [stream]
    if stage == 0:  # else the block before has read it
        read(stream, stage)


def _add(written: Tensor, hook: Any, *, held: list[Tensor], read: Any, stage: int) -> None:
    """Add what a sub-block writes."""
    held[0] = held[0] + written
    if read is not None:
        read(held[0], stage)


def _leave(stream: Tensor, hook: Any, *, held: list[Tensor], read: Any, stage: int) -> None:
    """Read the stream that leaves a block, if it is the sum of what was written.

    Raises:
        SinklensError: It is not.
    """
    difference = (held.pop() - stream).abs().max()
    rounding = ROUNDINGS * torch.finfo(stream.dtype).eps
    if not bool(difference <= max(ADDITIVE, rounding) * stream.abs().max()):
        raise SinklensError(
            f"the stream after {stage_name(stage)} is not what entered the block plus what "
            "attention and MLP wrote: this model norms the stream itself, as BERT does, so no "
            "sub-block can be said to write a spike. probes.ResidualPeaks reads the largest "
            "entries of any model"
        )
    read(stream, stage)
