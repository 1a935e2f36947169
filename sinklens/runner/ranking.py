"""Screening: rank rows by attribution patching and run only the largest exactly.

The estimate is first-order (`engine/screening.py`). Rows of one kind of edit compete with each
other, over heads, layers and positions; the `top` with the largest mean estimate over prompts, by
size, are run. The result keeps all estimates and says how well the two agree in rank, among the
rows that were run. What is run was chosen on the same prompts that it is tested on, so p and q of
these rows are too small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..core.errors import UsageError
from ..core.labels import row_label
from ..core.protocol import HookedModel
from ..engine.screening import FORWARDS, estimate, shared_gradients
from ..metrics import LogitMetric, Metric
from ..models.prompts import Prompts
from ..results.record import Array
from ..stats.effects import EffectSize
from .compare import Comparison
from .config import ExperimentConfig


@dataclass(frozen=True)
class Ranking:
    """What screening chose.

    Attributes:
        chosen: The comparisons to run.
        metric: The metric whose effect was estimated.
        labels: Condition and place of every comparison that was ranked.
        estimates: Their estimates, averaged over prompts and draws.
        forwards: What it cost.
        of_part: Whether estimates are of part of the predictions that count.
    """

    chosen: list[Comparison]
    metric: str
    labels: list[str]
    estimates: list[float]
    forwards: int
    of_part: bool

    def array(self) -> Array:
        """The estimates, in the order of `labels`."""
        return Array(torch.tensor(self.estimates), ("ranked",))

    def settings(self, effects: Sequence[EffectSize]) -> dict[str, Any]:
        """What the result says about the screening."""
        exact = {
            row_label(row.condition, row.layer, row.head): row.effect
            for row in effects
            if row.kind == "treatment" and row.metric == self.metric
        }
        pairs = [
            (guess, exact[label])
            for label, guess in zip(self.labels, self.estimates, strict=True)
            if label in exact
        ]
        return {
            "metric": self.metric,
            "ranked": self.labels,
            "run": len(pairs),
            "rank_correlation": rank_correlation(pairs),
        }

    def note(self, settings: dict[str, Any]) -> str:
        """A sentence for the foot of the table."""
        agreement = settings["rank_correlation"]
        spoken = "too few to compare" if agreement is None else f"Spearman {agreement:.2f}"
        part = " at positions that no candidate intervenes on" if self.of_part else ""
        return (
            f"Screened: of {len(self.labels)} rows the {settings['run']} with the largest "
            f"attribution-patching estimate of {self.metric}{part} were run; rank correlation of "
            f"estimate and exact effect, by magnitude, among them: {spoken}. Rows were selected on "
            "the prompts on which they are tested, so p and q are too small."
        )


def rank(
    model: HookedModel,
    prompts: Prompts,
    config: ExperimentConfig,
    comparisons: Sequence[Comparison],
    metrics: Sequence[Metric],
) -> Ranking:
    """Estimate every comparison's treatment and choose the largest of each kind of edit.

    Raises:
        UsageError: There is nothing to rank, or no metric that can be estimated.
    """
    if prompts.length < prompts.longest:
        raise UsageError(
            f"screen needs prompts of one length, these are {prompts.size}; "
            "prompts.up_to(length) cuts them"
        )
    metric = next((m for m in metrics if isinstance(m, LogitMetric) and m.signed), None)
    if metric is None:
        raise UsageError("screen needs loss, logit_diff or another signed metric on logits")
    if all(one.treatment[0].layer is None for one in comparisons):
        raise UsageError(
            "screen has nothing to rank: each condition is one row; ask for more (each=true, "
            "layers)"
        )
    edits = [edit for one in comparisons for edit in one.treatment]
    gradients = shared_gradients(model, prompts, edits, metric, config.positions)
    values = estimate(
        model,
        prompts,
        edits,
        metric,
        batch_size=config.batch_size,
        memory=config.memory,
        positions=config.positions,
    ).mean(1)
    owners = torch.tensor([i for i, one in enumerate(comparisons) for _ in one.treatment])
    means = torch.stack([values[owners == i].mean() for i in range(len(comparisons))])
    # An edit's name leaves out where it is done: layer, head and position.
    kinds = [one.treatment[0].name for one in comparisons]
    kept: set[int] = set()
    for kind in dict.fromkeys(kinds):
        same = [i for i, other in enumerate(kinds) if other == kind]
        largest = means[same].abs().topk(min(config.top, len(same))).indices
        kept |= {same[i] for i in largest.tolist()}
    return Ranking(
        chosen=[one for i, one in enumerate(comparisons) if i in kept],
        metric=metric.name,
        labels=[row_label(*one.place) for one in comparisons],
        estimates=means.tolist(),
        forwards=FORWARDS * len(gradients),
        of_part=any(one.of_part for one in gradients),
    )


def rank_correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Spearman's correlation between the sizes of estimate and exact effect."""
    from scipy import stats

    if len(pairs) < 3:
        return None
    sizes = np.abs(np.array(pairs))
    if (np.ptp(sizes, axis=0) == 0).any():
        return None
    return float(stats.spearmanr(sizes[:, 0], sizes[:, 1]).statistic)
