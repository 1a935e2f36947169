"""A model of the same configuration as the user's with untrained weights."""

from __future__ import annotations

import copy

import torch

from ..core.errors import SinklensError
from ..core.protocol import HookedModel
from .loading import load
from .origins import count_parameters
from .placement import placed_like
from .weights import is_offloaded

RANDOM_WEIGHTS = "random_weights"
"""The name of its rows and arrays."""
LARGEST = 1_000_000_000
"""Up to this many parameters, the random model is made by default."""


def random_twin(
    model: HookedModel, wanted: bool | None, seed: int
) -> tuple[HookedModel | None, str]:
    """The random model, if wanted and possible, with how it was made or why it was not.

    Args:
        model: The model.
        wanted: Whether it was requested; None makes one unless the model is large.
        seed: Seed of the weights.

    Raises:
        SinklensError: It was requested and cannot be made.
    """
    if wanted is False:
        return None, ""
    if wanted is None and count_parameters(model) > LARGEST:
        return None, (
            "the model is large and a random model would need as much memory; "
            "random_weights=True requests it"
        )
    try:
        return random_weights(model, seed)
    except SinklensError as error:
        if wanted:
            raise
        return None, str(error)


def random_weights(model: HookedModel, seed: int) -> tuple[HookedModel, str]:
    """A model of the same class and configuration with fresh weights, and how it was made.

    The weights are those that Hugging Face's own initialisation draws, in the model's dtype and on
    its device. It takes as much memory as the model. The user's model is not touched.

    Raises:
        SinklensError: It cannot be made from the configuration alone.
    """
    original = model.original_model
    kind = type(original)
    if not hasattr(original, "config"):
        raise SinklensError(
            f"{kind.__name__} has no Hugging Face configuration to make a random model from"
        )
    if is_offloaded(model):
        raise SinklensError(
            "part of its weights is offloaded; a random model has no room beside it"
        )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # of the CPU alone, and put back
            config = copy.deepcopy(original.config)
            made = kind._from_config(config, attn_implementation="eager", dtype=model.cfg.dtype)
        random = load(placed_like(made, model))
    except Exception as error:
        line = str(error).strip().splitlines()[:1]
        raise SinklensError(
            f"no random {kind.__name__} can be made from the configuration alone "
            f"({type(error).__name__}: {''.join(line)[:200]})"
        ) from error
    return random, f"{kind.__name__} of the same configuration, Hugging Face's initialisation"
