"""What a result says of the machine, on machines that this is not."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from sinklens.runner import registry


def test_windows_has_no_peak_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)  # `import resource` then fails
    assert registry._machine()["peak_memory_kib"] is None


@pytest.mark.parametrize(("system", "kib"), [("darwin", 2), ("linux", 2048)])
def test_peak_memory_is_in_kib(monkeypatch: pytest.MonkeyPatch, system: str, kib: int) -> None:
    """macOS counts bytes, Linux kibibytes."""
    usage = SimpleNamespace(ru_maxrss=2048)
    fake = SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda who: usage)
    monkeypatch.setitem(sys.modules, "resource", fake)
    monkeypatch.setattr(registry.sys, "platform", system)
    assert registry._machine()["peak_memory_kib"] == kib
