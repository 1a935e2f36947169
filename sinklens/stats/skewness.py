"""Rows whose interval covers less than it says: skewed differences, and effects of few prompts.

    skewness = mean (x - mean)^3 / standard deviation^3

of a row's differences by prompt, beside a test that they are not skewed (D'Agostino 1970, which
needs 8 values), with Benjamini-Hochberg over the rows. A row rests on few prompts where a tenth of
them (at least one) makes more than half of the sum of all differences in size; of normal
differences 0.7 % of rows of 8 prompts do, and 0.1 % of 16. How often intervals cover is in
`docs/calibration.md`. A sample shows skewness poorly: that none is found in few prompts does not
show that there is none, and what no prompt shows is in no interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from .effects import BOOTSTRAP_T, LEVEL, STUDENT_T, EffectSize, Row, within_rounding

LEAST_PROMPTS, LEAST = 8, 1.0
MARK = " ~"
"""After the interval of such a row, in tables; those of controls are not in them."""
MARKED = f"marked{MARK} where shown"
COVERAGE = {
    STUDENT_T: "Student's t covers less there (of lognormal differences, skewness 6, 83 % at 8 "
    "prompts, 87 % at 16, 89 % at 64); interval=bootstrap_t covers more (89, 93 and 92 %)",
    BOOTSTRAP_T: "bootstrap-t covers more there than Student's t, and less than 95 % (of lognormal "
    "differences, skewness 6, 89 % at 8 prompts, 92 % at 64)",
}
"""What is to be known of intervals of skewed differences."""


@dataclass(frozen=True)
class Uneven:
    """Rows by their number, each with how skewed it is, or how much few of its prompts make.

    Attributes:
        tested: How many rows were looked at.
        skewed: By number of a row its skewness.
        few: By number of a row the share that a tenth of its prompts makes.
    """

    tested: int
    skewed: dict[int, float]
    few: dict[int, float]

    @property
    def rows(self) -> list[int]:
        """The numbers of all of them."""
        return sorted({*self.skewed, *self.few})


def uneven(rows: Sequence[Row]) -> Uneven:
    """The rows of one value per prompt whose interval covers less than it says.

    Args:
        rows: Rows; those with another unit than the prompt have their own interval.
    """
    tested = [number for number, row in enumerate(rows) if _is_tested(row)]
    if not tested:
        return Uneven(0, {}, {})
    differences = [rows[number].values - rows[number].baselines for number in tested]
    skewness = np.array([stats.skew(values) for values in differences])
    p = [float(stats.skewtest(values).pvalue) for values in differences]
    skewed = (stats.false_discovery_control(p) <= LEVEL) & (np.abs(skewness) >= LEAST)
    shares = [_share_of_few(np.abs(values)) for values in differences]
    return Uneven(
        len(tested),
        {n: float(one) for n, one, so in zip(tested, skewness, skewed, strict=True) if so},
        {n: share for n, share in zip(tested, shares, strict=True) if share > 0.5},
    )


def uneven_notes(rows: Sequence[Row], found: Uneven, method: str) -> list[str]:
    """Sentences on the marked rows: how many there are, which is the most so, what follows.

    Args:
        rows: The rows.
        found: Which of them are marked.
        method: How intervals over prompts were made, a key of `stats.effects.INTERVALS`.
    """
    notes = []
    if method == BOOTSTRAP_T:
        notes.append(
            "Intervals over prompts are bootstrap-t; those over documents, tokens, layers, seeds "
            "and models are what they are without interval=bootstrap_t."
        )
    if found.skewed:
        most = max(found.skewed, key=lambda number: abs(found.skewed[number]))
        notes.append(
            f"Skewed differences by prompt in {len(found.skewed)} of {found.tested} rows ({MARKED})"
            f", most in {_named(rows[most].effect)}; skewness {found.skewed[most]:+.1f}): "
            f"{COVERAGE[method]}."
        )
    if found.few:
        most = max(found.few, key=found.few.__getitem__)
        prompts = len(rows[most].values)
        notes.append(
            f"Few prompts make most of the effect in {len(found.few)} of {found.tested} rows "
            f"({MARKED}), most in {_named(rows[most].effect)}; {tenth(prompts)} of {prompts} make "
            f"{found.few[most]:.0%} of all differences in size): of an effect in 1 prompt of 20 no "
            "interval holds the mean in more than 35 % of samples of 8 prompts, 55 % of 16."
        )
    return notes


def tenth(prompts: int) -> int:
    """A tenth of so many prompts, at least one."""
    return -(-prompts // 10)


def _is_tested(row: Row) -> bool:
    effect = row.effect
    enough = effect.n_prompts >= LEAST_PROMPTS
    return bool(effect.resampled == "prompt" and effect.d_z and enough and _varies(effect))


def _varies(effect: EffectSize) -> bool:
    """Whether differences vary by more than rounding, of which no moment can be taken."""
    if effect.ci_low is None or effect.ci_high is None:
        return False
    return not within_rounding(effect.ci_high - effect.ci_low, effect.baseline, effect.value)


def _share_of_few(sizes: np.ndarray) -> float:
    """What the largest tenth of values, at least one, makes of their sum."""
    return float(np.sort(sizes)[-tenth(len(sizes)) :].sum() / sizes.sum())


def _named(row: EffectSize) -> str:
    against = f" against {row.against}" if row.against else ""
    return f"{row.metric} {row.condition} ({row.kind}{against}"
