"""Interrupted work in Python: kept on disk, gone on with, and reported in few lines.

    with sinklens.keep("out/"):                       # anything that measures
        card = sinklens.diagnose(model)
    result = sinklens.run("bos_replacement", model, out="out/")      # kept, then saved there

Finished work is under a key made of the experiment, its settings, weights and prompts
(`engine.resume`), so that whatever the block does, nothing else is taken over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from ..core.paths import path_of
from ..core.storage import require_free
from ..engine import kept, kept_in

P = ParamSpec("P")
T = TypeVar("T")
WITH = "the same call goes on from the finished work in {}"
WITHOUT = "within `with sinklens.keep('folder'):`, or by out= of run, finished work is kept"


class Interrupted(KeyboardInterrupt):
    """A run was stopped; its message says where finished work is."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows instead of every frame of the forward pass."""
        return [f"KeyboardInterrupt: {self}"]


@contextmanager
def keep(folder: str | Path, *, overwrite: bool = False) -> Iterator[None]:
    """Keep finished work of the block in `folder/unfinished`, and go on with what is there.

    After an interruption the same block takes over what was finished and gives the same numbers.
    What is kept is removed when the block ends; save results with `result.save(folder)`.

    Args:
        folder: The folder; it is made when it is needed.
        overwrite: Whether to discard unfinished work of something else there.

    Raises:
        SinklensError: The folder holds unfinished work of a command or of `run(..., out=...)`.
    """
    with kept(path_of(folder), ["sinklens.keep"], overwrite=overwrite):
        yield


@contextmanager
def kept_for(
    out: str | Path | None, command: Sequence[str], *, overwrite: bool = False
) -> Iterator[bool]:
    """Keep finished work in the output folder of a run, if it has one.

    Yields:
        Whether the same run ended there already and was stopped while it tidied up.

    Raises:
        SinklensError: The folder is not free or in use, or holds unfinished work of another run.
    """
    if out is None:
        yield False
        return
    require_free(path_of(out), overwrite)
    with kept(path_of(out), command, overwrite=overwrite) as finished:
        yield finished


def in_few_lines(function: Callable[P, T]) -> Callable[P, T]:
    """Report Ctrl-C without the frames of the forward pass, and with what can be done next."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except Interrupted as stopped:
            raise Interrupted(*stopped.args) from None
        except KeyboardInterrupt:
            out = kwargs.get("out") or kept_in()
            raise Interrupted(f"stopped; {WITHOUT if out is None else WITH.format(out)}") from None

    return call
