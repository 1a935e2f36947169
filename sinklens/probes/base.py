"""What a probe is, and how it gathers values over batches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor


@runtime_checkable  # so that shape checks in tests can look at it
class Probe(Protocol):
    """Hooks that read, and the value they have read so far."""

    @property
    def fwd_hooks(self) -> list[tuple[str, Any]]:
        """Pairs of hook name and function `fn(activation, hook)` that returns None."""

    def compute(self) -> Any:
        """The statistic over all prompts that ran since the last reset, in their order."""

    def reset(self) -> None:
        """Forget everything."""


@runtime_checkable
class Resumable(Probe, Protocol):
    """A probe that computes a tuple of tensors, prompts first, and can take over missing parts."""

    def fill(self, clean: Any, times: int) -> None:
        """Take what this probe has not seen from a probe of the clean run.

        Args:
            clean: A probe of the same kind that saw the same prompts without an edit.
            times: How often each of its prompts stands in this probe's batch, one after another.
        """


@runtime_checkable
class Sliceable(Probe, Protocol):
    """A probe that reads attention patterns, and can do so without its hooks, a few rows a call."""

    def read_queries(
        self, rows: Float[Tensor, "batch head some key"], *, layer: int, first: int
    ) -> None:
        """Read some rows of a layer's pattern.

        Args:
            rows: The attention of some queries to all keys.
            layer: The layer.
            first: The first query; the queries of a batch come in order, all of a layer in a row.
        """


class Gathered:
    """Tensors `[batch, ...]` by key, batch after batch; on the CPU in float32."""

    def __init__(self) -> None:
        """Start empty."""
        self._parts: defaultdict[Hashable, list[Tensor]] = defaultdict(list)

    def add(self, key: Hashable, values: Tensor) -> None:
        """Append a batch."""
        self._parts[key].append(values.detach().float().cpu())

    def parts(self, key: Hashable) -> list[Tensor]:
        """The batches of a key so far."""
        return self._parts[key]

    def concatenated(self, key: Hashable) -> Tensor:
        """All batches of a key, `[prompt, ...]`."""
        return torch.cat(self._parts[key])

    def stacked(self, what: Hashable, places: Iterable[Hashable]) -> Tensor:
        """All batches of one thing at several places, `[prompt, place, ...]`; keys are pairs."""
        return torch.stack([self.concatenated((what, place)) for place in places], 1)

    def fill(self, other: Gathered, times: int) -> None:
        """Take over the keys that are missing here, the prompts repeated."""
        for key in other._parts.keys() - self._parts.keys():
            whole = other.concatenated(key)
            self._parts[key] = [whole.repeat(times, *[1] * (whole.ndim - 1))]

    def clear(self) -> None:
        """Forget all batches."""
        self._parts.clear()
