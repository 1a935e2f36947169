"""What every experiment says, as text that a reviewer can read: `python -m tests.snapshots`.

Each on `rope`, on `learned-sink` (which has no sink), on `encoder` where it applies, and with one
prompt. `test_snapshots.py` compares the words exactly and the numbers to what rounding needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import sinklens
from sinklens.runner import registry

FOLDER = Path(__file__).parent
MODELS = ("rope", "learned-sink", "encoder")
N_PROMPTS, LENGTH = 8, 32


def cases() -> Iterator[tuple[str, str, int]]:
    """Experiment, model and number of prompts."""
    for experiment in registry.all_experiments():
        for model in MODELS:
            yield experiment, model, N_PROMPTS
        yield experiment, "rope", 1


def file_of(experiment: str, model: str, n: int) -> Path:
    """Where a snapshot is."""
    return FOLDER / f"{experiment}.{model}{'.one_prompt' if n == 1 else ''}.txt"


@cache
def _loaded(model: str) -> Any:
    return sinklens.load(model)


def text_of(experiment: str, model: str, n: int) -> str:
    """What an experiment says, or why it refuses."""
    bridge = _loaded(model)
    prompts = sinklens.prompts(bridge, n=n, length=LENGTH)
    try:
        result = sinklens.run(experiment, bridge, prompts, draws=2, null_models=3, progress=False)
    except sinklens.SinklensError as error:
        return f"Refused: {error}\n"
    return f"{result}\n"
