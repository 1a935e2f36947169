"""Pooled effects against what R's metafor gives of published examples."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from sinklens.stats.pooled import pooled, regression

# Kacker 2004, by rma(y, v, method="PM", control=list(tol=1e-9)); printed in statsmodels' tests.
Y = np.array([61.0, 61.4, 62.21, 62.3, 62.34, 62.6, 62.7, 62.84, 65.9])
V = np.array([0.2025, 1.21, 0.09, 0.2025, 0.3844, 0.5625, 0.0676, 0.0225, 1.8225])
MEAN, ERROR, TAU2 = 62.4076199113286, 0.338030602684471, 0.705395309224248
Q, Q_P = 24.801897741835, 0.00167935146372742

# Colditz et al. 1994, `dat.bcg` of metafor: cases and others, treated and not, and latitude.
BCG = np.array(
    [
        (4, 119, 11, 128, 44),
        (6, 300, 29, 274, 55),
        (3, 228, 11, 209, 42),
        (62, 13536, 248, 12619, 52),
        (33, 5036, 47, 5761, 13),
        (180, 1361, 372, 1079, 44),
        (8, 2537, 10, 619, 19),
        (505, 87886, 499, 87892, 13),
        (29, 7470, 45, 7232, 27),
        (17, 1699, 65, 1600, 42),
        (186, 50448, 141, 27197, 18),
        (5, 2493, 3, 2338, 33),
        (27, 16886, 29, 17825, 33),
    ],
    float,
)


@pytest.mark.parametrize("size", [1.0, 1e-5, 1e4])
def test_a_published_mean(size: float) -> None:
    """To 1e-6, whatever the scale of the effects."""
    found = pooled(size * Y, size * np.sqrt(V))
    ends = MEAN + np.array([-1, 1]) * stats.t.isf(0.025, 8) * ERROR
    numbers = [found.estimate, found.error, found.tau, found.ci_low, found.ci_high]
    expected = [MEAN, ERROR, np.sqrt(TAU2), *ends]
    np.testing.assert_allclose(np.array(numbers) / size, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose([found.q, found.q_p_value], [Q, Q_P], rtol=0, atol=1e-6)
    assert found.weights.sum() == pytest.approx(1)


def test_the_spread_solves_its_equation() -> None:
    """Q at tau^2 is its expectation, k - 1, unless it is less at 0 already."""
    rng = np.random.default_rng(1)
    for _ in range(100):
        errors = rng.uniform(0.05, 0.5, 8)
        effects = 1 + rng.normal(0, 0.3, 8) + rng.normal(0, errors)
        found = pooled(effects, errors)
        weights = 1 / (errors**2 + found.tau**2)
        mean = weights @ effects / weights.sum()
        q = weights @ (effects - mean) ** 2
        assert q == pytest.approx(7, abs=1e-4) or (found.tau == 0 and q < 7)
        assert found.estimate == pytest.approx(mean)


def test_equal_effects_have_no_spread_and_no_narrower_interval() -> None:
    effects, errors = np.full(6, 0.3), np.full(6, 0.1)
    found = pooled(effects, errors)
    assert (found.tau, found.i2) == (0, 0) and found.estimate == pytest.approx(0.3)
    half = stats.t.isf(0.025, 5) * 0.1 / np.sqrt(6)
    assert found.ci_high - found.estimate == pytest.approx(half)


def test_a_published_regression() -> None:
    """`rma(yi, vi, mods = ~ ablat)` prints four digits, and its errors without the scale."""
    ill, well, control_ill, control_well, latitude = BCG.T
    effects = np.log(ill / (ill + well)) - np.log(control_ill / (control_ill + control_well))
    variances = 1 / ill - 1 / (ill + well) + 1 / control_ill - 1 / (control_ill + control_well)
    found = regression(effects, np.sqrt(variances), latitude[:, None], ["latitude"])
    constant, slope = found.terms
    assert constant.estimate == pytest.approx(0.2515, abs=5e-5)
    assert slope.estimate == pytest.approx(-0.0291, abs=5e-5)
    assert found.tau**2 == pytest.approx(0.0764, abs=1e-4)
    # By hand: weighted least squares with the estimated scale.
    weights = 1 / (variances + found.tau**2)
    design = np.column_stack([np.ones(13), latitude])
    inverse = np.linalg.inv(design.T * weights @ design)
    left = effects - design @ [constant.estimate, slope.estimate]
    error = np.sqrt(inverse[1, 1] * (weights * left**2).sum() / 11)
    assert slope.ci_high - slope.estimate == pytest.approx(stats.t.isf(0.025, 11) * error)
    assert slope.p_value == pytest.approx(2 * stats.t.sf(abs(slope.estimate) / error, 11))
    assert found.p_value == pytest.approx(slope.p_value)  # F of one term is t squared


def test_intervals_cover_the_mean_of_models() -> None:
    """Of 400 sets of 8 models that differ, with errors of different sizes; 95 % within error."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        errors = rng.uniform(0.05, 0.5, 8)
        found = pooled(1 + rng.normal(0, 0.3, 8) + rng.normal(0, errors), errors)
        covered += found.ci_low <= 1 <= found.ci_high
    assert 0.92 <= covered / 400 <= 0.98
