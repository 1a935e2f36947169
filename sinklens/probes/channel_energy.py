"""Where activations point: into given channels, and along the eigenvectors of a gated block.

`ChannelShares`: the share of the stream's squared norm that some channels hold. Norms divide the
length away, so it is the share that later blocks see, gains apart. `GatedReads`: what enters one
gated block and what it writes, beside its quadratic form (`functional.quadratic_form`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.protocol import HookedModel
from ..functional.quadratic_form import GatedWeights, quadratic_form
from .base import Gathered
from .stream_entries import stream_hook


class ChannelShareValues(NamedTuple):
    """What `ChannelShares` computes.

    Attributes:
        share: Of the squared norm that lies in the channels.
        largest: The same of as many channels, the largest that each token has.
    """

    share: Float[Tensor, "prompt pos"]
    largest: Float[Tensor, "prompt pos"]


class ChannelShares:
    """The share of the stream's squared norm that lies in some channels, and in the largest."""

    def __init__(self, model: HookedModel, layer: int, channels: Sequence[int]) -> None:
        """Read the stream that enters block `layer` (leaves the last, for the number of blocks)."""
        self._channels = list(channels)
        self._seen = Gathered()
        self.fwd_hooks: list[tuple[str, Any]] = [(stream_hook(model, layer), self._read)]

    def _read(self, stream: Float[Tensor, "batch pos channel"], hook: Any) -> None:
        squares = stream.float() ** 2
        parts = (squares[..., self._channels], squares.topk(len(self._channels)).values)
        for name, part in zip(ChannelShareValues._fields, parts, strict=True):
            self._seen.add(name, part.sum(-1) / squares.sum(-1))

    def compute(self) -> ChannelShareValues:
        """Of all prompts."""
        return ChannelShareValues(*map(self._seen.concatenated, ChannelShareValues._fields))

    def reset(self) -> None:
        """Forget everything."""
        self._seen.clear()


class GatedReadValues(NamedTuple):
    """What `GatedReads` computes, for each channel.

    Attributes:
        cosine: Between what enters the block and the channel's eigenvector.
        predicted: What the quadratic form says that the block writes.
        written: What it writes.
    """

    cosine: Float[Tensor, "prompt pos channel"]
    predicted: Float[Tensor, "prompt pos channel"]
    written: Float[Tensor, "prompt pos channel"]


class GatedReads:
    """What one gated block reads and writes, beside its quadratic form."""

    def __init__(
        self,
        layer: int,
        weights: GatedWeights,
        channels: Sequence[int],
        eigenvectors: Float[Tensor, "channel d_model"],
    ) -> None:
        """Read the MLP of block `layer`, before any norm of its output."""
        self._weights, self._channels, self._eigenvectors = weights, list(channels), eigenvectors
        self._seen = Gathered()
        self.fwd_hooks: list[tuple[str, Any]] = [
            (f"blocks.{layer}.mlp.hook_in", self._enter),
            (f"blocks.{layer}.mlp.hook_out", self._leave),
        ]

    def _enter(self, inputs: Float[Tensor, "batch pos d_model"], hook: Any) -> None:
        inputs = inputs.detach().double().cpu()
        cosine = inputs @ self._eigenvectors.double().T / inputs.norm(dim=-1, keepdim=True)
        forms = [quadratic_form(self._weights, inputs, channel) for channel in self._channels]
        self._seen.add("cosine", cosine)
        self._seen.add("predicted", torch.stack(forms, -1))

    def _leave(self, written: Float[Tensor, "batch pos d_model"], hook: Any) -> None:
        self._seen.add("written", written[..., self._channels])

    def compute(self) -> GatedReadValues:
        """Of all prompts."""
        return GatedReadValues(*map(self._seen.concatenated, GatedReadValues._fields))

    def reset(self) -> None:
        """Forget everything."""
        self._seen.clear()
