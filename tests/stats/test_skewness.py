"""Skewed differences and those of few prompts are named and marked, symmetric ones are not."""

from __future__ import annotations

import numpy as np

from sinklens.stats.effects import BOOTSTRAP_T, STUDENT_T, Row, paired_row
from sinklens.stats.skewness import uneven, uneven_notes


def row(condition: str, differences: np.ndarray, **fields: str) -> Row:
    zeros = np.zeros_like(differences)
    return paired_row("loss", condition, "treatment", differences, zeros, **fields)


def test_the_most_skewed_row_is_named() -> None:
    random = np.random.default_rng(0)
    symmetric = [row(f"even{i}", random.normal(size=64)) for i in range(20)]
    assert uneven(symmetric).rows == []
    mild, strong = random.exponential(size=64), -random.lognormal(sigma=1.5, size=64)
    rows = [*symmetric, row("mild", mild), row("strong", strong)]
    found = uneven(rows)
    assert found.rows == sorted(found.skewed) == [20, 21]
    note = uneven_notes(rows, found, STUDENT_T)[0]
    said = (
        "Skewed differences by prompt in 2 of 22 rows (marked ~ where shown), most in loss strong"
    )
    assert note.startswith(said)
    centred = strong - strong.mean()
    skewness = (centred**3).mean() / (centred**2).mean() ** 1.5
    assert (
        f"most in loss strong (treatment; skewness {skewness:+.1f})" in note
        and "bootstrap_t" in note
    )
    used, covered, *_ = uneven_notes(rows, found, BOOTSTRAP_T)
    assert used.startswith("Intervals over prompts are bootstrap-t") and "less than 95 %" in covered


def test_an_effect_in_few_prompts_is_named() -> None:
    few = np.array([0.1, -0.1] * 7 + [3.0, 4.0])
    rows = [row("even", np.random.default_rng(1).normal(size=16)), row("few", few)]
    found = uneven(rows)
    assert found.few == {1: 7 / 8.4} and found.rows == [1]
    note = uneven_notes(rows, found, STUDENT_T)[-1]
    assert "in 1 of 2 rows (marked ~ where shown), most in loss few" in note
    assert "2 of 16 make 83% of all differences" in note


def test_what_cannot_be_tested_is_left_alone() -> None:
    few = np.array([0.0, 0.0, 0.0, 9.0])
    tokens = row("tokens", np.array([0.0] * 30 + [9.0]), resampled="token")
    steps = np.tile([np.finfo(float).eps, 0.0], 8)  # of one draw, rounded away in the mean of two
    both = np.stack([1 + steps, np.ones(16)])
    draws = paired_row("loss", "draws", "treatment", both, np.ones_like(both))
    assert draws.effect.d_z and not (draws.values - draws.baselines).any()
    same = row("same", np.ones(20))
    rounding = row("rounding", np.array([0.0] * 19 + [1e-15]))
    assert rounding.effect.d_z
    assert uneven([row("few", few), same, draws, tokens, rounding]).rows == []
