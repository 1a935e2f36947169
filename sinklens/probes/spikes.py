"""Massive activations: the largest entry of the residual stream, beside the median one.

For each prompt, entering each block and leaving the last: the largest |x| over positions and
channels, where it is, and the median |x| over the same entries (Sun et al. 2024, 2402.17762, call
an activation massive above 100 and 1,000 times this median; a scale-free reading takes the ratio
alone). Units are the model's own; ratios have none. A large ratio says that an entry stands out,
not that anything depends on it.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from ..core.protocol import HookedModel
from .base import ResumableProbe, stream_hook


class PeakValues(NamedTuple):
    """The largest entries by prompt and site."""

    largest: Float[Tensor, "prompt site"]
    median: Float[Tensor, "prompt site"]
    position: Float[Tensor, "prompt site"]
    channel: Float[Tensor, "prompt site"]

    @property
    def ratio(self) -> Float[Tensor, "prompt site"]:
        """The largest entry over the median one."""
        return self.largest / self.median


class ResidualPeaks(ResumableProbe[PeakValues]):
    """The largest entry of the stream entering each block and leaving the last."""

    def __init__(self, model: HookedModel, *, first: int = 0) -> None:
        """Read the residual stream of `model`, from what enters block `first` on."""
        super().__init__(partial(stream_hook, model), range(first, int(model.cfg.n_layers) + 1))

    def reduce(self, stream: Float[Tensor, "batch pos channel"], layer: int, /) -> PeakValues:
        """The largest entry of each prompt, and where it is."""
        sizes = stream.float().abs().flatten(1)
        largest, place = sizes.max(1)
        width = stream.shape[-1]
        return PeakValues(largest, sizes.median(1).values, place // width, place % width)
