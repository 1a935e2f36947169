"""What every experiment says, as text that a reviewer can read: `python -m tests.snapshots`.

Each on `rope`, on `learned-sink` (which has no sink), on `encoder` where it applies, with one
prompt, and on SmolLM2 (`python -m tests.snapshots --real`, half an hour). `test_snapshots.py`
compares the words exactly and the numbers to what rounding needs, on SmolLM2 of the few experiments
that take seconds there.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import sinklens
from sinklens.runner import registry
from tests.conftest import smollm2_file

FOLDER = Path(__file__).parent
MODELS = ("rope", "learned-sink", "encoder")
REAL = "SmolLM2"
CHECKED_ON_REAL = ("sink_profile",)
OWN: dict[str, dict[str, Any]] = {
    "position0_patching": {"layers": (0, 11, 20, 29)},
    "active_dormant": {"removed": (0.1, 0.3)},
}
"""On SmolLM2, where all layers, or more points of a curve, would take an hour."""
N_PROMPTS, LENGTH = 8, 32


def cases() -> Iterator[tuple[str, str, int]]:
    """Experiment, model and number of prompts."""
    for experiment in registry.all_experiments():
        for model in MODELS:
            yield experiment, model, N_PROMPTS
        yield experiment, "rope", 1


def real_cases() -> Iterator[tuple[str, str, int]]:
    """The same on SmolLM2."""
    for experiment in registry.all_experiments():
        yield experiment, REAL, N_PROMPTS


def file_of(experiment: str, model: str, n: int) -> Path:
    """Where a snapshot is."""
    return FOLDER / f"{experiment}.{model}{'.one_prompt' if n == 1 else ''}.txt"


@cache
def _loaded(model: str) -> Any:
    return sinklens.load(smollm2_file() if model == REAL else model)


def text_of(experiment: str, model: str, n: int) -> str:
    """What an experiment says, or why it refuses."""
    bridge = _loaded(model)
    prompts = sinklens.prompts(bridge, n=n, length=LENGTH)
    own = OWN.get(experiment, {}) if model == REAL else {}
    try:
        result = sinklens.run(
            experiment, bridge, prompts, draws=2, null_models=3, progress=False, **own
        )
    except sinklens.SinklensError as error:
        return f"Refused: {error}\n"
    return f"{result}\n"
