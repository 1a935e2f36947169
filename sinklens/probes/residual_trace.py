"""Where massive activations come from: the residual stream after every sub-block.

A model of L blocks has 2 L sub-blocks, attention and MLP, each of which adds to the stream (the
"blocks" of Sun et al. 2026 (2603.05498), numbered from 1). A stage is the stream after one of them;
stage 0 is what enters the first block. In blocks whose attention and MLP read the same input the
stage between them exists in the sum only. Which entries are massive says a
`functional.massive.Criterion`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.errors import SinklensError
from ..core.labels import stage_name
from ..core.protocol import HookedModel
from ..functional.massive import Criterion, kurtosis
from ..models.capabilities import hook_name
from .base import SiteProbe, Values

ADDITIVE = 1e-3  # of the largest entry; a norm on the stream is far above it
ROUNDINGS = 4  # of a sum of three terms in another order, which parallel blocks may take


class _StageProbe(SiteProbe[Values]):
    """Reads the stream at some stages, which stand in the place of layers.

    The stage between attention and MLP is summed up from what attention adds: TransformerLens names
    it by the input of a norm, which parallel blocks and norms after sub-blocks do not have there.
    Where something else stands in the place of attention and its output is not named, that input
    tells what it wrote. A block that is a single mixer, as in Mamba, writes all at once.
    """

    def __init__(self, model: HookedModel, stages: Iterable[int] | None = None) -> None:
        super().__init__("residual", ())  # sites of its own
        self.layers = list(range(2 * int(model.cfg.n_layers) + 1) if stages is None else stages)
        self._stream: Tensor | None = None
        for block in sorted({max(0, stage - 1) // 2 for stage in self.layers}):
            self.fwd_hooks += self._of_block(model, block)

    def _of_block(self, model: HookedModel, block: int) -> list[tuple[str, Any]]:
        """The hooks of a block in the order in which they fire."""
        before, between, after = 2 * block, 2 * block + 1, 2 * block + 2
        entry = (hook_name("residual", block), partial(self._enter, stage=before))
        leave = (hook_name("resid_post", block), partial(self._leave, stage=after))
        attention, middle, mlp = (hook_name(n, block) for n in ("attn_out", "resid_mid", "mlp_out"))
        known = model.hook_dict
        if attention not in known and mlp not in known:
            return [entry, (leave[0], partial(self._mix, stage=after))]
        first = (attention, partial(self._add, stage=between))
        if attention not in known and middle in known:
            first = (middle, partial(self._set, stage=between))
        return [entry, first, (mlp, partial(self._add, stage=after)), leave]

    def _enter(self, stream: Tensor, hook: Any, *, stage: int) -> None:
        """Take in the stream that enters a block."""
        self._stream = stream
        if stage == 0:  # else the block before has read it
            self._read_stage(stream, stage)

    def _add(self, written: Tensor, hook: Any, *, stage: int) -> None:
        """Add what a sub-block writes."""
        assert self._stream is not None
        self._stream = self._stream + written
        if stage % 2:  # else the stream is read where it leaves the block
            self._read_stage(self._stream, stage)

    def _set(self, stream: Tensor, hook: Any, *, stage: int) -> None:
        """Take in the stream after the first sub-block."""
        self._stream = stream
        self._read_stage(stream, stage)

    def _mix(self, stream: Tensor, hook: Any, *, stage: int) -> None:
        """Read the stream that leaves a block of one sub-block, after which nothing is added."""
        for same in (stage - 1, stage):
            self._read_stage(stream, same)

    def _leave(self, stream: Tensor, hook: Any, *, stage: int) -> None:
        """Read the stream that leaves a block, if it is the sum of what was written.

        Raises:
            SinklensError: It is not.
        """
        assert self._stream is not None
        difference = (self._stream - stream).abs().max()
        self._stream = None
        rounding = ROUNDINGS * torch.finfo(stream.dtype).eps
        if not bool(difference <= max(ADDITIVE, rounding) * stream.abs().max()):
            raise SinklensError(
                f"the stream after {stage_name(stage)} is not what entered the block plus what "
                "attention and MLP wrote: this model norms the stream itself, as BERT does, or "
                "something writes beside them, so no sub-block can be said to write a spike. "
                "probes.ResidualPeaks reads the largest entries of any model"
            )
        self._read_stage(stream, stage)

    def _read_stage(self, stream: Tensor, stage: int) -> None:
        if stage in self.layers:
            self._read(stream, None, layer=stage)


class PeakTraceValues(NamedTuple):
    """The largest entries after every sub-block."""

    magnitude: Float[Tensor, "prompt stage rank"]
    position: Float[Tensor, "prompt stage rank"]
    channel: Float[Tensor, "prompt stage rank"]
    layer_median: Float[Tensor, "prompt stage"]
    token_median: Float[Tensor, "prompt stage"]
    kurtosis: Float[Tensor, "prompt stage"]
    massive: Float[Tensor, "prompt stage criterion"]


class PeakTrace(_StageProbe[PeakTraceValues]):
    """The largest entries of the stream, and its medians, after every sub-block."""

    def __init__(self, model: HookedModel, criteria: Sequence[Criterion], *, top: int = 3) -> None:
        """Read what every sub-block of `model` adds.

        Args:
            model: The model.
            criteria: For each, whether any entry of a stage is massive.
            top: How many entries to keep, the largest first.
        """
        super().__init__(model)
        self._criteria, self._top = tuple(criteria), top

    def reduce(self, stream: Float[Tensor, "batch pos channel"], stage: int, /) -> PeakTraceValues:
        """The largest entries of one stage."""
        size = stream.float().abs()
        entries = size.flatten(1)
        largest, where = entries.topk(self._top)
        position, channel = where // size.shape[-1], where % size.shape[-1]
        holder = size[torch.arange(len(size)), position[:, 0]]
        massive = [one.holds(stream.float()).flatten(1).any(1) for one in self._criteria]
        return PeakTraceValues(
            magnitude=largest,
            position=position,
            channel=channel,
            layer_median=entries.median(1).values,
            token_median=holder.median(1).values,
            kurtosis=kurtosis(holder),
            massive=torch.stack(massive, -1) if massive else entries[:, :0],
        )

    def compute(self) -> PeakTraceValues:
        """Of all prompts."""
        return self.stacked()


class PositionPeakValues(NamedTuple):
    """The largest entry and the kurtosis at every position of one stage."""

    largest: Float[Tensor, "prompt pos"]
    kurtosis: Float[Tensor, "prompt pos"]


class PositionPeaks(_StageProbe[PositionPeakValues]):
    """The largest entry and the kurtosis at every position of one stage."""

    def __init__(self, model: HookedModel, stage: int) -> None:
        """Read the stream after `stage` sub-blocks; 2 l is what enters block l."""
        super().__init__(model, [stage])

    def reduce(
        self, stream: Float[Tensor, "batch pos channel"], stage: int, /
    ) -> PositionPeakValues:
        """Each position's."""
        stream = stream.float()
        return PositionPeakValues(stream.abs().amax(-1), kurtosis(stream))

    def compute(self) -> PositionPeakValues:
        """Of all prompts."""
        return self.at(*self.layers)


class Written(_StageProbe[Tensor]):
    """What every sub-block writes into some channels at one position of each prompt, signed."""

    def __init__(
        self, model: HookedModel, positions: Int[Tensor, " prompt"], channels: Sequence[int]
    ) -> None:
        """Read `channels` at `positions`, one a prompt, in the order in which prompts will run."""
        super().__init__(model)
        self._positions, self._channels = positions, list(channels)

    def reduce(
        self, stream: Float[Tensor, "batch pos channel"], stage: int, /
    ) -> Float[Tensor, "batch chosen"]:
        """The entries of one stage."""
        done = self.count[stage]
        mine = self._positions[done : done + len(stream)].to(stream.device)
        rows = torch.arange(len(stream), device=stream.device)
        return stream[rows, mine][:, self._channels]

    def compute(self) -> Float[Tensor, "prompt stage channel"]:
        """The stream's entries after every sub-block; differences are what sub-blocks write."""
        return self.stacked()
