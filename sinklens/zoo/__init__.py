"""Models that come with the package, and the recipes that trained them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from ..errors import SinklensError, UsageError, unknown_name


def names() -> list[str]:
    """The names of the shipped models."""
    root = resources.files(__name__) / "members"
    return sorted(entry.name for entry in root.iterdir() if (entry / "card.json").is_file())


def card(name: str) -> dict[str, Any]:
    """The card of a shipped model: its data, recipe, loss, sink scores and licence.

    Raises:
        UsageError: There is no shipped model of that name.
    """
    if name not in names():
        raise unknown_name("shipped model", name, names())
    root = resources.files(__name__) / "members" / name
    content: dict[str, Any] = json.loads((root / "card.json").read_text("utf-8"))
    return content


@contextmanager
def folder(name: str, *, step: int | None = None, seed: int | None = None) -> Iterator[Path]:
    """The Hugging Face folder of a shipped model, checked against the hash on its card.

    Raises:
        UsageError: There is no such model, step or seed.
        SinklensError: The weights file is damaged.
    """
    import hashlib

    shipped = card(name)
    if step not in (None, shipped["recipe"]["steps"]):
        raise UsageError(
            f"{name} has no checkpoint of step {step}; there is: {shipped['recipe']['steps']}"
        )
    if seed not in (None, shipped["seed"]):
        raise UsageError(f"{name} has no seed {seed}; there is: {shipped['seed']}")
    with resources.as_file(resources.files(__name__) / "members" / name) as path:
        found = hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()
        if found != shipped["sha256"]:
            raise SinklensError(
                f"the weights of the shipped model {name} are damaged (SHA-256 {found[:12]}, "
                f"expected {shipped['sha256'][:12]}); install sinklens again"
            )
        yield path


def __getattr__(name: str) -> Any:
    """Import the constructed model only when it is asked for; it needs transformers."""
    if name in ("constructed_sink", "ConstructedSink"):
        from . import constructed

        return getattr(constructed, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
