"""How alike token states are at each depth, and how far a changed token moves the later ones.

States are those of the residual stream entering each block and leaving the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ...core.protocol import HookedModel
from ...functional.precision import wide
from ...probes.base import LayerProbe, ResumableProbe, stream_hook

States = Float[Tensor, "batch pos d_model"]


class AlikeValues(NamedTuple):
    """What `Alike` computes: of all positions, and of those that are no sinks.

    `norm` is the norm of all states together, with which random states of equal norms have an
    expected distance from their mean of `norm` times the root of 1 - 1 / n.
    """

    cosine_all: Float[Tensor, "prompt site"]
    cosine: Float[Tensor, "prompt site"]
    distance_all: Float[Tensor, "prompt site"]
    distance: Float[Tensor, "prompt site"]
    norm_all: Float[Tensor, "prompt site"]
    norm: Float[Tensor, "prompt site"]

    @property
    def collapse_all(self) -> Float[Tensor, "prompt site"]:
        """The distance from the mean over the norm of all states."""
        return share(self.distance_all, self.norm_all)

    @property
    def collapse(self) -> Float[Tensor, "prompt site"]:
        """The same without sinks."""
        return share(self.distance, self.norm)


class Alike(ResumableProbe[AlikeValues]):
    """Mean pairwise cosine and distance from the mean, at every depth."""

    def __init__(self, model: HookedModel, sinks: Sequence[int]) -> None:
        """Read the residual stream.

        Args:
            model: The model.
            sinks: The positions that are left out of half of the numbers.
        """
        super().__init__(partial(stream_hook, model), range(int(model.cfg.n_layers) + 1))
        self._sinks = list(sinks)

    def reduce(self, activation: States, layer: Any, /) -> AlikeValues:
        """Of one depth."""
        states = wide(activation)
        kept = torch.ones(states.shape[1], dtype=torch.bool)
        kept[self._sinks] = False
        parts = states, states[:, kept.to(states.device)]
        return AlikeValues(
            *(mean_cosine(part) for part in parts),
            *(collapse_distance(part) for part in parts),
            *(part.flatten(1).norm(dim=1) for part in parts),
        )


def mean_cosine(states: States) -> Float[Tensor, " batch"]:
    """The mean cosine between the states of different positions; a state of 0 has a cosine of 0."""
    unit = torch.nn.functional.normalize(states, dim=-1)
    count = states.shape[1]
    own = unit.square().sum((1, 2))
    total: Tensor = (unit.sum(1).square().sum(-1) - own) / (count * (count - 1))
    return total


def collapse_distance(states: States) -> Float[Tensor, " batch"]:
    """The norm of what is left of states when their mean is taken away."""
    distance: Tensor = (states - states.mean(1, keepdim=True)).flatten(1).norm(dim=1)
    return distance


def share(part: Tensor, whole: Tensor) -> Tensor:
    """A part over a whole; 0 where there is no whole."""
    return torch.where(whole > 0, part / whole.clamp_min(torch.finfo(whole.dtype).tiny), 0.0)


class Kept(LayerProbe[Tensor]):
    """The states of the positions after one, at every depth."""

    def __init__(self, model: HookedModel, after: int) -> None:
        """Read the residual stream behind a position."""
        super().__init__(partial(stream_hook, model), range(int(model.cfg.n_layers) + 1))
        self._after = after

    def reduce(self, activation: States, layer: Any, /) -> Float[Tensor, "batch later d_model"]:
        """Of one depth."""
        return activation[:, self._after + 1 :]


class Moved(LayerProbe[Tensor]):
    """How far states are from kept ones: relative to these, and absolutely; mean over positions."""

    def __init__(
        self, model: HookedModel, kept: Float[Tensor, "prompt site later d_model"], after: int
    ) -> None:
        """Read the residual stream.

        Args:
            model: The model.
            kept: What `Kept` read of as many prompts in the same order.
            after: The position behind which it was read.
        """
        super().__init__(partial(stream_hook, model), range(int(model.cfg.n_layers) + 1))
        self._kept, self._after = kept, after

    def reduce(self, activation: States, layer: int, /) -> Float[Tensor, "batch 2"]:
        """Of one depth."""
        states = wide(activation[:, self._after + 1 :])
        first = self.count[layer]
        before = self._kept[first : first + len(states), layer].to(states)
        distance = (states - before).norm(dim=-1)
        relative = share(distance, before.norm(dim=-1))
        return torch.stack([relative.mean(-1), distance.mean(-1)], -1)
