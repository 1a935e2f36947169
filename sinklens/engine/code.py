"""A digest of the code that made some work, so that other code does not go on with it."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import CodeType
from typing import Any

SINKLENS = Path(__file__).parents[1]


def code_digest(function: Any) -> str:
    """Of the package that a function is defined in and of sinklens, all modules.

    A function also counts by its own bytecode, and by what it is bound to as far as that shows in
    `repr`: in a notebook it is in no package. What such a function calls goes unseen.
    """
    digest = hashlib.sha256()
    while isinstance(function, partial):
        digest.update(repr((function.args, sorted(function.keywords.items()))).encode())
        function = function.func
    target = function if hasattr(function, "__code__") else type(function).__call__
    code = getattr(target, "__code__", None)
    if code is not None:
        held = [cell.cell_contents for cell in target.__closure__ or ()]
        bound = (target.__defaults__, target.__kwdefaults__, held)
        digest.update(repr((*_parts(code), *bound)).encode())
    package = _folder(str(getattr(function, "__module__", "")).partition(".")[0])
    for folder in dict.fromkeys([SINKLENS, *([package] if package else [])]):
        for file in sorted(folder.rglob("*.py")):
            digest.update(f"{file.relative_to(folder)}".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _parts(code: CodeType) -> Iterator[Any]:
    """What decides what code does; functions inside it by theirs, since `repr` tells an address."""
    yield from (code.co_code, code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _parts(constant)
        else:
            yield constant


def _folder(package: str) -> Path | None:
    """The folder of a package, None for what is no package."""
    try:
        found = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    places = list(found.submodule_search_locations or []) if found else []
    return Path(places[0]) if places else None
