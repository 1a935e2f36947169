"""What the tests of this line share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import sinklens
from sinklens.models.prompts import Prompts, random_prompts
from sinklens.results.result import ExperimentResult


def run(model: Any, prompts: Prompts, **settings: Any) -> ExperimentResult:
    return sinklens.run("absolute_position", model, prompts, progress=False, **settings)


def alike(model: Any, n: int) -> Tensor:
    """Prompts alike but for one token each, so that their logits have something in common."""
    tokens = random_prompts(model, n=1, length=12, bos=True).tokens.repeat(n, 1)
    tokens[range(n), [2, 3, 5, 6, 9][:n]] = torch.tensor([20, 30, 40, 50, 60][:n])
    return tokens
