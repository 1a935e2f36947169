"""Prompts and a hook that tests of the engine share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sinklens.models.prompts import Prompts
from tests.families import VOCABULARY

LENGTH = 12


def random_prompts(n: int, seed: int = 0) -> Prompts:
    words = np.random.default_rng(seed).integers(4, VOCABULARY, (n, LENGTH))
    words[:, 0] = 1
    return Prompts(torch.from_numpy(words), True, "random")


def shift(z: Tensor, hook: Any) -> Tensor:
    return z + 0.5
