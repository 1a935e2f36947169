"""What a user sees of work that takes a while."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tabs and ends of lines


def printable(text: str) -> str:
    """Text of others without what a terminal would obey or cannot show, which becomes its code."""
    plain = _CONTROL.sub(lambda found: repr(found.group())[1:-1], text)
    return plain.encode("utf-8", "backslashreplace").decode()


def show_progress(progress: bool | None) -> bool:
    """Whether to show progress: as asked, else in a terminal or a notebook."""
    if progress is None:
        ipython = sys.modules.get("IPython")
        return sys.stderr.isatty() or hasattr(ipython and ipython.get_ipython(), "kernel")
    return progress


@contextmanager
def status(text: str, progress: bool | None = None) -> Iterator[None]:
    """Show a line for the length of a `with` block, where progress is shown."""
    if not show_progress(progress):
        yield
        return
    stream, line = sys.stderr, f"{printable(text)} ..."
    print(f"\r{line}", end="", file=stream, flush=True)
    try:
        yield
    finally:  # with blanks, since not every notebook knows how to erase a line
        print(f"\r{' ' * len(line)}\r", end="", file=stream, flush=True)
