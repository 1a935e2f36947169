"""The edits of position 0 and their controls: which can act, and what is read under them.

A condition is one of `bos_replacement` (`mean`), or one of `position0_patching` with its part
(`other_token:residual`), which is patched at every chosen layer. The control is the same edit at a
later position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...comparisons.bos import bos_comparison, starts_with_bos, tokens_drawn
from ...comparisons.position0 import CONDITIONS as PATCHES
from ...comparisons.position0 import Position0Patches
from ...hooks.intervention import one_per_run
from ...metrics import METRICS
from ...runner.compare import Comparison, in_order
from ...runner.run import Run
from ._components import Components
from ._pairs import KEYS
from ._reader import Reader

ZERO_NORM = 1e-3


def refusals(run: Run[Any]) -> dict[str, str]:
    """Why conditions cannot act here."""
    replaceable, reasons = starts_with_bos(run.model, run.prompts), {}
    for condition in run.conditions:
        site = condition.partition(":")[2] if condition in PATCHES else "embedding"
        reasons[condition] = run.capabilities.refusal(site, condition, "Use other_token:residual.")
        if site == "embedding" and not replaceable:
            reasons[condition] = (
                f"{condition} replaces BOS, and the prompts do not start with it; use prompts with "
                "BOS (--bos), or other_token:residual, which edits position 0 whatever it holds"
            )
    return {condition: reason for condition, reason in reasons.items() if reason}


def edits_of_position0(
    run: Run[Any], layers: Sequence[int], positions: Sequence[int]
) -> list[Comparison]:
    """The edits of a run's conditions, each with the same at later positions as its control."""
    draws, seed = run.config.draws, run.config.seed
    run.drawn(control_positions=[*positions], layers=[*layers])
    patched = [condition for condition in run.conditions if condition in PATCHES]
    comparisons = [
        bos_comparison(run.model, condition, positions, draws=draws, seed=seed)
        for condition in run.conditions
        if condition not in PATCHES
    ]
    if "random_token" in run.conditions:
        run.drawn(tokens=tokens_drawn(run.model, draws=draws, seed=seed))
    if patched:
        patches = Position0Patches(run, patched, layers, positions)
        comparisons += [patches.comparison(name, layer) for name in patched for layer in layers]
    for comparison in comparisons:
        if comparison.condition == "zero" and _stays_at_zero(run, comparison):
            run.footnote(
                "zero",
                "the residual stream at position 0 then stays at 0 in every layer, which is no "
                "token's trajectory",
            )
    return comparisons


def _stays_at_zero(run: Run[Any], zeroed: Comparison) -> bool:
    """Whether the residual stream at position 0 is 0 in all layers, as where no norm has a bias."""
    norm = run.evaluate(zeroed.treatment, metrics=[METRICS["position0_norm"]]).values
    return float(norm.max()) < ZERO_NORM


@dataclass(frozen=True)
class Edit:
    """A comparison with what was read under its edits.

    Attributes:
        comparison: What was done.
        treatment: What was read in each draw.
        control: For each draw of the control its position, and what was read.
    """

    comparison: Comparison
    treatment: list[Components]
    control: list[tuple[int, Components]]

    @property
    def layer(self) -> int | None:
        """The patched layer; None where BOS was replaced."""
        return self.comparison.treatment[0].layer

    @property
    def name(self) -> str:
        """The condition, and for a patch its layer."""
        return self.comparison.condition + ("" if self.layer is None else f"@L{self.layer}")

    def mean(self, read: Callable[[Components], Tensor]) -> Tensor:
        """What is read under the treatment, mean over draws."""
        return torch.stack([read(seen) for seen in self.treatment]).mean(0)

    def first_layer(self, keys: str) -> int:
        """The first layer whose logits, with these keys, the edit can change."""
        if self.layer is None:
            return 1
        own_key = not KEYS[keys] and self.comparison.treatment[0].site != "value"
        return self.layer if own_key else self.layer + 1


def read_edits(reader: Reader, comparisons: Sequence[Comparison]) -> list[Edit]:
    """Read every intervention once."""
    order = one_per_run(in_order(comparisons))
    read = {edit.run: seen for edit, seen in zip(order, reader.edited(order), strict=True)}
    return [
        Edit(
            comparison,
            [read[edit.run] for edit in comparison.treatment],
            [(e.position, read[e.run]) for c in comparison.made for e in c.interventions],
        )
        for comparison in comparisons
    ]
