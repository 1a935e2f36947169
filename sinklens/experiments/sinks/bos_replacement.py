"""Replace the BOS embedding and read loss, KL and the sink.

What is written and the control (the same edit at a later position) are in `hooks.bos` and
`comparisons.bos`. Predictions count after the edited position. Units: nats for `loss` and `kl`,
shares for the sink metrics, the model's own for `position0_norm`. A small effect shows that the
model does not need what BOS brings into the stream; it does not show that it does not need a first
token.

Source: the act is that of Ruscio et al. 2026 (2606.06160), whose abstract does not say what takes
BOS's place; the conditions are sinklens's own, so no number here is a reproduction.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ...comparisons.bos import CONDITIONS, bos_comparison, starts_with_bos, tokens_drawn
from ...core.errors import SinklensError
from ...hooks.matching import control_positions
from ...results.effect_sentences import Compared
from ...results.figures import Effects
from ...results.record import Record
from ...runner.config import ExperimentConfig
from ...runner.registry import experiment
from ...runner.run import Run


@dataclass(frozen=True)
class BosReplacementConfig(ExperimentConfig):
    """Settings; the conditions are in `hooks.bos`."""


def stays_at_zero(result: Record) -> Iterator[str]:
    """What zeroing cannot show in models whose norms have no bias."""
    for row in result.effects:
        named = (row.metric, row.condition, row.kind)
        if named == ("position0_norm", "zero", "treatment") and row.value < 1e-3:
            yield (
                "After zero the residual stream at position 0 stays at 0 in every layer, which is "
                "no token's trajectory; read zero beside mean and random_token."
            )


@experiment(
    paper="Ruscio et al. 2026 (2606.06160)",
    question="Does the sink need the BOS embedding, and what does the model lose without it?",
    conditions=CONDITIONS,
    metrics=("loss", "kl", "sink_mass", "sink_rate", "position0_norm"),
    says=(
        Compared("Replacing BOS by", "loss"),
        Compared("Replacing BOS by", "sink_mass"),
        stays_at_zero,
    ),
    figure=Effects(("sink_mass", "loss|kl"), "Replacing BOS: the sink, and what it costs"),
    smallest={"conditions": ("mean", "random_token")},
)
def bos_replacement(run: Run[BosReplacementConfig]) -> None:
    """Replace the BOS embedding under each condition, and the same edit at later positions.

    Raises:
        SinklensError: The prompts do not start with BOS, or the embedding cannot be edited.
    """
    if not starts_with_bos(run.model, run.prompts):
        raise SinklensError(
            "bos_replacement needs prompts that start with BOS; these do not. Use "
            "sinklens.prompts(model, bos=True) (--bos), or position0_patching, which edits "
            "position 0 whatever token it holds"
        )
    run.capabilities.require("embedding", "bos_replacement", "Use position0_patching.")
    draws, seed = run.config.draws, run.config.seed
    positions = control_positions(run.prompts.length, draws, seed, run.config.positions)
    run.drawn(control_positions=positions)
    if "random_token" in run.conditions:
        run.drawn(tokens=tokens_drawn(run.model, draws=draws, seed=seed))
    run.compare(
        lambda run: [
            bos_comparison(run.model, condition, positions, draws=draws, seed=seed)
            for condition in run.conditions
        ]
    )
