"""All experiments give the numbers that are stored in `golden/`.

What is stored was reviewed when it changed; the formulas are held to plain code and closed forms
elsewhere. Numbers agree to the tolerance that another processor needs.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests import golden

pytestmark = pytest.mark.slow

ROUNDING = 1e-4
KEY = ("metric", "condition", "kind", "against", "layer", "head", "queries")
# Counts of resamples, of which some are nearly ties, and tails of the t distribution.
TESTS = ("p_value", "q_value")
# Of an effect within rounding error these are another processor's rounding.
OF_ROUNDING = (*TESTS, "d_z", "ci_low", "ci_high")
# Over a spread that is only rounding, d_z means nothing and may be None.
SPREAD_OF_ROUNDING = 1e6


@pytest.fixture(scope="module")
def stored() -> dict[str, dict[str, Any]]:
    return golden.stored()


@pytest.mark.parametrize("case", list(golden.cases()), ids=lambda case: case.name)
def test_every_number_is_as_stored(case: golden.Case, stored: dict[str, dict[str, Any]]) -> None:
    expected, content = stored[case.name], golden.content_of(case)
    assert ("refused" in content) == ("refused" in expected)
    if "refused" in expected:
        return
    old, new = ({key(row): row for row in one["effects"]} for one in (expected, content))
    assert old.keys() == new.keys()
    small = {(row["metric"], row["kind"]) for row in old.values() if abs(row["effect"]) < ROUNDING}
    for name, row in old.items():
        loose: tuple[str, ...] = OF_ROUNDING if abs(row["effect"]) < ROUNDING else ()
        if (row["metric"], row["kind"]) in small:
            loose += ("q_value",)
        if abs(row["d_z"] or 0) > SPREAD_OF_ROUNDING:
            loose += ("d_z", *TESTS)
        for field, value in row.items():
            tolerance = 0.02 if field in TESTS else ROUNDING
            if isinstance(value, float):
                value = pytest.approx(value, rel=10 * ROUNDING, abs=tolerance)
            assert field in loose or new[name][field] == value, (field, name)


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What names a row."""
    return tuple(row[name] for name in KEY)
