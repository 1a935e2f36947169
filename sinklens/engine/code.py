"""A digest of the code that made some work, so that other code does not go on with it."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

SINKLENS = Path(__file__).parents[1]


def code_digest(function: Callable[..., Any]) -> str | None:
    """Of the package that a function is defined in and of sinklens, all modules.

    None where it is in no package, as in a notebook: what it does cannot be told for sure.
    """
    package = _folder(str(getattr(function, "__module__", "")).partition(".")[0])
    if package is None:
        return None
    digest = hashlib.sha256()
    for folder in dict.fromkeys([SINKLENS, package]):
        for file in sorted(folder.rglob("*.py")):
            digest.update(f"{file.relative_to(folder)}".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _folder(package: str) -> Path | None:
    """The folder of a package, None for what is no package."""
    try:
        found = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    places = list(found.submodule_search_locations or []) if found else []
    return Path(places[0]) if places else None
