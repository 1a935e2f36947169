"""Sentences from templates: what is there is said, what is missing is not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from sinklens.results.effect_sentences import Compared, does_more
from sinklens.results.estimates import Effect, Measure, Reference, Sample, proportion, rows_of
from sinklens.results.notes import counted_notes, spread_notes
from sinklens.results.record import Array, Record
from sinklens.results.wording import (
    describe,
    grouped,
    listed,
    null_verdict,
    portion,
    probability,
    say,
    written,
)
from sinklens.stats.effects import with_q_values

MEASURES = {
    "mass": proportion("share of attention", "uniform attention", ".1%"),
    "loss": Measure("nats", "the clean run"),
}
# Centred, so that means are round.
ONE, OTHER, THIRD = (
    (noise - noise.mean()) / 20 for noise in np.random.default_rng(0).standard_normal((3, 12))
)


@pytest.fixture(scope="module")
def record() -> Record:
    rows = []
    for condition, values in (("position0", 0.5 + ONE), ("position0:no_bos", 0.1 + OTHER)):
        later = Reference(Sample(0.08 + THIRD, 0.1), "later_position")
        permuted = Reference(Sample(0.1 + OTHER / 2, 0.1), "row_permuted", kind="null")
        sample = Sample(values, 0.1)
        rows += rows_of(
            "mass", MEASURES["mass"], condition, sample, later, permuted, prompts=12, seed=0
        )
    for condition, size in (("zero", 1.0), ("mean", 0.0)):
        effect = Effect(size + 0.1 + ONE, 0.0)
        control = Reference(Effect(0.1 + THIRD, 0.0), "later_position")
        rows += rows_of("loss", MEASURES["loss"], condition, effect, control, prompts=12, seed=0)
    return Record(
        experiment="test",
        effects=[row.effect for row in with_q_values(rows)],
        summary=[],
        arrays={},
        per_prompt={},
        settings={},
        provenance={},
        findings={"layer": 3, "nothing": None},
        measures=MEASURES,
    )


def test_a_row_is_said_with_its_null_and_references(record: Record) -> None:
    (line,) = say(record, ["Position 0 gets {mass/position0}."])
    assert line == (
        "Position 0 gets 50.0% of attention, above uniform attention (10.0%) and its row-permuted "
        "null (10.0%); more than its later-position control (8.0%)."
    )


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{mass/position0:no_bos|value}", "10.0% of attention"),
        ("{mass/position0|null}", "10.0%"),
        ("{mass/position0|verdict}", "above uniform attention (10.0%)"),
        ("{mass/position0|effect}", "+0.4 share of attention"),
        ("entering layer {layer}, {layer:02d}", "entering layer 3, 03"),
    ],
)
def test_parts_of_rows_and_findings(record: Record, template: str, words: str) -> None:
    (line,) = say(record, [template])
    assert line.partition(" [")[0] == words


def test_what_is_missing_is_not_said(record: Record) -> None:
    missing = ["{mass/nowhere}", "{other/position0}", "{nothing}", "{unknown}", "{mass/x@1:8}"]
    assert say(record, [*missing, "Here."]) == ["Here."]


def test_every_row_of_a_metric(record: Record) -> None:
    (line,) = say(record, ["{mass/*|value}"])
    assert line == "position0: 50.0% of attention; position0:no bos: 10.0% of attention"


def test_the_effect_against_the_clean_run_leads(record: Record) -> None:
    first, second = say(record, [Compared("Replacing BOS by", "loss")])
    assert first.startswith("Replacing BOS by zero: loss +1.1 nats [")
    assert "against the clean run; higher than its later-position control (+0.1 [" in first
    assert "not significantly different from its later-position control" in second


@pytest.mark.parametrize(
    ("value", "form", "words"),
    [
        (-3.469e-18, "+.3g", "0"),
        (1.347e-244, ".3g", "0"),
        (-8.7e-7, "+.3g", "0"),
        (-0.001, ".0%", "0%"),
        (-0.0, ".2f", "0.00"),
        (-0.02, ".0%", "-2%"),
        (-1.2e-5, "+.3g", "-1.2e-05"),
        (-0.0004, "+.0%", "0%"),
        (14240.4, ",.1f", "14,240"),
        (769.34, ",.1f", "769.3"),
    ],
)
def test_a_zero_has_no_sign_and_no_rounding(value: float, form: str, words: str) -> None:
    assert written(value, form) == words


def test_rounding_is_that_of_what_was_measured(record: Record) -> None:
    """0.002 of 5,000 is what float32 rounds; 0.002 of 1 is not."""
    row = record.find(metric="loss", condition="zero", kind="contrast")
    rounded = replace(row, baseline=5000.0, effect=0.002, ci_low=0.001, ci_high=0.003)
    assert describe(rounded) == "0 nats [no spread]"
    assert null_verdict(rounded) == "not distinguishable from"
    exact = replace(rounded, baseline=0.0, value=0.002)
    assert describe(exact) == "+0.002 nats [0.001, 0.003]" and null_verdict(exact) == "above"
    assert null_verdict(replace(exact, ci_low=-0.003, ci_high=-0.001)) == "below"


def test_a_unit_that_is_none_is_not_written(record: Record) -> None:
    row = record.find(metric="loss", condition="zero", kind="contrast")
    assert describe(replace(row, unit="", effect=2.0, ci_low=1.0, ci_high=3.0)) == "+2 [1, 3]"


def test_one_form_for_every_probability() -> None:
    assert [probability(value) for value in (1.5e-13, 9.9e-5, 1e-4, 0.0312, 1.0)] == [
        "<1e-4",
        "<1e-4",
        "0.0001",
        "0.031",
        "1",
    ]
    # Two digits would hide on which side of 0.05 these lie.
    assert [probability(value) for value in (0.0496, 0.05, 0.0504)] == ["0.0496", "0.05", "0.0504"]


def test_a_share_of_the_other_sign_is_none() -> None:
    assert [portion(share) for share in (1.234, 0.57, 0.0, -1.73)] == [
        "123%",
        "57%",
        "none",
        "none",
    ]


def test_an_effect_within_rounding_is_no_finding(record: Record) -> None:
    tiny = [
        replace(row, effect=5.96e-8) if row.condition == "zero" else row for row in record.effects
    ]
    (line,) = say(replace(record, effects=tiny), [Compared("Replacing BOS by", "loss")])
    assert "Replacing BOS by zero" not in line


@pytest.mark.parametrize(("models", "side"), [(0.4, "higher than"), (5.0, "lower than")])
def test_a_contrast_is_judged_by_models_with_random_weights(
    record: Record, models: float, side: str
) -> None:
    """On which side of theirs it lies, whatever its own sign."""
    contrast = record.find(metric="loss", condition="zero", kind="contrast")
    null = replace(
        contrast, kind="null", against=f"random_weights:{contrast.against}", effect=models
    )
    judged = replace(record, effects=[*record.effects, null])
    (line, _) = say(judged, [Compared("Replacing BOS by", "loss")])
    assert "its difference from its later-position control (+0.1 [" in line
    assert f" is {side} that of models with random weights (+{models:g} [" in line
    assert does_more(record, record.find(metric="loss", condition="zero", kind="treatment"))
    treated = judged.find(metric="loss", condition="zero", kind="treatment")
    assert does_more(judged, treated) == (side == "higher than")


def test_an_interval_and_a_q_that_disagree_are_both_said(record: Record) -> None:
    """The interval of zero's contrast excludes 0; its q is that of a family of two."""
    weak = [
        replace(row, q_value=0.055) if row.kind == "contrast" and row.metric == "loss" else row
        for row in record.effects
    ]
    zero, mean = say(replace(record, effects=weak), [Compared("Replacing BOS by", "loss")])
    assert "not significantly different from its later-position control" in zero
    assert "; this interval excludes 0, but q = 0.055 after FDR correction over 2 rows)" in zero
    assert "excludes" not in mean and "includes" not in mean
    found = [replace(row, q_value=0.01) if row in weak[-3:] else row for row in weak]
    *_, mean = say(replace(record, effects=found), [Compared("Replacing BOS by", "loss")])
    assert "; this interval includes 0, but q = 0.01 after FDR correction over 2 rows)" in mean


