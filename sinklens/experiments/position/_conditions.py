"""The edits of position 0 that `absolute_position` compares: which can act, and their controls.

A condition is one of `bos_replacement` (`mean`), or one of `position0_patching` with its part
(`other_token:residual`), which is patched at every chosen layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ...core.errors import SinklensError
from ...core.protocol import HookedModel
from ...hooks.bos import random_token
from ...hooks.position0 import POSITION0_CONDITIONS
from ...models import bos_token_id
from ...models.capabilities import check
from ...models.prompts import Prompts
from ...runner.config import ExperimentConfig
from ...runner.old_compare import Comparison
from ._old_patches import PatchValues, compare_replacement, parse_condition


def is_patch(condition: str) -> bool:
    """Whether a condition patches position 0 (`zero:residual`), not the embedding of BOS."""
    name, _, part = condition.partition(":")
    return name in POSITION0_CONDITIONS and bool(part)


def refusals(model: HookedModel, prompts: Prompts) -> Callable[[str], str | None]:
    """Why a condition cannot act here, or None if it can."""
    capabilities, bos = check(model), bos_token_id(model)
    starts_with_bos = prompts.bos and set(prompts.tokens[:, 0].tolist()) == {bos}

    def refusal(condition: str) -> str | None:
        site = parse_condition(condition)[1] if is_patch(condition) else "embedding"
        if site == "embedding" and not starts_with_bos:
            return (
                f"{condition} replaces BOS, and the prompts do not start with it; use prompts with "
                "BOS (--bos), or other_token:residual, which edits position 0 whatever it holds"
            )
        try:
            capabilities.require(site, condition, "Use other_token:residual.")
        except SinklensError as error:
            return str(error)
        return None

    return refusal


def compare_edits(
    model: HookedModel,
    prompts: Prompts,
    config: ExperimentConfig,
    conditions: Sequence[str],
    layers: list[int],
    positions: list[int],
) -> tuple[list[Comparison], dict[str, Any], int]:
    """The edits with their controls, what was drawn for them, and the forwards that it took."""
    patches = [condition for condition in conditions if is_patch(condition)]
    made, drawn, forwards = [], {}, 0
    for condition in conditions:
        if condition not in patches:
            made.append(compare_replacement(model, condition, positions, config))
        if condition == "random_token":
            drawn["tokens"] = [
                random_token(model, condition, config.seed, draw)
                for draw in range(max(1, config.draws))
            ]
    if patches:
        values = PatchValues(model, prompts, config, layers, patches, positions)
        made += [values.comparison(*parse_condition(one), at) for one in patches for at in layers]
        drawn |= values.drawn
        forwards = values.forwards
    return made, drawn, forwards
