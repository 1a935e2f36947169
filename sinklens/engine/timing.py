"""How long forward passes take here, tried on a batch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from ..core.protocol import HookedModel
from ..models.prompts import Prompts
from .evaluate import evaluate
from .progress import unseen
from .resume import unkept
from .user_hooks import has_own_hooks


def seconds_of_pass(
    model: HookedModel, prompts: Prompts, metrics: Sequence[Any], **how: Any
) -> float | None:
    """How long a clean forward pass with its metrics takes; None where trying could do harm.

    Args:
        model: The model.
        prompts: A batch of prompts.
        metrics: What is measured.
        **how: As in `evaluate`.
    """
    if has_own_hooks(model):  # which may count how often they are called
        return None
    began = time.perf_counter()
    with unseen(), unkept():
        evaluate(model, prompts, [], metrics, **{**how, "progress": False})
    return time.perf_counter() - began
