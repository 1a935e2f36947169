"""Tests reject and intervals cover as `docs/calibration.md` says; small versions of its rows.

The page is computed from the formulas for many experiments at once; here its computation and the
package's are held against each other and against scipy, experiment by experiment.
"""

from __future__ import annotations

import math
import re
import warnings

import numpy as np
import pytest
from scipy import stats

from sinklens.stats.bootstrap import pivot_quantiles
from sinklens.stats.effects import bootstrap_t, interval, paired_row, sign_flip_p
from sinklens.stats.skewness import uneven
from tests.benchmarks import calibration
from tests.benchmarks.calibration import DRAWN, PAGE, simulate

SYMMETRIC = ("normal", "Student's t, 3 degrees")
LINE = re.compile(r"^\| ([^|`]+) \| (\d+) \|((?: [\d.]+ \|)+)$", re.MULTILINE)


def rows_of_the_page(table: str = "simulated") -> dict[tuple[str, int], list[float]]:
    """By distribution and prompts: p, control, Student's t, bootstrap-t, BCa; or by rule."""
    after = PAGE.read_text("utf-8").partition(f"<!-- {table} -->\n\n")[2]
    found = LINE.findall(after.partition("\n\n")[0] + "\n")
    return {
        (name, int(size)): [float(one) for one in numbers.strip(" |").split(" | ")]
        for name, size, numbers in found
    }


@pytest.mark.parametrize("name", ["normal", "lognormal"])
def test_intervals_and_tests_are_those_of_the_formulas(name: str) -> None:
    random = np.random.default_rng(3)
    differences = DRAWN[name][0](random, (6, 12)) - DRAWN[name][1]
    ends = {
        interval: calibration.student_ends(differences),
        bootstrap_t: calibration.bootstrap_t_ends(differences, random),
        _bca: calibration.bca_ends(differences, random),
    }
    p = calibration.sign_flip_ps(differences, random)
    for number, one in enumerate(differences):
        reach = stats.t.ppf(0.975, 11) * one.std(ddof=1) / math.sqrt(12)
        for make, sides in ends.items():
            # But for the resamples drawn, at quantiles of 2.5 %.
            tolerance = 1e-9 if make is interval else reach / 4
            np.testing.assert_allclose(make(one), [side[number] for side in sides], atol=tolerance)
        assert sign_flip_p(one) == pytest.approx(p[number], abs=1e-9)


def _bca(one: np.ndarray) -> tuple[float, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = stats.bootstrap((one,), np.mean, rng=np.random.default_rng(1))
    return found.confidence_interval.low, found.confidence_interval.high


def test_several_draws_stretch_the_same_interval() -> None:
    random = np.random.default_rng(4)
    by_draw = random.lognormal(size=(3, 10)) + random.normal(size=(3, 1))
    low, high = interval(by_draw)
    quantiles = pivot_quantiles(by_draw.mean(0), 0.05, 7)
    assert low is not None and high is not None and quantiles is not None
    usual, mean = stats.t.ppf(0.975, 9), by_draw.mean()
    below = (mean - low) * quantiles[1] / usual
    above = (mean - high) * quantiles[0] / usual
    assert bootstrap_t(by_draw, 7) == pytest.approx((mean - below, mean + above))
    # Skewed to the right, the mean may lie further above than below.
    assert above > below


def test_where_resamples_do_not_vary_students_interval_stays() -> None:
    for values in ([0.0] * 7 + [1.0], [1.0, 2.0, 4.0], [2.0] * 6, [1.0]):
        assert bootstrap_t(np.array(values)) == interval(np.array(values))
    by_draw = np.array([[1.0] * 6, [2.0] * 6])  # draws differ, and prompts do not
    assert bootstrap_t(by_draw) == interval(by_draw)


@pytest.mark.parametrize(("name", "size"), [("normal", 8), ("lognormal", 8), ("lognormal", 16)])
def test_small_versions_of_the_page(name: str, size: int) -> None:
    repeats = 1500
    found, published = simulate(name, size, repeats, seed=1), rows_of_the_page()[name, size]
    shares = found.rejected, found.control, *found.covered.values()
    for share, expected in zip(shares, published, strict=True):
        assert abs(share - expected) < 4 * math.sqrt(max(expected * (1 - expected), 0.02) / repeats)


def test_a_small_version_of_the_rules() -> None:
    repeats = 1000
    found = calibration.rates_of_rules("lognormal", 16, repeats)
    for share, expected in zip(found, rows_of_the_page("rules")["lognormal", 16], strict=True):
        assert abs(share - expected) < 4 * math.sqrt(max(expected * (1 - expected), 0.02) / repeats)


def test_marks_of_the_rules_are_those_of_the_package() -> None:
    """One row at a time, as the rules have it."""
    random = np.random.default_rng(4)
    draw, mean = DRAWN["lognormal"]
    differences = draw(random, (40, 16)) - mean
    rows = [paired_row("loss", "null", "treatment", one, np.zeros(16)) for one in differences]
    found = calibration.marked(differences)
    assert found.tolist() == [bool(uneven([row]).rows) for row in rows]
    assert 0 < found.sum() < len(rows)


def test_what_the_page_says_of_rules() -> None:
    """By both intervals a verdict is wrong in at most 6 % from 16 prompts on, with exceptions."""
    for (name, size), (_, _, both, *_) in rows_of_the_page("rules").items():
        if name not in ("in 5 % of prompts", "lognormal") and "effect" not in name and size >= 16:
            assert both <= 0.06


def test_the_package_covers_as_the_page_says() -> None:
    """Rows as experiments make them."""
    random, repeats, covered = np.random.default_rng(5), 250, {"student_t": 0, "bootstrap_t": 0}
    draw, mean = DRAWN["lognormal"]
    for number in range(repeats):
        values, null = draw(random, (1, 8))[0], np.full(8, mean)
        for method in covered:
            row = paired_row("loss", "null", "treatment", values, null, method=method, seed=number)
            assert row.effect.ci_low is not None and row.effect.ci_high is not None
            covered[method] += row.effect.ci_low <= 0 <= row.effect.ci_high
    published = rows_of_the_page()["lognormal", 8][2:4]
    for count, expected in zip(covered.values(), published, strict=True):
        assert abs(count / repeats - expected) < 4 * math.sqrt(expected * (1 - expected) / repeats)


def test_what_the_page_says_of_its_table() -> None:
    """At most 6 % false verdicts; bootstrap-t covers more where Student's t covers too little."""
    rows = rows_of_the_page()
    assert len(rows) == 4 * (len(DRAWN) + len(calibration.OF_SMOLLM2))
    for (name, size), (p, control, student, bootstrapped, bca) in rows.items():
        assert control <= 0.06
        if name in SYMMETRIC:
            assert p <= 0.06 and 0.935 <= student <= 0.98
        rare = name == "in 5 % of prompts" and size <= 32
        if student < 0.9 and not rare:
            assert bootstrapped > max(student, bca if size <= 16 else 0)
