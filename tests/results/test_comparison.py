"""Results beside each other: paired by prompt where the prompts are the same, else Welch's t."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import sinklens
from sinklens.core.errors import UsageError
from sinklens.results.comparison_figure import MOST_ROWS
from sinklens.results.estimates import Effect, Measure, Reference, Sample, rows_of
from sinklens.results.result import ExperimentResult
from sinklens.stats.effects import Row, with_q_values
from sinklens.stats.unpaired import welch

LOSS, MASS = Measure("nats", "the clean run"), Measure("share of attention", "uniform attention")
rng = np.random.default_rng(1)
FIRST, SECOND, FEWER = rng.normal(0.5, 0.2, 12), rng.normal(0.7, 0.4, 12), rng.normal(0.1, 0.1, 7)
CONTROL = rng.normal(0.1, 0.1, 12)


def rows(loss: np.ndarray, mass: np.ndarray) -> list[Row]:
    n = len(loss)
    control = Reference(Effect(CONTROL[:n], 0.0), "later_position")
    made = list(rows_of("loss", LOSS, "zero", Effect(loss, 0.0), control, prompts=n, seed=0))
    made += rows_of("mass", MASS, "position0", Sample(mass, 0.1), prompts=n, seed=0)
    return made + list(rows_of("rank", LOSS, "weights", Sample(3.0), prompts=n, seed=0))


def result(
    made: Sequence[Row], model: str = "one", text: str = "same", **known: Any
) -> ExperimentResult:
    values, baselines = ([getattr(row, side) for row in made] for side in ("values", "baselines"))
    return ExperimentResult(
        experiment="test",
        effects=[row.effect for row in with_q_values(made)],
        summary=[],
        arrays={},
        per_prompt={
            "value": torch.tensor(np.stack(values)),
            "baseline": torch.tensor(np.stack(baselines)),
        },
        settings={"draws": 1, **known.pop("settings", {})},
        provenance={
            "bos": True,
            "model": {"name": model, **known},
            "prompts": {"n": len(values[0]), "length": 8, "source": text, "hash": text},
        },
    )


ONE, OTHER = result(rows(FIRST, FIRST)), result(rows(SECOND, SECOND), "other")
ELSEWHERE = result(rows(FEWER, FEWER), "other", "elsewhere")


def of(comparison: sinklens.ResultComparison, **wanted: Any) -> sinklens.EffectSize:
    (found,) = [
        one.effect
        for one in comparison.differences
        if all(getattr(one.effect, name) == value for name, value in wanted.items())
    ]
    return found


def sign_flips(differences: np.ndarray) -> float:
    """Two-sided p over all signs of all prompts."""
    signs = np.array(list(itertools.product((-1, 1), repeat=len(differences))))
    means = (signs * differences).mean(1)
    sides = [(side * means >= side * differences.mean() - 1e-12).mean() for side in (-1, 1)]
    return float(min(1.0, 2 * min(sides)))


def test_the_same_prompts_are_paired() -> None:
    """Against scipy's paired t test on the differences of effects, and all signs by hand."""
    comparison = sinklens.compare([ONE, OTHER])
    assert comparison.base == "one" and all(one.paired for one in comparison.differences)
    expected = stats.ttest_rel(SECOND, FIRST)
    low, high = expected.confidence_interval(0.95)
    for row in (of(comparison, kind="treatment"), of(comparison, metric="mass")):
        assert row.effect == pytest.approx(SECOND.mean() - FIRST.mean())
        assert (row.ci_low, row.ci_high) == pytest.approx((low, high))
        assert row.p_value == pytest.approx(sign_flips(SECOND - FIRST)) and row.n_prompts == 12
        assert row.q_value == row.p_value  # one row of its metric and kind
    contrast = of(comparison, kind="contrast")
    assert contrast.baseline == pytest.approx((FIRST - CONTROL).mean())
    assert contrast.value == pytest.approx((SECOND - CONTROL).mean())


def test_other_prompts_are_not_paired() -> None:
    """Against Welch's t by hand, with Satterthwaite's degrees of freedom."""
    comparison = sinklens.compare([ONE, ELSEWHERE])
    assert not any(one.paired for one in comparison.differences)
    errors = [group.var(ddof=1) / len(group) for group in (FIRST, FEWER)]
    freedom = sum(errors) ** 2 / sum(
        error**2 / (len(group) - 1) for error, group in zip(errors, (FIRST, FEWER), strict=True)
    )
    error, difference = np.sqrt(sum(errors)), FEWER.mean() - FIRST.mean()
    half = stats.t.ppf(0.975, freedom) * error
    row = of(comparison, kind="treatment")
    assert row.effect == pytest.approx(difference) and row.n_prompts == 19
    assert (row.ci_low, row.ci_high) == pytest.approx((difference - half, difference + half))
    assert row.p_value == pytest.approx(2 * stats.t.sf(abs(difference) / error, freedom))
    text = str(comparison)
    assert "the difference is unpaired (Welch)" in text and "19 prompts" in text


def test_equal_numbers_of_prompts_are_not_enough_to_pair() -> None:
    other = result(rows(SECOND, SECOND), "other", "elsewhere")
    assert of(sinklens.compare([ONE, other]), kind="treatment").ci_low == pytest.approx(
        stats.ttest_ind(SECOND, FIRST, equal_var=False).confidence_interval(0.95).low
    )


def test_a_result_beside_itself_differs_in_nothing() -> None:
    comparison = sinklens.compare([ONE, ONE])
    for one in comparison.differences:
        assert (one.effect.effect, one.effect.ci_low or 0.0) == (0.0, 0.0)
        assert one.effect.p_value in (None, 1.0)
    assert comparison.base == "one (1)" and "one (2)" in str(comparison)


