"""Attention rows without one key: what a head does where a sink does not hide it.

    A'_ij = A_ij / sum over j' != k of A_ij',    A'_ik = 0

Each row sums to 1, also where a learned sink takes a part. A row that gives less than `LEAST` to
other keys has nothing to show and becomes 0; query 0 of a causal model, which sees key 0 alone, is
always such a row.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

LEAST = 1e-4


def without_key(
    pattern: Float[Tensor, "*batch query key"], key: int = 0
) -> Float[Tensor, "*batch query key"]:
    """The pattern without a key, its rows rescaled; rows of which nothing is left are 0.

    Args:
        pattern: Shares of attention.
        key: The key.
    """
    others = pattern.clone()
    others[..., key] = 0
    left = others.sum(-1, keepdim=True)
    return (others / left).where(left >= LEAST, 0)
