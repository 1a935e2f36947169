"""The precision in which numbers are kept: float64 of models in float64, float32 of all others."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def wide(values: Tensor) -> Float[Tensor, "*shape"]:
    """Values in float64 where they are in it, else in float32."""
    return values if values.dtype == torch.float64 else values.float()
