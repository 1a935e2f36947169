"""Random generators derived from the seed of a run and their purpose, never global."""

from __future__ import annotations

import hashlib

import numpy as np
from jaxtyping import Int
from torch import Tensor


def seeded(seed: int, *labels: object) -> np.random.Generator:
    """A separate generator for every purpose, the same in every process.

    Args:
        seed: The run's seed.
        labels: Its purpose; different labels give independent streams.
    """
    return np.random.default_rng(
        [seed, *"/".join(map(str, labels)).encode("utf-8", "surrogatepass")]
    )


def content_seed(tokens: Int[Tensor, " pos"], seed: int) -> int:
    """A seed derived from a prompt's tokens and the seed of the run."""
    digest = hashlib.sha256(f"{seed} {tokens.tolist()}".encode()).digest()
    return int.from_bytes(digest[:8], "little")
