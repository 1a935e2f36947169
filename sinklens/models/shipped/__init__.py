"""Models that come with the package: their names, cards, steps, seeds, folders and own prompts.

All that is known of a member is in its folder of `members`: the card, the configuration, tokenizer
and weights. The recipes that trained them are in `sinklens.zoo`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from ...core.errors import SinklensError, UsageError, unknown_name

SAME_FINGERPRINT = 0.01


def names() -> list[str]:
    """The names of the shipped models."""
    root = resources.files(__name__) / "members"
    return sorted(entry.name for entry in root.iterdir() if (entry / "card.json").is_file())


class Card(dict[str, Any]):
    """The card of a shipped model: a dictionary that prints as the page in the model's folder."""

    def __init__(self, content: dict[str, Any], page: str) -> None:
        """Hold a card.

        Args:
            content: `card.json`.
            page: `README.md`.
        """
        super().__init__(content)
        self.page = page

    def __repr__(self) -> str:
        """The page."""
        return self.page

    def _repr_markdown_(self) -> str:
        """The page for Jupyter."""
        return self.page


def card(name: str) -> Card:
    """The card of a shipped model: its data, recipe, loss, sink scores and licence.

    Raises:
        UsageError: There is no shipped model of that name.
    """
    if name not in names():
        raise unknown_name("shipped model", name, names())
    root = resources.files(__name__) / "members" / name
    content: dict[str, Any] = json.loads((root / "card.json").read_text("utf-8"))
    page = root / "README.md"
    return Card(content, page.read_text("utf-8") if page.is_file() else name)


def steps(name: str, seed: int | None = None) -> list[int]:
    """The training steps of a shipped model that can be loaded, 0 (untrained) among them.

    Raises:
        UsageError: There is no such model or seed.
    """
    runs = card(name)["weights"]
    wanted = runs[0]["seed"] if seed is None else seed
    if wanted not in seeds(name):
        raise UsageError(f"{name} has no seed {wanted}; there is: {_listed(seeds(name))}")
    return sorted({0, *(run["step"] for run in runs if run["seed"] == wanted)})


def seeds(name: str) -> list[int]:
    """The training seeds of a shipped model."""
    return sorted({run["seed"] for run in card(name)["weights"]})


@contextmanager
def folder(name: str, *, step: int | None = None, seed: int | None = None) -> Iterator[Path]:
    """The Hugging Face folder of a shipped model, checked against the hashes on its card.

    Args:
        name: The shipped name.
        step: A training step; None is the last. Step 0 is made again from the seed.
        seed: A training seed; None is the first.

    Raises:
        UsageError: There is no such model, step or seed.
        SinklensError: The weights file is damaged, or step 0 cannot be made again here.
    """
    runs = card(name)["weights"]
    step = max(steps(name, seed)) if step is None else step
    seed = runs[0]["seed"] if seed is None else seed
    if step not in steps(name, seed):
        raise UsageError(
            f"{name} has no checkpoint of step {step} for seed {seed}; there is: "
            f"{_listed(steps(name, seed))}"
        )
    with resources.as_file(resources.files(__name__) / "members" / name) as path:
        if step == 0:
            with without_weights(path) as copy:
                _write_untrained(name, seed, copy)
                yield copy
            return
        run = next(run for run in runs if (run["step"], run["seed"]) == (step, seed))
        weights = path / run["file"]
        _require_whole(name, weights, run["sha256"])
        if run["file"] == "model.safetensors":
            yield path
            return
        with without_weights(path) as copy:
            (copy / "model.safetensors").write_bytes(weights.read_bytes())
            yield copy


@contextmanager
def without_weights(member: Path) -> Iterator[Path]:
    """A temporary copy of a member's folder with all that Hugging Face needs but the weights."""
    import shutil
    import tempfile

    with tempfile.TemporaryDirectory(prefix="sinklens-") as temporary:
        for pattern in ("config.json", "tokenizer*"):
            for file in member.glob(pattern):
                shutil.copy(file, temporary)
        yield Path(temporary)


def _write_untrained(name: str, seed: int, copy: Path) -> None:
    """Write the weights that training starts from, if they can be drawn here as they were then."""
    import torch
    from transformers import AutoConfig

    from .untrained import fingerprint, save_weights, untrained_model

    made = card(name)
    first_weights = made["recipe"]["first_weights"]
    model = untrained_model(
        AutoConfig.from_pretrained(copy, trust_remote_code=False), seed, first_weights
    )
    found, expected = fingerprint(model), made["untrained"][str(seed)]
    if abs(found - expected) > SAME_FINGERPRINT:
        raise SinklensError(
            f"torch {torch.__version__} or transformers here draw other first weights than those "
            f"that {name} was trained from ({found:.3f} instead of {expected:.3f}); use the "
            f"versions in constraints.txt, or a later step: {_listed(steps(name, seed)[1:])}"
        )
    save_weights(model, copy / "model.safetensors")


def _require_whole(name: str, weights: Path, expected: str) -> None:
    """Refuse a weights file that is missing or not what the card says."""
    import hashlib

    if not weights.exists():
        raise SinklensError(
            f"{weights.name} of the shipped model {name} is missing; install sinklens again"
        )
    found = hashlib.sha256(weights.read_bytes()).hexdigest()
    if found != expected:
        raise SinklensError(
            f"{weights.name} of the shipped model {name} is damaged (SHA-256 {found[:12]}, "
            f"expected {expected[:12]}); install sinklens again"
        )


def _listed(values: list[int]) -> str:
    return ", ".join(map(str, values))
