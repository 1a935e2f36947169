"""Texts with numbers, compared as far as another processor's rounding allows."""

from __future__ import annotations

import re

import pytest

NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def assert_same_text(written: str, stored: str) -> None:
    """The words are the same, and the numbers to 2 % or their last digit."""
    assert NUMBER.sub("#", written) == NUMBER.sub("#", stored)
    for one, other in zip(NUMBER.findall(written), NUMBER.findall(stored), strict=True):
        last_digit = 10.0 ** -len(other.partition(".")[2])
        assert float(one) == pytest.approx(float(other), rel=0.02, abs=1.01 * last_digit)
