"""BOS replacement, with the same intervention at a later position as its control."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.protocol import HookedModel
from ..hooks.bos import random_token, replace_bos_embedding
from ..hooks.intervention import Intervention
from ..models import bos_token_id
from ..models.prompts import Prompts
from ..runner.compare import Comparison, Control

CONDITIONS = ("mean", "zero", "random_token", "gaussian", "token:*")
RANDOM = ("random_token", "gaussian")
LATER = "later_position"


def starts_with_bos(model: HookedModel, prompts: Prompts) -> bool:
    """Whether position 0 of every prompt is the model's BOS."""
    return prompts.bos and set(prompts.tokens[:, 0].tolist()) == {bos_token_id(model)}


def bos_comparison(
    model: HookedModel, condition: str, positions: Sequence[int], *, draws: int, seed: int
) -> Comparison:
    """BOS replaced under one condition, and the same at a later position in each draw.

    Args:
        model: The model.
        condition: The condition, as in `hooks.bos`.
        positions: The control's position in each draw.
        draws: Draws of random replacements.
        seed: Seed of the draws.
    """

    def replacement(position: int, draw: int) -> Intervention:
        return replace_bos_embedding(model, condition, position=position, seed=seed, draw=draw)

    treatments = max(1, draws) if condition in RANDOM else 1
    control = [replacement(position, draw) for draw, position in enumerate(positions)]
    return Comparison(
        condition, [replacement(0, draw) for draw in range(treatments)], (Control(LATER, control),)
    )


def tokens_drawn(model: HookedModel, *, draws: int, seed: int) -> list[int | None]:
    """The token that `random_token` writes in each draw."""
    return [random_token(model, "random_token", seed, draw) for draw in range(max(1, draws))]
