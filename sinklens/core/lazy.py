"""Public names of a package that are imported on first use, so that importing it is fast."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def on_first_use(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """A package's `__getattr__`, which imports a public name from its module.

    Importing a module puts it into its package under its own name. So a name that maps to itself
    is the module, and no other public name may equal a module's name. A module of the package that
    has no entry is imported under its own name as well.

    Args:
        package: `__name__` of the package.
        homes: The module of each name, relative to the package.
    """

    def find(name: str) -> Any:
        home = homes.get(name) or _own_module(package, name)
        if home is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = import_module(f".{home}", package)
        value = module if home == name else getattr(module, name)
        setattr(sys.modules[package], name, value)
        return value

    return find


def _own_module(package: str, name: str) -> str | None:
    """The name, if it is that of a public module of the package."""
    public = not name.startswith("_")
    return name if public and find_spec(f"{package}.{name}") is not None else None
