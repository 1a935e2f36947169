"""What a user sees while forwards run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

from ..models.prompts import Prompts


def show_progress(progress: bool | None) -> bool:
    """Whether to show progress: as asked, else in a terminal or a notebook."""
    if progress is None:
        return sys.stderr.isatty() or "ipykernel" in sys.modules
    return progress


def announce(what: str, forwards: int, prompts: Prompts, progress: bool | None) -> None:
    """Print how many forward passes something will take, where progress is shown."""
    if show_progress(progress):
        print(
            f"{what}: {forwards} forwards of {len(prompts)} x {prompts.length} tokens",
            file=sys.stderr,
        )


@contextmanager
def progress_bar(forwards: int, progress: bool | None) -> Iterator[Callable[[int], object]]:
    """A bar with rate and time left that appears after two seconds."""
    with tqdm(
        total=forwards,
        delay=2,
        mininterval=0.5,
        disable=not show_progress(progress),
        unit="forward",
        leave=False,
    ) as bar:
        yield bar.update
