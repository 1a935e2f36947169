"""When an entry of the residual stream is massive, and how much of a vector few channels hold.

An entry x (position, channel) is massive by a `Criterion`:

    |x| >= magnitude  and  |x| >= times * median |x|

Sun et al. 2024 (2402.17762) take 100 and 1,000 and mean the median of the position's own vector
(`token_median`); the code of Owen et al. 2025 (2503.22329) takes that of the whole prompt at that
stage (`layer_median`). Of evenly many the lower middle one is the median. The scale-free criterion
asks for the ratio alone, which small models can meet. `kurtosis` needs no threshold:

    d * sum x^4 / (sum x^2)^2  over the d channels of a position, between 1 and d

3 d / (d + 2) for Gaussian entries, d where one channel holds everything. Magnitudes are in the
model's own units. A massive entry stands out; that anything depends on it is another question.

An entry can become massive more than once on its way through a model; `rises` finds each time:

    it rises where its size over the median reaches a threshold, and has fallen below half of it
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor


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


class Rise(NamedTuple):
    """One time that a sequence is above a threshold: its first place, its largest, its last."""

    first: int
    peak: int
    last: int


def rises(ratios: Sequence[float], threshold: float) -> list[Rise]:
    """Every rise to a threshold, and its fall below half of it; at least that of the largest.

    Args:
        ratios: The sequence, such as size over median by stage.
        threshold: What a rise reaches; the largest of the sequence where that is less.
    """
    threshold = min(threshold, max(ratios))
    spans: list[list[int]] = []
    above = False
    for place, ratio in enumerate(ratios):
        above = ratio >= (threshold / 2 if above else threshold)
        if above and (not spans or spans[-1][-1] < place - 1):
            spans.append([place])
        elif above:
            spans[-1].append(place)
    return [Rise(span[0], max(span, key=lambda at: ratios[at]), span[-1]) for span in spans]
