"""The checkpoints of a model's training, found by where the model came from.

Shipped models name theirs by step; for a model of the hub they are revisions that the caller names,
and anything in folders can be followed. A step is read from a name: the number after `step`
(`step1000-tokens4B`), else the one at its end.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...core.errors import SinklensError, UsageError
from ...core.paths import path_of
from ...core.protocol import HookedModel
from ...models import origin, shipped


class Checkpoint(NamedTuple):
    """A step, and what `load` takes."""

    step: int
    source: str
    options: dict[str, Any]


def find_checkpoints(model: HookedModel, asked: Sequence[str]) -> list[Checkpoint]:
    """The checkpoints of a model's training, by step.

    Raises:
        SinklensError: It is not known where the model came from, or which checkpoints it has.
        UsageError: A checkpoint does not exist.
    """
    own = origin(model)
    numbered = [name for name in asked if _number_in(Path(name).name) is not None]
    if numbered and len(numbered) < len(asked):
        raise UsageError(
            f"no step can be read from checkpoint {next(n for n in asked if n not in numbered)}, "
            f"and it can from {numbered[0]}; name all by their step, or none, in their order"
        )
    if asked and all(path_of(name).is_dir() for name in asked):
        checkpoints = [Checkpoint(_step_of(name, i), name, {}) for i, name in enumerate(asked)]
    elif own.kind == "shipped":
        steps = shipped.steps(own.name, own.seed)
        chosen = [_step_of(name, -1) for name in asked] or steps
        missing = [step for step in chosen if step not in steps]
        if missing:
            raise UsageError(
                f"{own.name} has no checkpoint of step {asked[chosen.index(missing[0])]}; there "
                f"is: {', '.join(map(str, steps))}"
            )
        checkpoints = [Checkpoint(s, own.name, {"step": s, "seed": own.seed}) for s in chosen]
    elif own.kind == "hub":
        if not asked:
            raise SinklensError(
                f"name the revisions of {own.name} to follow: checkpoints=step1000,step4000 "
                "(Pythia's are called so)"
            )
        checkpoints = [
            Checkpoint(_step_of(name, i), own.name, {"revision": name})
            for i, name in enumerate(asked)
        ]
    else:
        raise SinklensError(
            "sink_emergence finds checkpoints by where a model came from, and this one came as "
            f"{own.kind}; load a shipped model or one of the hub, or give folders in checkpoints="
        )
    if len({checkpoint.step for checkpoint in checkpoints}) < len(checkpoints):
        raise UsageError(
            f"two of these checkpoints are of the same step: {', '.join(asked)}; a step is the "
            "number after `step` in a name, else the one at its end"
        )
    if len(checkpoints) < 2:
        raise SinklensError(
            f"emergence needs at least two checkpoints, and {own.name} is given with "
            f"{len(checkpoints)}; rope and postnorm ship with several"
        )
    return sorted(checkpoints, key=lambda checkpoint: checkpoint.step)


def _step_of(name: str, number: int) -> int:
    """The step that a name tells, else its number in the list."""
    step = _number_in(Path(name).name)
    return number if step is None else step


def _number_in(name: str) -> int | None:
    """The number after `step` (step1000-tokens4B is OLMo's way), else the one at the end."""
    digits = re.search(r"step[-_]?(\d+)", name) or re.search(r"(\d+)$", name)
    return int(digits[1]) if digits else None
