"""Files and folders that appear whole or not at all, and JSON as results hold it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import SinklensError

UNFINISHED = "unfinished"
COMMAND = "command.json"
FILES = ("result.json", "run.json", "values.safetensors", "findings.txt", "diagnosis.json")


def require_free(folder: Path, overwrite: bool) -> None:
    """Refuse an output folder that is not empty, before any work is done.

    Unfinished work of an interrupted run (`engine.kept`) does not count.

    Raises:
        SinklensError: It is a file, or a folder with anything in it and `overwrite` is not set.
    """
    if folder.exists() and not folder.is_dir():
        raise SinklensError(f"{folder} is a file; give a folder")
    parent = next(path for path in folder.absolute().parents if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise SinklensError(f"cannot create {folder}: {parent} is not a writable folder")
    held = [path for path in folder.glob("*") if path.name != UNFINISHED]
    saving = (folder / UNFINISHED / COMMAND).exists()  # a run was stopped while it saved
    if held and not overwrite and not saving:
        raise SinklensError(
            f"the folder {folder} is not empty; choose another, or use --overwrite (overwrite=True)"
        )


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files into a folder that then appears whole; into one in use, file by file.

    Raises:
        SinklensError: It cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".sinklens-") as temporary:
            partial = Path(temporary) / "result"
            partial.mkdir()
            for name, content in files.items():
                (partial / name).parent.mkdir(exist_ok=True)
                (partial / name).write_bytes(content)
            if folder.exists() and any(folder.iterdir()):
                _remove_results(folder)
                for name in files:
                    (folder / name).parent.mkdir(exist_ok=True)
                    os.replace(partial / name, folder / name)
            else:
                os.replace(partial, folder)
    except OSError as error:
        raise SinklensError(f"cannot write {folder}: {error}") from error


def _remove_results(folder: Path) -> None:
    """Remove the files of earlier results, so that old and new ones do not mix."""
    parts = [path.parent for path in folder.glob("*/result.json")]
    for part in (folder, *parts):
        for name in FILES:
            (part / name).unlink(missing_ok=True)
    for part in parts:
        if not any(part.iterdir()):
            part.rmdir()


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """Readable JSON without NaN."""
    return f"{json.dumps(content, indent=1, allow_nan=False)}\n".encode()


def read_json(path: Path) -> dict[str, Any]:
    """A file of a result.

    Raises:
        SinklensError: It is missing, damaged, or not a result.
    """
    if path.parent.is_file():
        raise SinklensError(f"{path.parent} is a file; give the folder that a result was saved to")
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise SinklensError(f"{path.parent} holds no result: there is no {path.name}") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise SinklensError(f"{path} is damaged or truncated: {error}") from error
    if not isinstance(content, dict):
        raise SinklensError(f"{path} is not a sinklens result")
    return content
