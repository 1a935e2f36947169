"""A small part of `python -m tests.fuzz` and `python -m tests.fuzz.kills`."""

from __future__ import annotations

import os
import warnings

import pytest

from tests.fuzz import kinds, models

HEAVY = [pytest.param(kind, marks=pytest.mark.heavy) for kind in models.KINDS]
pytestmark = pytest.mark.slow  # many models or pages


@pytest.mark.skipif(os.name == "nt", reason="needs alarms")
@pytest.mark.parametrize("kind", [kind for kind in kinds.KINDS if kind not in models.KINDS] + HEAVY)
def test_what_nobody_meant_is_right_or_typed(kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kinds.run(kind, 15)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs forks")
def test_after_kill_9_the_same_again_ends_alike() -> None:
    from tests.fuzz.kills import kills

    assert sum(kills(5, seed=1).values()) == 5
