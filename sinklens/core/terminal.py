"""What a user sees of work that takes a while."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


def show_progress(progress: bool | None) -> bool:
    """Whether to show progress: as asked, else in a terminal or a notebook."""
    if progress is None:
        return sys.stderr.isatty() or "ipykernel" in sys.modules
    return progress


@contextmanager
def status(text: str, progress: bool | None = None) -> Iterator[None]:
    """Show a line for the length of a `with` block, where progress is shown."""
    if not show_progress(progress):
        yield
        return
    stream, line = sys.stderr, f"{text} ..."
    print(f"\r{line}", end="", file=stream, flush=True)
    try:
        yield
    finally:  # with blanks, since not every notebook knows how to erase a line
        print(f"\r{' ' * len(line)}\r", end="", file=stream, flush=True)
