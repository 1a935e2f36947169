"""Which predictions count for an intervention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from ..core.errors import UsageError


def counted_positions(
    length: int, edited: int, sample: Sequence[int] | None = None
) -> Int[Tensor, " counted"]:
    """The positions whose predictions count: those after the intervened one, or a sample of them.

    Raises:
        UsageError: None is left.
    """
    positions = [p for p in range(edited + 1, length) if sample is None or p in sample]
    if not positions:
        raise UsageError(
            f"no predictions are left to count after position {edited} in prompts of {length} "
            "tokens; use longer prompts or other positions"
        )
    return torch.tensor(positions)
