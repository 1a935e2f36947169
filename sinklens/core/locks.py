"""A folder that one process works in, told by a lock file that names it.

The system holds the lock and lets go of it when the process ends, however it ends: what a killed
process leaves is free for the next one. File systems that cannot lock are used without.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from .errors import SinklensError

LOCK = ".sinklens-lock"
_LONGEST = 300
_BEYOND = 1 << 20  # where Windows locks: behind the text, which others can then read
_mine: ContextVar[frozenset[Path]] = ContextVar("sinklens_locked", default=frozenset())


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep others out of an existing folder for the length of a `with` block.

    Raises:
        SinklensError: Another process or thread is in it; the message says which.
    """
    place = folder.resolve()
    if place in _mine.get():
        yield
        return
    lock = _taken(place)
    if lock is None:
        raise SinklensError(
            f"{folder} is in use by {_owner(place)}; wait until it ends, or give another folder"
        )
    token = _mine.set(_mine.get() | {place})
    try:
        yield
    finally:
        _mine.reset(token)
        _free(place, lock)


@contextmanager
def passing_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A folder for the length of a `with` block; those that killed processes left are removed."""
    remove_left(parent, prefix)
    lock = None
    while lock is None:  # somebody who tidies up may take a new one for one that was left
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
        try:
            lock = _taken(folder)
        except SinklensError:
            folder.rmdir()
            raise
    try:
        yield folder
    finally:
        _free(folder, lock)
        shutil.rmtree(folder, ignore_errors=True)


def remove_left(parent: Path, prefix: str) -> None:
    """Remove folders of `passing_folder` whose process is gone."""
    for folder in parent.glob(f"{prefix}*"):
        with contextlib.suppress(SinklensError):  # a file, or another user's
            lock = _taken(folder)
            if lock is not None:
                _free(folder, lock)
                shutil.rmtree(folder, ignore_errors=True)


def owner(folder: Path) -> str:
    """What another process that works in a folder says of itself; empty where none does."""
    try:
        lock = os.open(folder / LOCK, os.O_RDWR)
    except OSError:
        return ""
    try:
        return "" if _lock(lock) else _owner(folder)
    finally:
        os.close(lock)


def _taken(folder: Path) -> int | None:
    """The open lock file of a folder; None where another process has it or the folder is gone."""
    path = folder / LOCK
    while True:
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SinklensError(f"cannot write {folder}: {error}") from error
        if not _lock(lock):
            os.close(lock)
            return None
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(lock), os.stat(path)):  # and not removed meanwhile
                break
        os.close(lock)
    command = " ".join(sys.argv)[:_LONGEST]
    text = f"process {os.getpid()} on {socket.gethostname()}: {command}"
    with contextlib.suppress(OSError):  # on a full disk the lock holds without a name
        os.truncate(lock, 0)
        os.write(lock, text.encode("utf-8", "backslashreplace"))
    return lock


def _free(folder: Path, lock: int) -> None:
    """Remove the lock file and let go of the lock."""
    if sys.platform == "win32":  # which removes no file that is open, and none that another has
        os.close(lock)
    with contextlib.suppress(OSError):
        (folder / LOCK).unlink()
    if sys.platform != "win32":
        os.close(lock)


def _owner(folder: Path) -> str:
    """What a lock file says of the process that holds it."""
    try:
        said = (folder / LOCK).read_text("utf-8", "replace")[: 2 * _LONGEST]
    except OSError:  # it has just ended, or the system keeps locked files to their owner
        said = ""
    return said or "another process"


def _lock(file: int) -> bool:
    """Whether a file could be locked; True also where the file system has no locks."""
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(file, _BEYOND, os.SEEK_SET)
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
            os.lseek(file, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True
    return True
