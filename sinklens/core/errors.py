"""The error that sinklens raises for everything a user can mend."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class SinklensError(Exception):
    """Something was asked that cannot be done on this model or input.

    The message says what was asked, why it cannot be done here and what would work.
    """


class UsageError(SinklensError, ValueError):
    """The request itself is wrong, whatever the model: an unknown name, a setting out of range."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """An error that names what exists, the nearest names first."""
    names = sorted(known)
    near = get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(names)}"
    return UsageError(f"unknown {kind} {name!r}; {hint}")
