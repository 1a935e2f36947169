"""`docs/claims.md` says what the command finds, and its verdicts follow from the numbers."""

from __future__ import annotations

import re
from typing import Any

import pytest

import sinklens
from sinklens.results.estimates import Measure
from sinklens.results.record import Record
from sinklens.stats.effects import EffectSize
from tests import claims
from tests.claims import measured
from tests.claims.rules import (
    CONFIRMED,
    NOT_CONFIRMED,
    NOT_TESTABLE,
    Above,
    AboveNull,
    Below,
    Near,
    OtherThanNull,
    Rule,
    Seen,
)
from tests.numbers import assert_same_text

FORTY = Near(0.4, 0.4, 0.1)
RANGE = Near(0.984, 0.999, 0.02)


@pytest.mark.parametrize(
    ("rule", "low", "high", "null", "word", "why"),
    [
        (FORTY, 0.31, 0.49, 0.0, CONFIRMED, ""),
        (FORTY, 0.11, 0.41, 0.0, NOT_CONFIRMED, "too wide"),
        (FORTY, 0.35, 0.60, 0.0, NOT_CONFIRMED, "too wide"),
        (FORTY, 0.31, 0.39, 0.0, NOT_CONFIRMED, "excludes"),
        (FORTY, 0.41, 0.49, 0.0, NOT_CONFIRMED, "excludes"),
        (RANGE, 0.97, 1.0, 0.0, CONFIRMED, ""),
        (RANGE, 0.9995, 1.0, 0.0, NOT_CONFIRMED, "excludes"),
        (RANGE, 0.9, 0.99, 0.0, NOT_CONFIRMED, "too wide"),
        (AboveNull(), 0.2, 0.4, 0.1, CONFIRMED, ""),
        (AboveNull(), 0.1, 0.4, 0.1, NOT_CONFIRMED, "holds"),
        (AboveNull(), 0.0, 0.0, 0.0, NOT_CONFIRMED, "holds"),
        (AboveNull(), 0.02, 0.05, 0.1, NOT_CONFIRMED, "below"),
        (Above(7.0), 7.1, 9.0, 0.0, CONFIRMED, ""),
        (Above(7.0), 6.9, 9.0, 0.0, NOT_CONFIRMED, "holds"),
        (Above(7.0), 0.1, 0.9, 0.0, NOT_CONFIRMED, "below"),
        (Below(0.01), -0.02, 0.009, 0.0, CONFIRMED, ""),
        (Below(0.01), -0.02, 0.02, 0.0, NOT_CONFIRMED, "holds"),
        (Below(0.01), 0.02, 0.03, 0.0, NOT_CONFIRMED, "above"),
        (OtherThanNull(), 30.0, 30.0, 30.0, NOT_TESTABLE, "artefact"),
        (OtherThanNull(), 20.0, 20.0, 30.0, NOT_CONFIRMED, "not what"),
        (OtherThanNull(), 29.0, 31.0, 30.0, NOT_CONFIRMED, "not what"),
    ],
)
def test_verdicts(rule: Rule, low: float, high: float, null: float, word: str, why: str) -> None:
    verdict = rule(Seen((low + high) / 2, low, high, null))
    assert verdict.word == word
    assert why in verdict.why and bool(why) == bool(verdict.why)


def _row(**fields: Any) -> EffectSize:
    known: dict[str, Any] = {
        "metric": "rate",
        "condition": "some",
        "kind": "measurement",
        "resampled": "prompt",
        "baseline": 0.1,
        "value": 0.5,
        "effect": 0.4,
        "ci_low": 0.3,
        "ci_high": 0.5,
        "n_prompts": 8,
        "n_draws": 1,
        "unit": "share of heads",
    }
    absent = dict.fromkeys(("against", "layer", "head", "queries", "p_value", "q_value", "d_z"))
    return EffectSize(**{**absent, **known, **fields})


def _record(*rows: EffectSize, **left_out: str) -> Record:
    measures = {"rate": Measure("share of heads", form=".0%")}
    return Record("made_up", [*rows], [], {}, {}, {"left_out": left_out}, {}, measures=measures)


def _claim(rule: Rule, kind: str = "measurement", lacking: str = "") -> measured.Claim:
    return measured.Claim(
        "",
        "",
        measured.Measured("made_up"),
        measured.row_of("rate", "some", kind),
        rule,
        lambda result: lacking,
    )


def test_a_measurement_is_seen_as_its_value_and_an_effect_as_what_changes() -> None:
    seen = measured.seen_in(_row())
    assert seen is not None
    assert (seen.value, seen.low, seen.high, seen.null) == pytest.approx((0.5, 0.4, 0.6, 0.1))
    seen = measured.seen_in(_row(kind="treatment"))
    assert seen is not None
    assert (seen.value, seen.low, seen.high, seen.null) == pytest.approx((0.4, 0.3, 0.5, 0.0))
    assert measured.seen_in(_row(ci_low=None, ci_high=None)) is None


def test_a_cell_says_the_verdict_and_what_it_follows_from() -> None:
    numbers = "50% of heads [40%, 60%], null 10%, 8 prompts"
    assert measured.cell(_claim(AboveNull()), _record(_row())) == f"**confirmed**: {numbers}"
    wide = measured.cell(_claim(Near(0.41, 0.41, 0.1)), _record(_row()))
    assert wide.startswith("**not confirmed** (in range") and wide.endswith(numbers)
    lacking = measured.cell(_claim(AboveNull(), lacking="no sink"), _record(_row()))
    assert lacking == f"**not testable** (no sink): {numbers}"


def test_a_missing_row_is_not_testable_for_the_reason_that_is_given() -> None:
    missing = _record(_row(metric="other"), **{"rate at 1:8": "there is none", "loss": "unknown"})
    assert measured.cell(_claim(AboveNull()), missing) == "**not testable** (there is none)"
    single = _record(_row(ci_low=None, ci_high=None))
    assert measured.cell(_claim(AboveNull()), single).startswith(
        "**not testable** (a single prompt"
    )


def test_of_several_layers_the_first_is_taken() -> None:
    rows = [_row(kind="treatment", layer=layer) for layer in (12, 3)]
    told = measured.cell(_claim(AboveNull(), "treatment"), _record(*rows))
    assert "entering L3: " in told


@pytest.mark.slow
def test_the_column_of_rope_is_that_of_the_command() -> None:
    """Numbers may differ by what another processor rounds otherwise."""
    stored = claims.PAGE.read_text("utf-8")
    names = re.findall(r"^\| claim .* confirmed if \| (.*) \|$", stored, re.MULTILINE)
    _, other_model = names[0].split(" | ")
    lines = [line.split(" | ") for line in stored.splitlines() if line.startswith("| ")][2:]
    written = claims.page(
        {
            "rope": claims.cells(sinklens.load("rope")),
            other_model: [line[-1].removesuffix(" |") for line in lines],
        }
    )
    assert_same_text(written, stored)
