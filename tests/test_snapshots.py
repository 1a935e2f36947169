"""Every experiment says what is stored in `snapshots/`, word for word."""

from __future__ import annotations

import re

import pytest

from tests import snapshots

pytestmark = pytest.mark.slow

NUMBER = re.compile(r"[-+]?\d[\d,]*\.?\d*(?:e[-+]\d+)?")


CASES = [
    *snapshots.cases(),
    *(
        pytest.param(*case, marks=() if case[0] in snapshots.CHECKED_ON_REAL else pytest.mark.heavy)
        for case in snapshots.real_cases()
    ),
]


@pytest.mark.parametrize(("experiment", "model", "n"), CASES)
def test_the_words_are_the_stored_ones(experiment: str, model: str, n: int) -> None:
    """Numbers may differ by what another processor rounds otherwise."""
    expected = snapshots.file_of(experiment, model, n).read_text("utf-8")
    text = snapshots.text_of(experiment, model, n)
    assert _words(text) == _words(expected)
    numbers = list(zip(_numbers(text), _numbers(expected), strict=True))
    close = [a == pytest.approx(b, rel=0.02, abs=2e-5) for a, b in numbers]
    # A digit that is rounded up or down, or a resample that is nearly a tie, moves a few.
    assert sum(close) >= 0.98 * len(close)


def _words(text: str) -> str:
    return re.sub(r"\s+", " ", NUMBER.sub("#", text))


def _numbers(text: str) -> list[float]:
    return [float(number.replace(",", "")) for number in NUMBER.findall(text)]
