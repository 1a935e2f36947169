"""Replace the BOS embedding and read loss, KL and the sink.

What is written and the control (the same edit at a later position) are in `sinklens.hooks.bos`.
Predictions count after the edited position. Units: nats for `loss` and `kl`, shares for the sink
metrics, the model's own for `position0_norm`. A small effect shows that the model does not need
what BOS brings into the stream; it does not show that it does not need a first token.

Source: the act is that of 2606.06160, whose abstract does not say what takes BOS's place; the
conditions are sinklens's own, so no number here is a reproduction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...core.errors import SinklensError
from ...core.protocol import HookedModel
from ...hooks.bos import random_token, replace_bos_embedding
from ...hooks.intervention import Intervention
from ...hooks.matching import control_positions
from ...models import bos_token_id
from ...models.capabilities import check
from ...models.prompts import Prompts
from ...results.result import ExperimentResult
from ...runner.compare import Comparison
from ...runner.comparison import run_comparisons, sentences
from ...runner.registry import ExperimentConfig, choose_conditions, choose_metrics, experiment

RANDOM = ("random_token", "gaussian")


@dataclass(frozen=True)
class BosReplacementConfig(ExperimentConfig):
    """Settings; the conditions are in `sinklens.hooks.bos`."""


DEFAULT_CONDITIONS = ("mean", "zero", "random_token", "gaussian")
DEFAULT_METRICS = ("loss", "kl", "sink_mass", "sink_rate", "position0_norm")


def summary(result: ExperimentResult) -> list[str]:
    """Loss and sink mass under each condition, and what zeroing cannot show."""
    lines = []
    norm = [
        e
        for e in result.effects
        if (e.metric, e.condition, e.kind) == ("position0_norm", "zero", "treatment")
    ]
    if norm and norm[0].value < 1e-3:
        lines.append(
            "After zero the position-0 stream stays at 0 in every layer, which is no "
            "token's trajectory; read zero beside mean and random_token."
        )
    return (lines + sentences(result, "Replacing BOS by", ["loss", "sink_mass"]))[:12]


@experiment(
    paper="2606.06160",
    question="Does the sink need the BOS embedding, and what does the model lose without it?",
    summary=summary,
)
def bos_replacement(
    model: HookedModel, prompts: Prompts, config: BosReplacementConfig
) -> ExperimentResult:
    """Replace the BOS embedding under each condition, and the same edit at later positions.

    Raises:
        SinklensError: The prompts do not start with BOS, or the embedding cannot be edited.
    """
    bos = bos_token_id(model)
    if not prompts.bos or any(token != bos for token in prompts.tokens[:, 0].tolist()):
        raise SinklensError(
            "bos_replacement needs prompts that start with BOS; these do not. Use "
            "sinklens.prompts(model, bos=True) (--bos), or position0_patching, which edits "
            "position 0 whatever token it holds"
        )
    capabilities = check(model)
    capabilities.require("embedding", "bos_replacement", "Use position0_patching.")
    conditions, left_out = choose_conditions(config, DEFAULT_CONDITIONS, lambda _: None)
    metrics, missing = choose_metrics(config, DEFAULT_METRICS, causal=capabilities.causal)
    positions = control_positions(prompts.length, config.draws, config.seed, config.positions)
    comparisons = []
    drawn: dict[str, Any] = {"control_positions": positions}
    for condition in conditions:
        comparisons.append(compare_replacement(model, condition, positions, config))
        if condition == "random_token":
            drawn["tokens"] = [
                random_token(model, condition, config.seed, draw)
                for draw in range(max(1, config.draws))
            ]
    return run_comparisons(
        "bos_replacement",
        model,
        prompts,
        config,
        comparisons,
        metrics,
        left_out={**left_out, **missing},
        draws=drawn,
    )


def compare_replacement(
    model: HookedModel, condition: str, positions: Sequence[int], config: ExperimentConfig
) -> Comparison:
    """BOS replaced under one condition, and the same edit at a later position in each draw."""

    def replacement(position: int, draw: int) -> Intervention:
        return replace_bos_embedding(
            model, condition, position=position, seed=config.seed, draw=draw
        )

    draws = max(1, config.draws) if condition in RANDOM else 1
    return Comparison(
        condition,
        [replacement(0, draw) for draw in range(draws)],
        [replacement(position, draw) for draw, position in enumerate(positions)],
    )
