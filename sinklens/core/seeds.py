"""Random generators that follow from the seed of a run and what they are for, never global."""

from __future__ import annotations

import hashlib

import numpy as np
from jaxtyping import Int
from torch import Tensor


def seeded(seed: int, *labels: object) -> np.random.Generator:
    """A generator of its own for every purpose, the same in every process.

    Args:
        seed: The run's seed.
        labels: What it is for; other labels give independent numbers.
    """
    return np.random.default_rng([seed, *"/".join(map(str, labels)).encode()])


def content_seed(tokens: Int[Tensor, " pos"], seed: int) -> int:
    """A number that follows from a prompt's tokens and the seed."""
    digest = hashlib.sha256(f"{seed} {tokens.tolist()}".encode()).digest()
    return int.from_bytes(digest[:8], "little")
