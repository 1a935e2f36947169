"""`docs/limits.md` says what the families do, and `docs/papers.md` what the experiments declare."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sinklens.runner import registry
from tests import limits

PAPERS = Path(__file__).parent.parent / "docs" / "papers.md"


@pytest.mark.slow
def test_the_page_of_limits_is_that_of_the_command() -> None:
    assert limits.PAGE.read_text("utf-8") == limits.page()


def test_the_page_of_papers_agrees_with_what_is_declared() -> None:
    named = re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", PAPERS.read_text("utf-8"), re.MULTILINE)
    assert len(named) >= 10
    for name, paper in named:
        assert registry.get(name).paper == paper
