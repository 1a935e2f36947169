"""What a probe is, and how it gathers values over batches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from typing import Any, Protocol, runtime_checkable

import torch
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


class Gathered:
    """Tensors `[batch, ...]` by key, batch after batch; on the CPU in float32."""

    def __init__(self) -> None:
        """Start empty."""
        self._parts: defaultdict[Hashable, list[Tensor]] = defaultdict(list)

    def add(self, key: Hashable, values: Tensor) -> None:
        """Append a batch."""
        self._parts[key].append(values.detach().float().cpu())

    def concatenated(self, key: Hashable) -> Tensor:
        """All batches of a key, `[prompt, ...]`."""
        return torch.cat(self._parts[key])

    def clear(self) -> None:
        """Forget all batches."""
        self._parts.clear()
