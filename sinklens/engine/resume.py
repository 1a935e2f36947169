"""Finished work on disk, so that an interrupted run can be resumed.

    with kept(folder, command):      # the command line does this for --out
        result = sinklens.run(...)

Every group of interventions of every batch is written as soon as it is measured, into
`folder/unfinished`, under a key made of the experiment, its version and settings, the model's
weights and the prompts; work with user-defined metrics or hooks is not resumed. Each file is
written completely or not at all, and its name holds the hash of its content. Since batch sizes
depend on shapes alone (`sizes.py`), a resumed run gives the same bytes as an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..core.errors import SinklensError, shortened
from ..core.locks import locked
from ..core.storage import COMMAND, FINISHED, PARTIAL, UNFINISHED, not_empty, write_file

_open: ContextVar[Journal | None] = ContextVar("sinklens_journal", default=None)
_section: ContextVar[Section | None] = ContextVar("sinklens_section", default=None)


@contextmanager
def kept(folder: Path, command: Sequence[str], *, overwrite: bool = False) -> Iterator[bool]:
    """Keep finished work in `folder` until the block ends without an error.

    Args:
        folder: The output folder; unfinished work of the same command there is resumed. No other
            process can use it meanwhile.
        command: The command.
        overwrite: Whether to discard unfinished work of another command.

    Yields:
        Whether the same command ended there already and was stopped while it tidied up.

    Raises:
        SinklensError: The folder is in use, holds unfinished work of another command, or other
            files under that name.
    """
    own, text = folder / UNFINISHED, json.dumps(command, sort_keys=True)
    with _made(folder), locked(folder):
        finished = _tidied(folder, text, overwrite)
        _require_own(folder, text, overwrite)
        journal = Journal(own)
        journal.write(own / COMMAND, text.encode())
        token = _open.set(journal)
        try:
            yield finished
        except SinklensError:
            if not any(own.rglob("*.safetensors")):  # nothing that is worth going on with
                shutil.rmtree(own, ignore_errors=True)
            raise
        finally:
            _open.reset(token)
        os.replace(own / COMMAND, folder / FINISHED)
        _tidied(folder, text)


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """A folder and its parents, which go again if nothing was put there.

    Raises:
        SinklensError: They cannot be made.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise SinklensError(f"cannot create {shortened(folder)}: {error}") from error
    try:
        yield
    finally:
        with suppress(OSError):
            for path in made:
                path.rmdir()


def _tidied(folder: Path, text: str, overwrite: bool = False) -> bool:
    """Remove what a run kept that has ended; whether it was this one, whose result is wanted.

    Raises:
        SinklensError: It was another one, whose result is there and not to be overwritten.
    """
    mark = folder / FINISHED
    if not mark.exists():
        return False
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
    same = mark.read_text("utf-8", "replace") == text
    mark.unlink()  # last, since this can be interrupted too
    if not (same or overwrite):
        raise not_empty(folder)
    return same and not overwrite


def _require_own(folder: Path, text: str, overwrite: bool) -> None:
    """Refuse a folder with unfinished work of something else; discard it if that is asked for."""
    own = folder / UNFINISHED
    stored = own / COMMAND
    if not own.exists() or (stored.exists() and stored.read_bytes() == text.encode()):
        return
    if not stored.exists() and not _is_blank(own):
        raise SinklensError(
            f"{own} does not belong to an unfinished run, which would be kept there; give "
            "another folder"
        )
    if stored.exists() and not overwrite:
        raise SinklensError(
            f"{folder} holds an unfinished run of another command; run that again to finish "
            "it, give another folder, or use --overwrite (overwrite=True)"
        )
    shutil.rmtree(own, ignore_errors=True)


def kept_in() -> Path | None:
    """The folder in which finished work is kept at this moment."""
    journal = _open.get()
    return None if journal is None else journal.folder.parent


def _is_blank(own: Path) -> bool:
    """Whether a run was interrupted here before its command was written."""
    return own.is_dir() and all(
        path.name.startswith(COMMAND) and path.suffix == PARTIAL for path in own.iterdir()
    )


@dataclass(frozen=True)
class Journal:
    """A folder for finished work.

    Attributes:
        folder: The folder.
    """

    folder: Path

    def write(self, file: Path, content: bytes) -> None:
        """Write a file completely or not at all.

        Raises:
            SinklensError: It cannot be written.
        """
        try:
            write_file(file, content)
        except OSError as error:
            raise SinklensError(
                f"cannot keep finished work in {self.folder}: {error}; finished work is "
                "kept, and the same command resumes from it"
            ) from error


@contextmanager
def section(identity: Callable[[], Mapping[str, Any]]) -> Iterator[None]:
    """One experiment's part; without `kept` around it nothing is written.

    Args:
        identity: Everything that the numbers depend on, for JSON; called only if work is kept.
    """
    journal = _open.get()
    if journal is None:
        yield
        return
    key = hashlib.sha256(json.dumps(identity(), sort_keys=True).encode()).hexdigest()[:16]
    token = _section.set(Section(journal, journal.folder / key))
    try:
        yield
    finally:
        _section.reset(token)


@contextmanager
def unkept() -> Iterator[None]:
    """Keep nothing of what runs within a `with` block, and number no call."""
    token = _section.set(None)
    try:
        yield
    finally:
        _section.reset(token)


class Section:
    """The finished work of one experiment, call by call of `evaluate`."""

    def __init__(self, journal: Journal, folder: Path) -> None:
        """Start with the first call."""
        self._journal, self._folder = journal, folder
        self._calls = 0

    def next_call(self) -> Call:
        """The next call of `evaluate`; the calls of an experiment have a fixed order."""
        self._calls += 1
        return KeptCall(self._journal, self._folder / f"{self._calls}")


class Call:
    """A call of `evaluate` whose work is not kept."""

    def load(self, batch: int, what: str) -> dict[str, Tensor] | None:
        """The tensors kept for a batch under a name; None if they are not there."""
        return None

    def store(self, batch: int, what: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep finished tensors."""


class KeptCall(Call):
    """A call of `evaluate` whose finished work is on disk."""

    def __init__(self, journal: Journal, folder: Path) -> None:
        """Use the finished work in the folder."""
        self._journal, self._folder = journal, folder

    def load(self, batch: int, what: str) -> dict[str, Tensor] | None:
        """The tensors kept for a batch under a name; None if they are not there."""
        for file in self._folder.glob(f"{batch}-{what}.*.safetensors"):
            with suppress(SafetensorError, OSError):  # as after a power cut; it is measured again
                content = file.read_bytes()
                if file == self._file(batch, what, content):
                    return load(content)
        return None

    def store(self, batch: int, what: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep finished tensors."""
        content = save({name: tensor.contiguous() for name, tensor in tensors.items()})
        self._journal.write(self._file(batch, what, content), content)

    def _file(self, batch: int, what: str, content: bytes) -> Path:
        """The file of some content, which its name vouches for."""
        digest = hashlib.sha256(content).hexdigest()[:16]
        return self._folder / f"{batch}-{what}.{digest}.safetensors"


def current_call() -> Call:
    """The call that `evaluate` is about to make."""
    here = _section.get()
    return Call() if here is None else here.next_call()
