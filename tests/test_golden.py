"""All experiments give the numbers that are stored in `golden/`.

Here to the tolerance that another processor needs; `python -m tests.golden` compares every byte.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests import golden

ROUNDING = 1e-4
RESAMPLED = ("p_value", "q_value")  # counts of resamples, of which some are nearly ties


@pytest.fixture(scope="module")
def stored() -> dict[str, dict[str, Any]]:
    return golden.stored()


@pytest.mark.parametrize("case", golden.cases(), ids=lambda case: case.name)
def test_results_are_the_stored_ones(case: golden.Case, stored: dict[str, dict[str, Any]]) -> None:
    found, expected = golden.content_of(case), stored[case.name]
    if "refused" in expected:
        assert found == expected
        return
    assert found["dims"] == expected["dims"]
    assert len(found["effects"]) == len(expected["effects"])
    for row, old in zip(found["effects"], expected["effects"], strict=True):
        for field, value in old.items():
            tolerance = 0.02 if field in RESAMPLED else ROUNDING
            if isinstance(value, float):
                value = pytest.approx(value, rel=ROUNDING, abs=tolerance)
            assert row[field] == value, (row, field)
