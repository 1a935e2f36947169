"""What a run will take, and what a user sees while its forward passes run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from ..core.terminal import show_progress as show_progress


@dataclass(frozen=True)
class Plan:
    """What a run takes.

    Attributes:
        what: The experiment.
        model: The model's name.
        forwards: Forward passes, one per batch and intervention.
        prompts: The number of prompts.
        length: Their length in tokens.
        random_forwards: Forward passes of models with random weights, on a few prompts.
        seconds: An estimate of the time, from shapes and the time of the first batch.
    """

    what: str
    model: str
    forwards: int
    prompts: int
    length: int
    random_forwards: int = 0
    seconds: float | None = None

    def __str__(self) -> str:
        """One line."""
        random = ""
        if self.random_forwards:
            random = f" and {self.random_forwards} of models with random weights"
        time_left = "" if self.seconds is None else f"; about {duration(self.seconds)}"
        return (
            f"{self.what} on {self.model}, {self.prompts} prompts of {self.length} tokens: "
            f"{self.forwards} forwards{random}{time_left}"
        )


def duration(seconds: float) -> str:
    """A time as one speaks of it: `20 s`, `5 min`, `2.5 h`."""
    if seconds < 99.5:
        return f"{max(1, round(seconds))} s"
    minutes = seconds / 60
    return f"{round(minutes)} min" if minutes < 99.5 else f"{minutes / 60:.1f} h"


class _RunBar:
    """The bar of a run, which counts all of its forward passes."""

    def __init__(self, bar: Any) -> None:
        self.bar = bar

    def announce(self, plan: Plan) -> None:
        """Print what the run takes, and count up to it."""
        if not self.bar.disable:
            tqdm.write(str(plan), file=sys.stderr)
        self.bar.total = plan.forwards + plan.random_forwards
        self.bar.refresh()


_run_bar: ContextVar[_RunBar | None] = ContextVar("sinklens_run_bar", default=None)
_announce_to: ContextVar[Callable[[Plan], None] | None] = ContextVar(
    "sinklens_announce_to", default=None
)


def announce(plan: Plan) -> None:
    """Say what a run takes: to whom `announced_to` names, else where progress is shown."""
    receiver, bar = _announce_to.get(), _run_bar.get()
    if receiver is not None:
        receiver(plan)
    elif bar is not None:
        bar.announce(plan)


def is_awaited() -> bool:
    """Whether anybody sees what is announced."""
    bar = _run_bar.get()
    return _announce_to.get() is not None or (bar is not None and not bar.bar.disable)


@contextmanager
def announced_to(receiver: Callable[[Plan], None]) -> Iterator[None]:
    """Give what runs announce to a function instead of printing it."""
    token = _announce_to.set(receiver)
    try:
        yield
    finally:
        _announce_to.reset(token)


@contextmanager
def run_bar(what: str, progress: bool | None) -> Iterator[None]:
    """One bar for all forward passes within a `with` block, shown at once."""
    with progress_bar(None, progress, what, "forward") as bar:
        token = _run_bar.set(_RunBar(bar))
        try:
            yield
        finally:
            _run_bar.reset(token)


@contextmanager
def forwards_bar(forwards: int, progress: bool | None) -> Iterator[Callable[[int], object]]:
    """Count forward passes: on the bar of the run, else on one of their own."""
    run = _run_bar.get()
    if run is not None:
        yield run.bar.update
        return
    with progress_bar(forwards, progress, "evaluate", "forward") as bar:
        yield bar.update


@contextmanager
def progress_bar(total: int | None, progress: bool | None, what: str, unit: str) -> Iterator[Any]:
    """A bar with a name, rate and time left; `update` advances it."""
    hidden = not show_progress(progress)
    with tqdm(
        total=total, desc=what, mininterval=0.5, disable=hidden, unit=unit, leave=False
    ) as bar:
        yield bar


@contextmanager
def unseen() -> Iterator[None]:
    """Keep what runs within a `with` block off the bar of the run."""
    token = _run_bar.set(None)
    try:
        yield
    finally:
        _run_bar.reset(token)
