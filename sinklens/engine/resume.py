"""Finished work on disk, so that an interrupted run can be resumed.

    with kept(folder, command):      # the command line does this for --out
        result = sinklens.run(...)

Every group of interventions of every batch is written as soon as it is measured, into
`folder/unfinished`, under a key made of the experiment, its version and settings, the model's
weights and the prompts; work with user-defined metrics or hooks is not resumed. Each file is
written completely or not at all. Since batch sizes depend on shapes alone (`sizes.py`), a resumed
run gives the same bytes as an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..core.errors import SinklensError
from ..core.storage import COMMAND, UNFINISHED

_open: ContextVar[Journal | None] = ContextVar("sinklens_journal", default=None)
_section: ContextVar[Section | None] = ContextVar("sinklens_section", default=None)


@contextmanager
def kept(folder: Path, command: Sequence[str], *, overwrite: bool = False) -> Iterator[None]:
    """Keep finished work in `folder` until the block ends without an error.

    Args:
        folder: The output folder; unfinished work of the same command there is resumed.
        command: The command.
        overwrite: Whether to discard unfinished work of another command.

    Raises:
        SinklensError: The folder holds unfinished work of another command, or other files under
            that name.
    """
    own, existed = folder / UNFINISHED, folder.exists()
    text = json.dumps(command, sort_keys=True)
    stored = own / COMMAND
    if own.exists() and not (stored.exists() and stored.read_bytes() == text.encode()):
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
        _remove(own)
    token = _open.set(Journal(own, text))
    try:
        yield
    except SinklensError:
        if not any(own.rglob("*.safetensors")):  # nothing that is worth going on with
            _remove(own)
        if not existed and folder.exists() and not any(folder.iterdir()):
            folder.rmdir()
        raise
    finally:
        _open.reset(token)
    _remove(own)


def kept_in() -> Path | None:
    """The folder in which finished work is kept at this moment."""
    journal = _open.get()
    return None if journal is None else journal.folder.parent


def _is_blank(own: Path) -> bool:
    """Whether a run was interrupted here before its command was written."""
    return own.is_dir() and all(path.name == f"{COMMAND}.partial" for path in own.iterdir())


def _remove(own: Path) -> None:
    """Remove an unfinished run; its command last, since removal can be interrupted."""
    for part in own.glob("*"):
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(own, ignore_errors=True)


@dataclass(frozen=True)
class Journal:
    """A folder for finished work, created with the first piece.

    Attributes:
        folder: The folder.
        command: The command, as text.
    """

    folder: Path
    command: str

    def write(self, file: Path, content: bytes) -> None:
        """Write a file completely or not at all; before the first one, the command.

        Raises:
            SinklensError: It cannot be written.
        """
        stored = self.folder / COMMAND
        for target, what in ((stored, self.command.encode()), (file, content)):
            if target == file or not target.exists():
                partial = target.with_name(f"{target.name}.partial")
                try:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    partial.write_bytes(what)
                    os.replace(partial, target)
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
        file = self._folder / f"{batch}-{what}.safetensors"
        try:
            return load(file.read_bytes()) if file.exists() else None
        except (SafetensorError, OSError):  # as after a power cut; it is measured again
            return None

    def store(self, batch: int, what: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep finished tensors."""
        content = save({name: tensor.contiguous() for name, tensor in tensors.items()})
        self._journal.write(self._folder / f"{batch}-{what}.safetensors", content)


def current_call() -> Call:
    """The call that `evaluate` is about to make."""
    here = _section.get()
    return Call() if here is None else here.next_call()
