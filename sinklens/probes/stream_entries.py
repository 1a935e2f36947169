"""Single entries of the residual stream entering a block: the massive ones, and ordinary ones.

What interventions on spikes write to, as explicit lists of (prompt, position, channel): the entries
that meet a `Criterion`, and for a control as many entries of the same positions, in other channels,
whose size is nearest to the median of their position. Draw 0 takes the nearest, draw 1 the next
nearest, so that no draw depends on the order of prompts.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core.protocol import HookedModel
from ..functional.massive import Criterion
from .base import stream_hook


class Entries(NamedTuple):
    """Some entries of the stream of some prompts, and their values."""

    prompt: Int[Tensor, " entry"]
    position: Int[Tensor, " entry"]
    channel: Int[Tensor, " entry"]
    value: Float[Tensor, " entry"]

    def part(self, chosen: Bool[Tensor, " entry"]) -> Entries:
        """Those that are chosen."""
        return Entries(*(field[chosen] for field in self))


class EntryValues(NamedTuple):
    """What `StreamEntries` computes.

    Attributes:
        massive: The entries that meet the criterion.
        ordinary: For each draw as many entries of median size, at the same positions.
        means: The mean of every channel at position 0, and over later positions.
        median: The median size of each prompt's entries.
    """

    massive: Entries
    ordinary: list[Entries]
    means: Float[Tensor, "2 channel"]
    median: Float[Tensor, " prompt"]


class StreamEntries:
    """The massive entries of a stream and as many ordinary ones."""

    def __init__(
        self, model: HookedModel, layer: int, criterion: Criterion, *, draws: int = 0
    ) -> None:
        """Read the stream that enters block `layer` (leaves the last, for the number of blocks).

        Args:
            model: The model.
            layer: Where.
            criterion: Which entries are massive.
            draws: How many draws of ordinary entries.
        """
        self._criterion, self._draws = criterion, draws
        self._sums, self._counts = torch.zeros(2, 1, dtype=torch.float64), torch.zeros(2, 1)
        self.fwd_hooks: list[tuple[str, Any]] = [(stream_hook(model, layer), self._read)]
        self.reset()

    def massive(
        self, stream: Float[Tensor, "batch pos channel"]
    ) -> Bool[Tensor, "batch pos channel"]:
        """Which entries of the next prompts count as massive."""
        return self._criterion.holds(stream)

    def _read(self, stream: Float[Tensor, "batch pos channel"], hook: Any) -> None:
        stream = stream.detach().float().cpu()
        massive = self.massive(stream)
        self._medians.append(stream.abs().flatten(1).median(1).values)
        self._massive.append(_listed(stream, massive.nonzero(), self._prompts))
        for draw in range(self._draws):
            where = [_ordinary(row, mask, draw) for row, mask in zip(stream, massive, strict=True)]
            index = torch.cat(
                [torch.cat([torch.full((len(w), 1), row), w], 1) for row, w in enumerate(where)]
            )
            self._ordinary[draw].append(_listed(stream, index, self._prompts))
        apart = [stream[:, :1], stream[:, 1:]]
        self._sums = self._sums + torch.stack([part.double().sum((0, 1)) for part in apart])
        self._counts = self._counts + torch.tensor([[part[..., 0].numel()] for part in apart])
        self._prompts += len(stream)

    def compute(self) -> EntryValues:
        """Of all prompts."""
        return EntryValues(
            _joined(self._massive),
            [_joined(parts) for parts in self._ordinary],
            (self._sums / self._counts.clamp(min=1)).float(),
            torch.cat(self._medians),
        )

    def reset(self) -> None:
        """Forget everything."""
        self._prompts = 0
        self._massive: list[Entries] = []
        self._medians: list[Tensor] = []
        self._ordinary: list[list[Entries]] = [[] for _ in range(self._draws)]
        self._sums, self._counts = torch.zeros(2, 1, dtype=torch.float64), torch.zeros(2, 1)


class SameEntries(StreamEntries):
    """The positions and channels of given entries, with what another stream holds there."""

    def __init__(
        self,
        model: HookedModel,
        layer: int,
        entries: EntryValues,
        prompts: Int[Tensor, " prompt"],
    ) -> None:
        """Read the stream that enters block `layer`, at as many draws of ordinary entries.

        Args:
            model: The model.
            layer: Where.
            entries: The given ones.
            prompts: Which of their prompts are read, in order.
        """
        super().__init__(model, layer, Criterion(0.0, 1.0), draws=len(entries.ordinary))
        self._given, self._numbers = entries.massive, prompts

    def massive(
        self, stream: Float[Tensor, "batch pos channel"]
    ) -> Bool[Tensor, "batch pos channel"]:
        """The places of the given entries of the next prompts."""
        there = torch.zeros_like(stream, dtype=torch.bool)
        for row, number in enumerate(self._numbers[self._prompts :][: len(stream)]):
            mine = self._given.part(self._given.prompt == number)
            there[row, mine.position, mine.channel] = True
        return there


class LargestEntries(SameEntries):
    """As many entries of each prompt as are given, the largest of another stream.

    What a model with random weights has in the place of massive entries, which were chosen for
    their size.
    """

    def massive(
        self, stream: Float[Tensor, "batch pos channel"]
    ) -> Bool[Tensor, "batch pos channel"]:
        """The largest entries of the next prompts."""
        count = super().massive(stream).flatten(1).sum(1)
        order = stream.abs().flatten(1).argsort(1, descending=True).argsort(1)
        return (order < count[:, None]).view_as(stream)


def _listed(stream: Tensor, index: Int[Tensor, "entry 3"], first: int) -> Entries:
    """Entries at (row, position, channel), rows counted from prompt `first`."""
    row, position, channel = index.T
    return Entries(row + first, position, channel, stream[row, position, channel])


def _ordinary(
    stream: Float[Tensor, "pos channel"], massive: Bool[Tensor, "pos channel"], draw: int
) -> Int[Tensor, "entry 2"]:
    """As many entries of each position of one prompt as are massive, the nearest to its median."""
    chosen = []
    for position in massive.any(-1).nonzero()[:, 0].tolist():
        own, size = massive[position], stream[position].abs()
        count, available = int(own.sum()), int((~own).sum())
        distance = (size - size.median()).abs().masked_fill(own, torch.inf)
        nearest = distance.topk(min((draw + 1) * count, available), largest=False).indices[-count:]
        chosen += [(position, channel) for channel in nearest.tolist()]
    return torch.tensor(chosen, dtype=torch.long).view(-1, 2)


def _joined(parts: list[Entries]) -> Entries:
    """All batches."""
    return Entries(*(torch.cat(fields) for fields in zip(*parts, strict=True)))
