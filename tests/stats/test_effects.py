"""Statistics against scipy, hand-made cases and simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from sinklens.stats.effects import (
    EffectSize,
    interval,
    paired_row,
    sign_flip_p,
    smallest_p,
    underpowered_families,
    with_q_values,
)


def test_the_sign_flip_test_equals_all_sign_patterns_counted_by_hand() -> None:
    differences = np.array([0.4, -0.1, 0.9, 0.3, -0.2, 0.7])
    means = [
        np.mean(differences * signs)
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    # Both tails, as scipy does: twice the share of sign patterns with at least this mean.
    expected = 2 * np.mean(np.array(means) >= differences.mean() - 1e-12)
    assert sign_flip_p(differences) == pytest.approx(expected, abs=1e-12)


def test_a_row_is_the_paired_difference_with_students_interval() -> None:
    values, baselines = np.array([3.0, 5.0, 4.5, 7.0]), np.array([2.0, 2.5, 4.0, 5.0])
    row = paired_row("loss", "zero", "treatment", values, baselines, unit="nats").effect
    differences = values - baselines
    half = stats.t.ppf(0.975, 3) * differences.std(ddof=1) / math.sqrt(4)
    assert (row.baseline, row.value) == (baselines.mean(), values.mean())
    assert row.effect == pytest.approx(differences.mean())
    assert (row.ci_low, row.ci_high) == pytest.approx(
        (differences.mean() - half, differences.mean() + half)
    )
    assert row.d_z == pytest.approx(differences.mean() / differences.std(ddof=1))
    assert row.p_value is None


def test_draws_and_prompts_are_crossed() -> None:
    """The mean squares of a two-way table, entry by entry."""
    table = np.random.default_rng(1).normal(size=(4, 6)) + np.array([[0.0], [1.0], [2.0], [4.0]])
    draws, prompts, mean = *table.shape, table.mean()
    of_prompts = draws * sum((column.mean() - mean) ** 2 for column in table.T) / (prompts - 1)
    of_draws = prompts * sum((line.mean() - mean) ** 2 for line in table) / (draws - 1)
    rest = sum(
        (table[d, p] - table[d].mean() - table[:, p].mean() + mean) ** 2
        for d in range(draws)
        for p in range(prompts)
    ) / ((draws - 1) * (prompts - 1))
    total = of_prompts + of_draws - rest
    assert of_draws > rest
    freedom = total**2 / (of_prompts**2 / 5 + of_draws**2 / 3 + rest**2 / 15)
    half = stats.t.ppf(0.975, freedom) * math.sqrt(total / table.size)
    row = paired_row("loss", "c", "contrast", table, np.zeros_like(table), tested=True).effect
    assert (row.ci_low, row.ci_high) == pytest.approx((mean - half, mean + half))
    alone = paired_row("loss", "c", "contrast", table.mean(0), np.zeros(6), tested=True).effect
    assert row.ci_high - row.ci_low > 2 * (alone.ci_high - alone.ci_low)
    assert row.p_value > alone.p_value == smallest_p(6)  # six prompts agree, four draws do not


def test_intervals_cover_whatever_share_of_the_spread_draws_have() -> None:
    random = np.random.default_rng(0)
    for spread in (0.0, 0.5, 2.0):
        tables = (
            random.normal(size=(1, 16))
            + spread * random.normal(size=(5, 1))
            + 0.5 * random.normal(size=(5, 16))
            for _ in range(600)
        )
        ends = [interval(table) for table in tables]
        covered = np.mean([low <= 0 <= high for low, high in ends])
        assert 0.92 <= covered <= 0.98  # 0.95 within three standard errors


def test_degenerate_samples_have_decided_answers() -> None:
    one = paired_row("loss", "c", "treatment", np.array([1.0]), np.zeros(1), tested=True).effect
    assert (one.ci_low, one.ci_high, one.p_value, one.d_z) == (None, None, None, None)
    same = paired_row("loss", "c", "treatment", np.full(5, 2.0), np.zeros(5), tested=True).effect
    assert (same.ci_low, same.ci_high, same.d_z) == (2.0, 2.0, None)
    nothing = paired_row("loss", "c", "treatment", np.zeros(5), np.zeros(5), tested=True).effect
    assert (nothing.effect, nothing.p_value) == (0.0, 1.0)
    assert interval(np.zeros(0)) == (None, None)


@pytest.mark.parametrize("size", [1e-9, 0.1, 3e5])
def test_values_that_are_equal_but_for_rounding_have_no_spread(size: float) -> None:
    """scipy warns of them, since their variance is nothing but rounding."""
    differences = size * np.array([1.0, 1 + 2**-52, 1 - 2**-52, 1 + 2**-51, 1.0])
    assert np.ptp(differences) > 0
    with pytest.warns(RuntimeWarning, match="[Pp]recision loss"):
        stats.ttest_1samp(differences, 0)
    row = paired_row("loss", "c", "treatment", differences, np.zeros(5)).effect
    assert row.ci_low == row.effect == row.ci_high == pytest.approx(size) and row.d_z is None


def test_a_small_spread_beyond_rounding_keeps_its_interval() -> None:
    differences = 0.1 + 1e-9 * np.array([1.0, -1.0, 2.0, 0.0, 3.0])
    row = paired_row("loss", "c", "treatment", differences, np.zeros(5)).effect
    half = stats.t.ppf(0.975, 4) * differences.std(ddof=1) / math.sqrt(5)
    assert row.ci_high is not None and row.ci_high - row.effect == pytest.approx(half, rel=1e-6)
    assert row.d_z is not None


def test_q_values_are_benjamini_hochberg_within_metric_and_kind() -> None:
    random = np.random.default_rng(0)
    rows = [
        paired_row(
            metric, str(number), kind, random.normal(shift, 1, 12), np.zeros(12), tested=True
        )
        for metric in ("loss", "sink_mass")
        for kind in ("treatment", "contrast")
        for number, shift in enumerate((0.0, 0.5, 1.0))
    ]
    found = [row.effect for row in with_q_values(rows)]
    for start in range(0, len(rows), 3):
        family = found[start : start + 3]
        p = [effect.p_value for effect in family]
        order = np.argsort(p)
        expected = np.empty(3)
        smallest = 1.0
        for rank in (2, 1, 0):  # from the largest p down
            smallest = min(smallest, p[order[rank]] * 3 / (rank + 1))
            expected[order[rank]] = smallest
        assert [effect.q_value for effect in family] == pytest.approx(expected.tolist())


def test_a_family_that_is_too_large_for_its_prompts_is_announced() -> None:
    def family(size: int, n: int) -> list[EffectSize]:
        values = np.arange(1.0, n + 1)
        return [
            paired_row("loss", str(i), "treatment", values, np.zeros(n), tested=True).effect
            for i in range(size)
        ]

    assert smallest_p(8) == 2 / 2**8
    assert sign_flip_p(np.arange(1.0, 9.0)) == smallest_p(8)
    assert underpowered_families(family(6, 8)) == []
    assert len(underpowered_families(family(7, 8))) == 1
    assert underpowered_families(family(7, 12)) == []


@pytest.mark.parametrize(
    ("n_prompts", "repeats"),
    [(8, 300), *(pytest.param(*size, marks=pytest.mark.slow) for size in ((8, 1500), (16, 250)))],
)
def test_calibration_on_true_nulls(n_prompts: int, repeats: int) -> None:
    random, rejected, covered = np.random.default_rng(n_prompts), 0, 0
    for number in range(repeats):
        values, zeros = random.standard_normal(n_prompts), np.zeros(n_prompts)
        row = paired_row("loss", "null", "treatment", values, zeros, tested=True, seed=number)
        assert row.effect.p_value is not None and row.effect.ci_low is not None
        rejected += row.effect.p_value <= 0.05
        covered += row.effect.ci_low <= 0 <= (row.effect.ci_high or 0)
    # Four standard errors of a share of 5 %.
    error = 4 * math.sqrt(0.05 * 0.95 / repeats)
    assert abs(rejected / repeats - 0.05) < error
    assert abs(covered / repeats - 0.95) < error
