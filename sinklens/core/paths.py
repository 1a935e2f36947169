"""Paths as users write them."""

from __future__ import annotations

from pathlib import Path


def path_of(written: str | Path) -> Path:
    """A path whose leading `~` or `~name` is a home folder, where there is such a home."""
    try:
        return Path(written).expanduser()
    except RuntimeError:  # nobody of that name
        return Path(written)
