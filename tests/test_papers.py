"""`docs/papers.md` says what the experiments declare."""

from __future__ import annotations

import re
from pathlib import Path

from sinklens.runner import registry

PAPERS = Path(__file__).parent.parent / "docs" / "papers.md"


def test_the_page_of_papers_agrees_with_what_is_declared() -> None:
    named = re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", PAPERS.read_text("utf-8"), re.MULTILINE)
    assert len(named) >= 10
    for name, paper in named:
        assert registry.get(name).paper == paper