def test_a_number_without_spread_has_no_interval() -> None:
    for other in (OTHER, ELSEWHERE):
        row = of(sinklens.compare([ONE, other]), metric="rank")
        assert (row.effect, row.ci_low, row.ci_high, row.p_value) == (0.0, None, None, None)


@pytest.mark.slow
def test_false_findings_are_as_many_as_they_may_be() -> None:
    """Of two groups of the same distribution, with unequal spread and number."""
    draw = np.random.default_rng(2)
    found = [welch(draw.normal(0, 3, 8), draw.normal(0, 1, 16)) for _ in range(600)]
    rejected = np.mean([p < 0.05 for _, _, p in found])
    covered = np.mean([low <= 0 <= high for low, high, _ in found])
    assert abs(rejected - 0.05) < 0.02 and covered == pytest.approx(1 - rejected)


def test_groups_without_spread() -> None:
    still, moving = np.full(4, 2.0), np.array([1.0, 2.0, 3.0, 6.0])
    assert welch(still, np.full(3, 1.5)) == (0.5, 0.5, None)
    low, high, p = welch(moving, still)
    assert low < 1 < high and 0 < p < 1
    assert welch(moving, np.array([1.0])) == (None, None, None)


@pytest.mark.parametrize(
    ("others", "labels"),
    [
        ([result(rows(SECOND, SECOND), step=64), ONE], ["one step 0", "one step 64", "one"]),
        ([result(rows(SECOND, SECOND), seed=1)], ["one", "one seed 1"]),
        ([result(rows(SECOND, SECOND), "two", step=64)], ["one", "two"]),
        ([result(rows(FEWER, FEWER), text="other")], ["one on same", "one on other"]),
    ],
)
def test_labels_say_what_differs(others: list[ExperimentResult], labels: list[str]) -> None:
    first = result(rows(FIRST, FIRST), step=0) if "step 0" in labels[0] else ONE
    comparison = sinklens.compare([first, *others])
    seen = [comparison.base, *dict.fromkeys(one.result for one in comparison.differences)]
    assert seen == labels


def test_rows_over_documents_are_compared_by_prompt() -> None:
    """Paired they need no clusters; unpaired the reader is told that there are none."""
    clustered = [replace(row, resampled="document", n_prompts=3) for row in ONE.effects]
    first = replace(ONE, effects=clustered)
    assert len(first.per_prompt_frame()) == len(ONE.per_prompt_frame())
    assert sinklens.compare([first, OTHER]).differences[0].effect == (
        sinklens.compare([ONE, OTHER]).differences[0].effect
    )
    unpaired = sinklens.compare([first, ELSEWHERE])
    assert (
        unpaired.differences[0].effect == sinklens.compare([ONE, ELSEWHERE]).differences[0].effect
    )
    assert "does not cluster" in str(unpaired)
    assert "does not cluster" not in str(sinklens.compare([ONE, ELSEWHERE]))


def test_what_could_not_be_compared_is_said() -> None:
    made = rows(SECOND, SECOND)
    other = result([row for row in made if row.effect.metric != "mass"], settings={"draws": 3})
    text = str(sinklens.compare([ONE, other]))
    assert "was run with other settings: draws." in text
    assert "1 rows are in only one of one (1) and one (2)." in text
    assert "Intervals are over prompts" in text


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([ONE], "at least 2 results"),
        (ONE, r"compare\(\[first, ...\]\)"),
        ([ONE, "two"], "a list of results, not of str"),
        ([ONE, replace(OTHER, experiment="sink_profile")], "not of test, sink_profile"),
    ],
)
def test_what_is_no_comparison_is_refused(given: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        sinklens.compare(given)


def test_concat_is_one_long_table() -> None:
    frame = sinklens.concat([ONE, OTHER])
    assert len(frame) == len(ONE.effects) + len(OTHER.effects)
    assert frame["model"].unique().tolist() == ["one", "other"]
    assert frame["effect"].tolist() == [row.effect for r in (ONE, OTHER) for row in r.effects]
    with pytest.raises(UsageError, match="concat takes a list of at least 1 results"):
        sinklens.concat([])


def test_table_and_figure_hold_the_differences() -> None:
    comparison = sinklens.compare([ONE, OTHER, ELSEWHERE])
    frame = comparison.to_dataframe()
    assert len(frame) == len(comparison.table()) == 8
    assert frame["paired"].tolist() == [True] * 4 + [False] * 4
    assert frame["effect"].tolist() == [one.effect.effect for one in comparison.differences]
    drawn = comparison.plot()
    points = {(trace.name, x) for trace in drawn.data for x in trace.x}
    assert points == {(one.result, one.effect.effect) for one in comparison.differences}
    axes = drawn.select_yaxes()
    labels = [text.replace("<br>", " ") for axis in axes for text in axis.ticktext]
    assert labels == ["zero", "zero against later_position", "position0", "weights"]
    page = comparison._repr_html_()
    assert page.count("<tr") == 9 and "difference \\[95 %]" in comparison.to_markdown()
    assert "\\toprule" in comparison.to_latex() and not re.search(r"\bnan\b", page)


@pytest.mark.slow
def test_a_figure_of_many_rows_shows_the_largest() -> None:
    sides = []
    for shift in (0.0, 0.3):
        made = [
            row
            for layer in range(50)
            for row in rows_of(
                "loss", LOSS, f"L{layer}", Effect(FIRST + shift * layer, 0.0), prompts=12, seed=0
            )
        ]
        sides.append(result(made, f"{shift}"))
    drawn = sinklens.compare(sides).plot()
    assert f"the largest {MOST_ROWS} of 50 rows" in drawn.layout.annotations[0].text
    assert min(drawn.data[0].x) == pytest.approx(0.3 * (50 - MOST_ROWS))
