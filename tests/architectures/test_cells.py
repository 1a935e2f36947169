"""Every cell in both dtypes, with and without BOS: alike, but for rounding and for BOS itself."""

from __future__ import annotations

import re

import pytest

from tests.architectures.beside import of_every
from tests.architectures.cells import Cell, cells, unlike
from tests.limits import outcome

every = of_every("Mamba")
OF_BOS = re.compile("BOS|needs prompts of at least")
"""What follows from leaving BOS out, the shorter prompt with it."""
OF_PRECISION = re.compile("log A differs from score|does not run in bfloat16|within rounding error")


def reasons(cell: Cell, but: re.Pattern[str]) -> set[str]:
    """What a cell refuses or leaves out, without the numbers in it."""
    found = outcome(cell).reasons
    return {re.sub(r"[\d.]+", "#", one) for one in found if not but.search(one)}


@every
@pytest.mark.parametrize("bos", [True, False], ids=["bos", "no_bos"])
def test_bfloat16_is_float32_but_for_rounding(name: str, bos: bool) -> None:
    whole, half = (cells(name, dtype, bos) for dtype in ("float32", "bfloat16"))
    if half.refusal:
        assert whole.refusal or OF_PRECISION.search(half.refusal)
        return
    problems = []
    for experiment, cell in whole.by_experiment.items():
        other = half.by_experiment[experiment]
        if OF_PRECISION.search(other.refusal):
            continue
        if reasons(cell, OF_PRECISION) != reasons(other, OF_PRECISION):
            problems.append(f"{experiment}: {outcome(cell)} and {outcome(other)}")
        problems += [f"{experiment}: {problem}" for problem in unlike(cell, other)]
    assert not problems, "\n".join(problems)


@every
def test_without_bos_only_what_needs_it_is_left_out(name: str) -> None:
    whole, without = (cells(name, "float32", bos).by_experiment for bos in (True, False))
    for experiment, cell in whole.items():
        if not OF_BOS.search(without[experiment].refusal):
            assert reasons(cell, OF_BOS) == reasons(without[experiment], OF_BOS), experiment
