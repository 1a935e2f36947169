"""Rows of samples and references, held against arithmetic by hand; the one verdict."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from sinklens.results.estimates import (
    OF_PROMPTS,
    Effect,
    Measure,
    Place,
    Reference,
    Sample,
    Share,
    proportion,
    share_row,
)
from sinklens.results.estimates import rows_of as rows
from sinklens.results.wording import control_verdict, null_verdict, quantity, verdict
from sinklens.stats.effects import EffectSize, Row, paired_row

MEASURE = Measure("nats", "uniform attention")
VALUES = np.array([1.0, 2.0, 4.0, 5.0])
LATER = np.array([0.5, 0.5, 1.0, 2.0])


def made(*arguments: object, measure: Measure = MEASURE, **named: object) -> list[Row]:
    how = {"prompts": 4, "seed": 0, **named}
    return list(rows("loss", measure, "zero", *arguments, **how))  # type: ignore[arg-type]


def test_a_sample_is_one_row_beside_its_null() -> None:
    (row,) = made(Sample(torch.tensor(VALUES), 0.5, draws=3), place=Place(2, 1, "1:8"))
    effect = row.effect
    assert (effect.kind, effect.against, effect.resampled) == ("measurement", None, "prompt")
    assert (effect.value, effect.baseline, effect.effect) == (3.0, 0.5, 2.5)
    assert (effect.layer, effect.head, effect.queries, effect.n_draws) == (2, 1, "1:8", 3)
    half = stats.t.ppf(0.975, 3) * VALUES.std(ddof=1) / 2
    assert effect.ci_low == pytest.approx(2.5 - half) and effect.p_value is None


def test_each_reference_has_a_row_and_a_contrast() -> None:
    control = Reference(Sample(LATER, 0.25, draws=2), "later_position")
    null = Reference(Sample(0 * LATER, 0.5), "row_permuted", kind="null")
    lead, *others = [row.effect for row in made(Sample(VALUES, 0.5), control, null)]
    assert [(row.kind, row.against) for row in others] == [
        ("control", "later_position"),
        ("contrast", "later_position"),
        ("null", "row_permuted"),
        ("contrast", "row_permuted"),
    ]
    assert lead.effect == 2.5
    assert others[0].value == LATER.mean() and others[0].baseline == 0.25
    # 2.5 from its null, against 0.75 of the control and -0.5 of the empirical null.
    assert others[1].value == 2.5 and others[1].baseline == 0.75 and others[1].effect == 1.75
    assert others[3].effect == 3.0 and others[1].n_draws == 2
    assert others[1].p_value is not None and others[0].p_value is None


def test_a_reference_can_be_set_against_a_value_on_its_own_footing() -> None:
    own = Sample(VALUES - 1, 0.0, draws=4)
    *_, contrast = made(Sample(VALUES, 0.5), Reference(Sample(LATER), "later_key", own=own))
    assert contrast.effect.value == 2.0 and contrast.effect.baseline == 1.0
    assert contrast.effect.n_draws == 4


def test_only_signed_effects_are_tested() -> None:
    (signed,) = made(Effect(VALUES, LATER))
    (unsigned,) = made(Effect(VALUES, LATER), measure=replace(MEASURE, signed=False))
    assert signed.effect.kind == unsigned.effect.kind == "treatment"
    assert signed.effect.p_value is not None and unsigned.effect.p_value is None


def test_a_plain_number_has_no_interval() -> None:
    (row,) = made(Sample(0.7, 0.2))
    assert (row.effect.ci_low, row.effect.ci_high, row.effect.d_z) == (None, None, None)
    assert row.effect.effect == pytest.approx(0.5) and null_verdict(row.effect).startswith(
        "without"
    )


def test_a_share_has_wilsons_interval_over_tokens() -> None:
    effect = share_row("spikes", Measure("share of tokens"), "position0", Share(9, 10, 0.1)).effect
    z, n, share = stats.norm.ppf(0.975), 10, 0.9
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(share * 0.1 / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    assert (effect.resampled, effect.n_prompts, effect.value) == ("token", 10, 0.9)
    assert effect.ci_low == pytest.approx(centre - half - 0.1)
    assert effect.ci_high == pytest.approx(centre + half - 0.1)


def test_what_is_so_of_every_prompt_has_wilsons_interval() -> None:
    """Student's t of twelve ones would be a point."""
    measure = Measure(OF_PROMPTS, "a random position", ".0%")
    (row,) = rows("at0", measure, "x", Sample(np.ones(12), 0.2), prompts=12, seed=0)
    z = stats.norm.ppf(0.975)
    assert row.effect.ci_low == pytest.approx(12 / (12 + z**2) - 0.2)
    assert row.effect.ci_high == pytest.approx(0.8)
    # Shares between are means of several, and have the interval of a mean.
    (row,) = rows("at0", measure, "x", Sample(np.full(12, 0.5), 0.2), prompts=12, seed=0)
    assert row.effect.ci_low == row.effect.ci_high


