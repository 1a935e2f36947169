"""Folders of results, which appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

from .errors import SinklensError, UsageError, shortened
from .json_files import read_json
from .locks import LOCK, locked, passing_folder

UNFINISHED = "unfinished"
COMMAND = "command.json"
FINISHED = ".sinklens-finished"
PARTIAL = ".partial"
ABOUT = "diagnosis.json"
FILES = ("result.json", "run.json", "values.safetensors", "findings.txt", ABOUT)
_PLAIN_NAME = re.compile(r"\w[\w. +-]{0,199}")


def require_free(folder: Path, overwrite: bool) -> None:
    """Refuse an output folder that is not empty, before any work is done.

    Unfinished work of an interrupted run (`engine.kept`) does not count.

    Raises:
        SinklensError: It is a file, a folder with anything in it and `overwrite` is not set, or no
            file system could hold it.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise SinklensError(f"{folder} is a file; give a folder")
        parent = next(path for path in folder.absolute().parents if path.exists())
        writable = parent.is_dir() and os.access(parent, os.W_OK)
        of_a_run = (UNFINISHED, FINISHED, LOCK)
        held = [path for path in folder.glob("*") if path.name not in of_a_run]
        # A run was stopped while it saved, or tidied up.
        ending = any((folder / name).exists() for name in (f"{UNFINISHED}/{COMMAND}", FINISHED))
    except OSError as error:
        raise SinklensError(f"cannot use {shortened(folder)}: {error.strerror}") from error
    if not writable:
        raise SinklensError(f"cannot create {folder}: {parent} is not a writable folder")
    if held and not overwrite and not ending:
        raise not_empty(folder)


def not_empty(folder: Path) -> SinklensError:
    """The error of an output folder in use."""
    return SinklensError(
        f"the folder {folder} is not empty; choose another, or use --overwrite (overwrite=True)"
    )


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files into a folder that then appears whole; into one in use, file by file.

    Raises:
        SinklensError: It cannot be written, or another process works in it.
        UsageError: A name would lead elsewhere.
    """
    require_plain(part for name in files for part in name.split("/"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with passing_folder(folder.parent, ".sinklens-") as passing:
            partial = passing / "result"
            partial.mkdir()
            for name, content in files.items():
                (partial / name).parent.mkdir(exist_ok=True)
                (partial / name).write_bytes(content)
            if not folder.exists() or not any(folder.iterdir()):
                os.replace(partial, folder)
                return
            with locked(folder):
                _remove_results(folder)
                for name in files:
                    (folder / name).parent.mkdir(exist_ok=True)
                    os.replace(partial / name, folder / name)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SinklensError(f"cannot write {shortened(folder)}: {reason}") from error


def write_file(path: Path, content: bytes) -> None:
    """Write a file completely or not at all, whoever else writes it.

    Raises:
        OSError: It cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def require_plain(names: Iterable[str]) -> None:
    """Refuse names of files and folders that would lead elsewhere.

    Raises:
        UsageError: One does.
    """
    for name in names:
        if not _PLAIN_NAME.fullmatch(name):
            raise UsageError(
                f"{name!r} cannot name a file or folder of a result; use letters, digits, '-', "
                "'_' and '.'"
            )


def parts_of(folder: Path) -> list[str] | None:
    """The folders of a saved diagnosis, by name; None where it does not say.

    Raises:
        SinklensError: What it says is damaged.
    """
    about = read_json(folder / ABOUT) if (folder / ABOUT).exists() else {}
    parts = about.get("experiments")
    if parts is None:
        return None
    if not isinstance(parts, list) or not all(isinstance(name, str) for name in parts):
        raise SinklensError(f"{folder / ABOUT} is damaged: experiments are no list of names")
    require_plain(parts)
    return parts


def _remove_results(folder: Path) -> None:
    """Remove the files of an earlier result or diagnosis, so that old and new ones do not mix."""
    parts: list[Path] = []
    with contextlib.suppress(SinklensError):  # nothing is removed that it does not name
        parts = [folder / name for name in parts_of(folder) or ()]
    for part in (*parts, folder):
        for name in FILES:
            (part / name).unlink(missing_ok=True)
    for part in parts:
        if part.is_dir() and not any(part.iterdir()):
            part.rmdir()
