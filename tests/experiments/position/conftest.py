from __future__ import annotations

import pytest

from sinklens.experiments.position import _removed


@pytest.fixture
def everything_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares of any component, also of one that a few prompts do not tell from its null."""
    monkeypatch.setattr(_removed, "above_null", lambda *_: True)
