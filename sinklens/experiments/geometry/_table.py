"""The table of `reference_frame` as it is gathered: every value beside the nulls that were made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ...models.random_weights import RANDOM_WEIGHTS
from ...probes.patterns import ATTENTION, ROW_PERMUTED, UNIFORM
from ...results.record import Array
from ...stats.effects import Row, paired_row

Read = dict[tuple[str, str], Tensor]
UNITS = {
    "largest_column": "share of attention",
    "effective_anchors": "keys",
    "first_share": "share of the columns",
    "last_share": "share of the columns",
    "stability": "share of layer pairs",
    "centralised": "share of the columns",
    "distributed": "share of the columns",
    "bidirectional": "share of the columns",
    "star_likeness": "share of queries",
    "density": "share of pairs",
    "fiedler": "eigenvalue",
    "spectral_gap": "eigenvalue",
    "degree_variance": "queries squared",
    "participation_ratio": "singular values",
    "stable_rank": "singular values",
    "singular_gap": "share of the largest",
    "reference_share": "share of the norm",
    "kl_reduction": "nats",
    "betti0": "points in the diagram",
    "betti1": "points in the diagram",
    "mean_persistence": "bar length",
    "eigenvalue_ratio": "ratio",
    "eigenvalue_participation": "eigenvalues",
    "persistence0": "sum of bar lengths",
    "persistence1": "sum of bar lengths",
}
# The metrics with a row for random weights; the others have curves of them in the arrays.
HEADLINES = (
    "largest_column",
    "effective_anchors",
    "centralised",
    "distributed",
    "bidirectional",
    "star_likeness",
    "stable_rank",
    "reference_share",
)


def random_condition(condition: str) -> str:
    """What rows of a model with random weights are named, beside a condition of the model."""
    return RANDOM_WEIGHTS if condition == ATTENTION else f"{condition}:{RANDOM_WEIGHTS}"


@dataclass
class Table:
    """Rows and arrays of a run as they are gathered.

    Attributes:
        seed: Decides the resamples of the tests.
        rows: The rows.
        arrays: The arrays.
        by_draw: Of every null row, the mean of each draw.
    """

    seed: int
    rows: list[Row] = field(default_factory=list)
    arrays: dict[str, Array] = field(default_factory=dict)
    by_draw: dict[str, list[float]] = field(default_factory=dict)

    def beside_nulls(
        self,
        metric: str,
        condition: str,
        value: Float[Tensor, " prompt"],
        uniform: Float[Tensor, " prompt"],
        permuted: Float[Tensor, "prompt draw"] | None = None,
        random: Float[Tensor, " prompt"] | None = None,
    ) -> None:
        """A value beside uniform attention, and the nulls that were made.

        The contrast is the value's distance from uniform attention less that of the null.

        Args:
            metric: What was measured.
            condition: Of what.
            value: In the model.
            uniform: In uniform attention.
            permuted: In row-permuted attention.
            random: In a model with random weights, whose rows are named `random_condition`.
        """
        values, baselines = value.double().numpy(), uniform.double().numpy()
        unit = UNITS.get(metric, "1")
        self.rows.append(paired_row(metric, condition, "measurement", values, baselines, unit=unit))
        nulls: list[tuple[str, Tensor]] = []
        if permuted is not None:
            nulls.append((condition, permuted.double()))
            self.by_draw[f"{metric} {condition}"] = permuted.double().mean(0).tolist()
        if random is not None and metric in HEADLINES:
            nulls.append((random_condition(condition), random.double()[:, None]))
        for name, draws in nulls:
            mean = draws.mean(1).numpy()
            how: dict[str, Any] = {"unit": unit, "n_draws": draws.shape[1]}
            self.rows.append(paired_row(metric, name, "null", mean, baselines, **how))
            how |= {"tested": True, "seed": self.seed}
            apart = values - baselines, mean - baselines
            self.rows.append(paired_row(metric, name, "contrast", *apart, **how))

    def by_layer(self, name: str, read: Read, metric: str, dims: Sequence[str] = ()) -> None:
        """The curve of a metric over layers, for attention and its nulls, mean over prompts."""
        for source in (ATTENTION, UNIFORM, ROW_PERMUTED, RANDOM_WEIGHTS):
            if (source, metric) in read:
                values = read[source, metric].double()
                values = values.mean(2) if source == ROW_PERMUTED else values
                suffix = "" if source == ATTENTION else f":{source}"
                mean = values.mean(0).float()
                self.arrays[f"{name}{suffix}"] = Array(mean, ("layer", *dims))
