"""Skewed differences are named, symmetric ones are not."""

from __future__ import annotations

import numpy as np

from sinklens.stats.effects import Row, paired_row
from sinklens.stats.skewness import skewness_notes


def row(condition: str, differences: np.ndarray, **fields: str) -> Row:
    zeros = np.zeros_like(differences)
    return paired_row("loss", condition, "treatment", differences, zeros, **fields)


def test_the_most_skewed_row_is_named() -> None:
    random = np.random.default_rng(0)
    symmetric = [row(f"even{i}", random.normal(size=64)) for i in range(20)]
    assert skewness_notes(symmetric) == []
    mild, strong = random.exponential(size=64), -random.lognormal(sigma=1.5, size=64)
    (note,) = skewness_notes([*symmetric, row("mild", mild), row("strong", strong)])
    assert note.startswith("Skewed differences by prompt in 2 of 22 rows, most in loss strong")
    centred = strong - strong.mean()
    skewness = (centred**3).mean() / (centred**2).mean() ** 1.5
    assert f"skewness {skewness:+.1f}" in note


def test_what_cannot_be_tested_is_left_alone() -> None:
    few = np.array([0.0, 0.0, 0.0, 9.0])
    tokens = row("tokens", np.array([0.0] * 30 + [9.0]), resampled="token")
    steps = np.tile([np.finfo(float).eps, 0.0], 8)  # of one draw, rounded away in the mean of two
    both = np.stack([1 + steps, np.ones(16)])
    draws = paired_row("loss", "draws", "treatment", both, np.ones_like(both))
    assert draws.effect.d_z and not (draws.values - draws.baselines).any()
    same = row("same", np.ones(20))
    assert skewness_notes([row("few", few), same, draws, tokens]) == []
