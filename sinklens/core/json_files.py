"""JSON as results hold it: readable, with finite numbers, and refused where it is damaged."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import SinklensError, shortened

_DEEPEST = 50
_LARGEST = 2**1000  # what a float can hold, with room


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """Readable JSON without NaN."""
    return f"{json.dumps(content, indent=1, allow_nan=False)}\n".encode()


def read_json(path: Path) -> dict[str, Any]:
    """A file of a result.

    Raises:
        SinklensError: It is missing, damaged, or not a result.
    """
    if os.path.isfile(path.parent):  # which says no to names that no file system holds
        raise SinklensError(f"{path.parent} is a file; give the folder that a result was saved to")
    content = json_in(path, read_regular(path))
    if not isinstance(content, dict):
        raise SinklensError(f"{path} is not a sinklens result")
    return content


def read_regular(path: Path) -> bytes:
    """The content of a file of a result.

    Raises:
        SinklensError: It is missing, no regular file, or cannot be read.
    """
    try:
        if path.exists() and not path.is_file():
            raise SinklensError(f"{path} is no regular file, so no part of a result")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise SinklensError(f"{path.parent} holds no result: there is no {path.name}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SinklensError(f"{shortened(path)} cannot be read: {reason}") from error


def json_in(path: Path, raw: bytes) -> Any:
    """What JSON says, with finite numbers and valid text, nested no deeper than results are.

    Raises:
        SinklensError: It is none, or beyond that.
    """
    try:
        content = json.loads(raw.decode("utf-8"), parse_constant=_no_number)
        _require_plain_values(content, _DEEPEST)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError, JSONDecodeError, digits
        raise SinklensError(f"{path} is damaged or truncated: {error}") from error
    return content


def _no_number(constant: str) -> float:
    raise ValueError(f"{constant} is no number of JSON")


def _require_plain_values(content: Any, depth: int) -> None:
    """Refuse what JSON can write and results never hold.

    Raises:
        ValueError: A number is infinite or has no float, text has lone surrogates, or it is nested
            deeper than `depth`.
    """
    if isinstance(content, str):
        content.encode("utf-8")
    elif isinstance(content, float):
        if not math.isfinite(content):
            raise ValueError("a number is infinite")
    elif isinstance(content, int):
        if abs(content) >= _LARGEST:
            raise ValueError("a number is too large for a float")
    elif isinstance(content, (dict, list)):
        if depth == 0:
            raise ValueError(f"it is nested deeper than {_DEEPEST}")
        inner = [*content, *content.values()] if isinstance(content, dict) else content
        for part in inner:
            _require_plain_values(part, depth - 1)