def test_an_empirical_null_that_was_tested_needs_its_q_as_well(record: Record) -> None:
    """The interval of its contrast excludes 0."""
    for q, said in ((0.01, "above uniform attention (10.0%) and its row-permuted null"), (0.2, "")):
        rows = [
            replace(row, q_value=q) if (row.metric, row.kind) == ("mass", "contrast") else row
            for row in record.effects
        ]
        (line,) = say(replace(record, effects=rows), ["It gets {mass/position0}."])
        assert (said or "not distinguishable from its row-permuted null") in line


def test_an_interval_that_q_denies_is_said_of_measurements(record: Record) -> None:
    rows = [replace(row, q_value=0.2) if row.kind == "contrast" else row for row in record.effects]
    (line,) = say(replace(record, effects=rows), ["It gets {mass/position0}."])
    assert (
        "not significantly different from its later-position control (8.0%; the interval of the "
        "difference excludes 0, but q = 0.2 after FDR correction over 4 rows)"
    ) in line


def test_a_q_near_the_level_is_said(record: Record) -> None:
    for q, said in ((0.04, "; q = 0.04)"), (0.001, "])"), (0.4, "])")):
        rows = [
            replace(row, q_value=q, ci_low=(1.0 if q < 0.05 else -1.0))
            if row.kind == "contrast"
            else row
            for row in record.effects
        ]
        (zero, _) = say(replace(record, effects=rows), [Compared("Replacing BOS by", "loss")])
        assert zero.endswith(said + ".")


