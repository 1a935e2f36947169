"""Experiments of other packages, named in the entry-point group `sinklens.experiments`.

A plugin that cannot be imported is left out with a warning that names it; whatever else was asked
for goes on.
"""

from __future__ import annotations

import warnings
from collections.abc import MutableMapping
from importlib.metadata import entry_points
from typing import Any

GROUP = "sinklens.experiments"

_left_out: dict[Any, str] = {}


def load_plugins(experiments: MutableMapping[str, Any]) -> None:
    """Import every plugin, which adds its experiments.

    Args:
        experiments: The experiments by name; what a broken plugin added is removed.
    """
    for entry in entry_points(group=GROUP):
        if entry in _left_out:
            continue
        before = dict(experiments)
        try:
            entry.load()
        except (Exception, SystemExit) as error:
            experiments.clear()
            experiments.update(before)
            line = (str(error).strip().splitlines() or [""])[0][:200]
            _left_out[entry] = f"{type(error).__name__}: {line}"
            warnings.warn(f"{_named(entry)} is left out: {_left_out[entry]}", stacklevel=2)


def left_out() -> list[str]:
    """Every plugin that was left out, with the reason."""
    return [f"{_named(entry)}: {reason}" for entry, reason in _left_out.items()]


def _named(entry: Any) -> str:
    """`the plugin my_experiment (my_package.module)`, with its package and version if known."""
    package = f", {entry.dist.name} {entry.dist.version}" if entry.dist else ""
    return f"the plugin {entry.name} ({entry.value}{package})"
