"""`zoo.compare` sets members side by side and their difference beside that of seeds."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

import sinklens
from sinklens import zoo
from sinklens.zoo.comparison import seed_p_value

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def comparison() -> zoo.MemberComparison:
    return zoo.compare(
        ["rope", "nope", "encoder"],
        "bos_replacement",
        n=4,
        length=16,
        conditions=("zero",),
        metrics=("loss",),
        draws=1,
        progress=False,
    )


def test_one_table_by_member(comparison: zoo.MemberComparison) -> None:
    table = comparison.table()
    rows = table[(table.kind == "treatment") & (table.metric == "loss")]
    assert list(rows.member) == ["rope", "nope"]
    single, by_prompt = [], []
    for seed in (0, 1, 2):
        model = sinklens.load("rope", seed=seed)
        result = sinklens.run(
            "bos_replacement",
            model,
            sinklens.prompts(model, n=4, length=16),
            conditions=("zero",),
            metrics=("loss",),
            draws=1,
            progress=False,
        )
        row = result.find(kind="treatment")
        single.append(row.effect)
        differences = result.per_prompt["value"] - result.per_prompt["baseline"]
        by_prompt.append(differences[result.effects.index(row)].numpy())
    rope, nope = rows.to_dict("records")
    assert rope["effect"] == pytest.approx(sum(single) / 3)
    assert (rope["seed_low"], rope["seed_high"]) == (min(single), max(single))
    ends = stats.ttest_1samp(np.mean(by_prompt, axis=0), 0).confidence_interval()
    assert (rope["ci_low"], rope["ci_high"]) == pytest.approx((ends.low, ends.high))
    assert nope["seeds"] == 1 and nope["minus_rope"] == pytest.approx(
        nope["effect"] - rope["effect"]
    )
    # Student's test of one value against three: a prediction interval, written out.
    spread = stats.tstd(single)
    t = (nope["effect"] - rope["effect"]) / (spread * (1 + 1 / 3) ** 0.5)
    assert nope["p_seeds"] == pytest.approx(2 * stats.t.sf(abs(t), df=2))


def test_members_that_refuse_are_left_out_with_the_reason(
    comparison: zoo.MemberComparison,
) -> None:
    assert list(comparison.left_out) == ["encoder, seed 0"]
    text = str(comparison)
    assert "Left out: encoder" in text and "rope" in text and "nan" not in text.lower()
    assert "Left out: encoder" in comparison._repr_html_()
    long = comparison.to_dataframe()
    assert set(long.member) == {"rope", "nope"} and set(long.seed) == {0, 1, 2}


def test_zeros_and_small_p_are_written_as_in_every_table(comparison: zoo.MemberComparison) -> None:
    def tiny(result: sinklens.ExperimentResult, seed: int) -> sinklens.ExperimentResult:
        ends = {"effect": -3.469e-18 * (seed + 1), "value": 1.347e-244}
        return replace(result, effects=[replace(row, **ends) for row in result.effects])

    results = {key: tiny(result, key[1]) for key, result in comparison.results.items()}
    for shown in (replace(comparison, results=results), comparison):
        for text in (str(shown), shown._repr_html_()):
            assert not re.search(r"e-(0[7-9]|[1-9]\d)|(?<![\w.])[-+]0(?![.\d])", text), text
    results = {
        key: replace(
            result,
            effects=[
                replace(row, effect=1e9 * (key[0] == "nope") + key[1]) for row in result.effects
            ],
        )
        for key, result in comparison.results.items()
    }
    assert "<1e-4" in str(replace(comparison, results=results))


def test_equal_groups_give_scipys_p() -> None:
    assert seed_p_value([1.0, 2.0, 4.0], [3.0, 5.0, 9.0]) == pytest.approx(
        stats.ttest_ind([1.0, 2.0, 4.0], [3.0, 5.0, 9.0], equal_var=False).pvalue
    )
    assert seed_p_value([1.0], [2.0]) is None
    assert seed_p_value([], [1.0, 2.0]) is None


@pytest.mark.parametrize(
    ("members", "experiment", "message"),
    [
        (["rope", "learned-snik"], "sink_profile", "did you mean learned-sink"),
        ([], "sink_profile", "a list of shipped names"),
        ("rope", "sink_profile", "a list of shipped names"),
        (["rope"], "sink_profil", "did you mean sink_profile"),
        (["no-bos"], "bos_replacement", "can be run on none of these"),
    ],
)
def test_bad_input(members: list[str], experiment: str, message: str) -> None:
    with pytest.raises(sinklens.SinklensError, match=message):
        zoo.compare(members, experiment, n=2, length=8, progress=False)