def test_a_smaller_fall_is_called_so(record: Record) -> None:
    rows = [
        replace(row, value=-0.1, baseline=-1.2) if row.kind == "contrast" else row
        for row in record.effects
    ]
    (zero, _) = say(replace(record, effects=rows), [Compared("Replacing BOS by", "loss")])
    assert "; a smaller fall than its later-position control (" in zero


def test_what_is_not_tested_stands_beside(record: Record) -> None:
    rows = [
        replace(row, p_value=None, q_value=None) if row.kind == "contrast" else row
        for row in record.effects
    ]
    (line,) = say(replace(record, effects=rows), ["Position 0 gets {mass/position0}."])
    assert line.endswith(
        "; beside its later-position control (8.0%, not tested) and its row-permuted null (10.0%, "
        "not tested)."
    )


def test_of_several_rows_the_surest_is_said(record: Record) -> None:
    """Half of 2 within [1, 3] is more than what [-1, 7] leaves of 3."""
    row = record.find(metric="loss", condition="zero", against=None)
    rows = [
        replace(row, layer=layer, effect=effect, ci_low=low, ci_high=high)
        for layer, effect, low, high in (
            (0, 3.0, -1.0, 7.0),
            (1, 2.0, 1.0, 3.0),
            (2, 1.5, 0.5, 2.5),
        )
    ]
    (line,) = say(replace(record, effects=rows), [Compared("Patching with", "loss")])
    assert line.startswith(
        "Patching with zero at L1 (of 3 rows the one whose interval is farthest from 0; the "
        "interval ignores the choice): loss +2 nats [1, 3]"
    )
    (line,) = say(replace(record, effects=rows[:1] * 2), [Compared("Patching with", "loss")])
    assert " at L0 (of 2 rows the largest; the interval ignores the choice)" in line


def test_differences_that_do_not_add_up_are_said(record: Record) -> None:
    assert counted_notes(record.effects) == []
    moved = [
        replace(row, value=row.value + 0.3)
        if (row.metric, row.kind, row.condition) == ("loss", "contrast", "zero")
        else row
        for row in record.effects
    ]
    (note,) = counted_notes(moved)
    assert note.startswith("In loss some differences are not those of the two effects shown")