def test_no_interval_holds_what_cannot_be() -> None:
    """Two draws that differ have an interval of t with one degree of freedom."""
    share = proportion("share of attention")
    control = Reference(Effect(np.array([[0.1] * 4, [0.5] * 4]), 0.6), "other_key")
    values = np.array([[0.0] * 4, [0.6] * 4])
    row, its, contrast = (one.effect for one in made(Effect(values, 0.6), control, measure=share))
    (free,) = (one.effect for one in made(Effect(values, 0.6)))
    assert free.ci_low is not None and free.ci_low < -3 and free.ci_high is not None
    assert (row.ci_low, row.ci_high) == (pytest.approx(-0.6), pytest.approx(0.4))
    assert (its.ci_low, its.ci_high) == (pytest.approx(-0.6), pytest.approx(0.4))
    assert contrast.ci_low is not None and contrast.ci_high is not None
    assert -1 <= contrast.ci_low < contrast.ci_high <= 1
    assert (row.effect, row.p_value) == (pytest.approx(-0.3), pytest.approx(free.p_value))
    divergence = replace(MEASURE, signed=False, lowest=0.0)
    (kl,) = (one.effect for one in made(Effect(np.array([0.0, 0.0, 0, 9]), 0), measure=divergence))
    assert kl.ci_low == 0 and kl.ci_high is not None and kl.ci_high > 9


def test_what_changes_nothing_is_not_tested() -> None:
    same = Effect(VALUES * (1 + 1e-8), VALUES)
    rows = made(same, Reference(same, "other_key"), Reference(Effect(LATER, VALUES), "later_key"))
    effects = [row.effect for row in rows]
    assert [row.p_value is None for row in effects if row.kind != "control"] == [True, True, False]
    models = np.array([0.1, 0.2, 0.3])
    judged = made(same, Reference(same, "other_key", models=models))
    assert judged[2].effect.kind == "contrast" and judged[2].effect.p_value is None


def effect_with(low: float | None, high: float | None, q: float | None, size: float) -> EffectSize:
    row = paired_row("loss", "zero", "contrast", VALUES, VALUES).effect
    return replace(row, ci_low=low, ci_high=high, q_value=q, p_value=q, effect=size)


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.1, 0.3, "above"),
        (-0.3, -0.1, "below"),
        (-0.1, 0.3, "not distinguishable from"),
        (5e-7, 0.3, "not distinguishable from"),  # float rounding
        (None, None, "without an interval beside"),
    ],
)
def test_the_verdict_on_a_null_goes_by_the_interval(
    low: float | None, high: float | None, words: str
) -> None:
    row = effect_with(low, high, 0.001, 1.0)
    assert null_verdict(row) == words
    assert verdict(replace(row, kind="null"), row) == words


@pytest.mark.parametrize(
    ("q", "size", "words"),
    [
        (0.05, 1.0, "more than"),
        (0.01, -1.0, "less than"),
        (0.06, 1.0, "not significantly different from"),
        (None, 1.0, "not tested against"),
    ],
)
def test_the_verdict_on_a_control_goes_by_q(q: float | None, size: float, words: str) -> None:
    row = effect_with(-1.0, 2.0, q, size)
    assert control_verdict(row) == verdict(replace(row, kind="control"), row) == words


def test_quantities_say_what_a_percentage_is_of() -> None:
    assert quantity(Measure("share of heads", form=".1%"), 0.5) == "50.0% of heads"
    assert quantity(Measure("nats"), 0.25) == "0.25 nats"
