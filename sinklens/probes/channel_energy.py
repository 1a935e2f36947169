"""Where activations point: into given channels, and along the eigenvectors of a gated block.

`ChannelShares`: the share of the stream's squared norm that some channels hold. Norms divide the
length away, so it is the share that later blocks see, gains apart. `GatedReads`: what enters one
gated block and what it writes, beside its quadratic form (`functional.quadratic_form`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.protocol import HookedModel
from ..functional.quadratic_form import GatedWeights, quadratic_form
from .base import SiteProbe, stream_hook


class ChannelShareValues(NamedTuple):
    """What `ChannelShares` computes.

    Attributes:
        share: Of the squared norm that lies in the channels.
        largest: The same of as many channels, the largest that each token has.
    """

    share: Float[Tensor, "prompt pos"]
    largest: Float[Tensor, "prompt pos"]


class ChannelShares(SiteProbe[ChannelShareValues]):
    """The share of the stream's squared norm that lies in some channels, and in the largest."""

    def __init__(self, model: HookedModel, layer: int, channels: Sequence[int]) -> None:
        """Read the stream that enters block `layer` (leaves the last, for the number of blocks)."""
        super().__init__(partial(stream_hook, model), [layer])
        self._channels = list(channels)

    def reduce(
        self, stream: Float[Tensor, "batch pos channel"], layer: int, /
    ) -> ChannelShareValues:
        """The shares of each token."""
        squares = stream.float() ** 2
        parts = (squares[..., self._channels], squares.topk(len(self._channels)).values)
        return ChannelShareValues(*(part.sum(-1) / squares.sum(-1) for part in parts))

    def compute(self) -> ChannelShareValues:
        """Of all prompts."""
        return self.at(*self.layers)


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


class GatedReads(SiteProbe[GatedReadValues]):
    """What one gated block reads and writes, beside its quadratic form."""

    def __init__(
        self,
        layer: int,
        weights: GatedWeights,
        channels: Sequence[int],
        eigenvectors: Float[Tensor, "channel d_model"],
    ) -> None:
        """Read the MLP of block `layer`, before any norm of its output."""
        super().__init__("mlp.hook_out", [layer], beside=["mlp.hook_in"])
        self._weights, self._channels, self._eigenvectors = weights, list(channels), eigenvectors

    def reduce(self, written: Float[Tensor, "batch pos d_model"], layer: int, /) -> GatedReadValues:
        """What entered along the eigenvectors, and what was written into the channels."""
        inputs = self.held["mlp.hook_in"].double().cpu()
        cosine = inputs @ self._eigenvectors.double().T / inputs.norm(dim=-1, keepdim=True)
        forms = [quadratic_form(self._weights, inputs, channel) for channel in self._channels]
        return GatedReadValues(cosine, torch.stack(forms, -1), written[..., self._channels])

    def compute(self) -> GatedReadValues:
        """Of all prompts."""
        return self.at(*self.layers)
