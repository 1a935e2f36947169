"""The errors that sinklens raises for everything a user can correct."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from .terminal import printable

_LONGEST = 200


class SinklensError(Exception):
    """The request cannot be carried out on this model or input.

    The message says what was asked, why it cannot be done here and what would work, in one line.
    """

    def __str__(self) -> str:
        """The message, without what a terminal would obey in a name that it holds."""
        return printable(super().__str__()).replace("\n", "\\n")


class UsageError(SinklensError, ValueError):
    """The request itself is invalid, whatever the model: an unknown name, a value out of range."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """An error that suggests near names, or lists all that exist."""
    names = sorted(known)
    near = near_names(name, names)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(names)}"
    return UsageError(f"unknown {kind} {shortened(name)!r}; {hint}")


def near_names(name: str, known: Iterable[str]) -> list[str]:
    """Up to three known names that are close to one that is not."""
    return get_close_matches(name, sorted(known), n=3, cutoff=0.5)


def shortened(text: object) -> str:
    """The text of something that may be long, such as a path that no file system could hold."""
    full = str(text)
    return full if len(full) <= _LONGEST else f"{full[: _LONGEST // 2]} ... {full[-20:]}"


def in_one_line(error: Exception) -> str:
    """The kind of an error and the first line of its message."""
    first = str(error).strip().partition("\n")[0][:_LONGEST].rstrip(".")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