def test_rows_over_different_layers_are_compared_by_their_sums(record: Record) -> None:
    """0.3 in one layer is less than 0.2 in each of three."""
    row = record.find(metric="loss", condition="zero", against=None)
    rows = [
        replace(row, condition="patch", layer=layer, effect=effect, layers=layers)
        for layer, effect, layers in ((0, 0.2, None), (2, 0.3, "L2"))
    ]
    by_layer = torch.tensor([[0.5, 0.5, 0.5], [0.7, 0.7, 0.7], [0.5, 0.5, 0.8]])
    coords = {"run": ["clean", "patch L0", "patch L2"]}
    arrays = {"loss_by_layer": Array(by_layer, ("run", "layer"), coords)}
    result = replace(record, effects=rows, arrays=arrays)
    (line,) = say(result, [Compared("Patching with", "loss")])
    assert line.startswith(
        "Patching with patch at L0 (of 2 rows the one whose interval is farthest from 0 when "
        "summed over layers (shown is their mean); the interval ignores the choice): loss +0.2 nats"
    )


def test_what_is_compared_elsewhere_is_said_with_its_own_effect_there(record: Record) -> None:
    """The treatment's row counts more queries than the contrast, in which its effect is 0.2."""
    elsewhere = [
        replace(row, value=0.2, effect=0.1)
        if (row.metric, row.condition, row.kind) == ("loss", "zero", "contrast")
        else row
        for row in record.effects
    ]
    (zero, _) = say(replace(record, effects=elsewhere), [Compared("Replacing BOS by", "loss")])
    assert "loss +1.1 nats" in zero
    assert "; at the queries that both count +0.2, difference +0.1 [" in zero


def test_kl_is_beside_what_the_ratio_of_random_models_would_make_it(record: Record) -> None:
    contrast = record.find(metric="loss", condition="zero", kind="contrast")
    null = replace(contrast, kind="null", against=f"random_weights:{contrast.against}", effect=0.4)
    unsigned = {**MEASURES, "loss": replace(MEASURES["loss"], signed=False)}
    judged = replace(record, effects=[*record.effects, null], measures=unsigned)
    (line, _) = say(judged, [Compared("Replacing BOS by", "loss")])
    assert "higher than what their ratio in models with random weights would make it (+0.4" in line


def test_a_reference_with_another_null_is_compared_by_distances(record: Record) -> None:
    """1.7 % beside 9.9 % is further below than 1.2 % beside 5.9 %."""
    row = record.find(metric="mass", condition="position0", against=None)
    control = record.find(
        metric="mass", condition="position0", against="later_position", kind="control"
    )
    moved = [
        replace(other, baseline=0.059) if other == control else other for other in record.effects
    ]
    (line,) = say(replace(record, effects=moved), ["Position 0 gets {mass/position0}."])
    assert row.baseline == pytest.approx(0.1)
    assert "relative to uniform attention higher than its later-position control (8.0%" in line
    assert "(8.0%, beside 5.9%)" in line


def test_a_share_at_the_edge_of_its_range_gets_no_verdict(record: Record) -> None:
    """No share is below 0 %."""
    rows = [replace(row, baseline=0.0) for row in record.effects]
    (line,) = say(replace(record, effects=rows), ["It gets {mass/position0|verdict}."])
    assert line == "It gets beside uniform attention (0.0%)."


def test_at_most_twelve_sentences(record: Record) -> None:
    def many(result: Record) -> Iterator[str]:
        yield from ("Again." for _ in range(20))

    cut = "Left out here: 9 more sentences, on rows of the table."
    assert say(record, [many]) == [*["Again."] * 11, cut]


def test_lists_in_words() -> None:
    assert [listed(["A"]), listed(["A", "B"]), listed(["A", "B", "C"])] == [
        "A",
        "A and B",
        "A, B and C",
    ]
    assert grouped([("above", "A"), ("below", "B"), ("above", "C")]) == "above A and C; below B"


def test_what_is_the_same_in_every_prompt_has_no_interval(record: Record) -> None:
    same, other = (Sample(0.5 + 1e-8 * ONE, 0.1), Sample(0.5 + ONE, 0.1))
    effects = [
        next(rows_of("mass", MEASURES["mass"], "x", sample, prompts=12, seed=0)).effect
        for sample in (same, other)
    ]
    assert describe(effects[0]) == "+0.4 share of attention [no spread]"
    assert describe(effects[1]).startswith("+0.4 share of attention [0.3")
    assert spread_notes(effects[1:]) == []
    (said,) = spread_notes(effects)
    assert said.startswith("No spread: the number is the same for every prompt")
