"""What experiments cost, in plain forwards of the batch.

    python -m tests.benchmarks.experiments [EXPERIMENT ...]

On SmolLM2-135M with 16 prompts of 64 tokens and default settings, CPU time on one thread, which
other work on the machine moves less than wall time. Forwards are timed before and after each run;
their median is the unit. The bars are those that the experiments were built to meet.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

import sinklens
from tests.conftest import SMOLLM2_FILE

BARS = {
    "massive_activations": 40,
    "reference_frame": 40,
    **dict.fromkeys(
        (
            "absolute_position",
            "position_bias",
            "positional_spectrum",
            "rope_phase",
            "qk_eigenspectrum",
            "input_dependence",
            "bias_constancy",
            "attention_allocation",
            "token_synchronisation",
        ),
        80,
    ),
    "active_dormant": None,
    "attention_likelihood": None,
}
"""None where an experiment states its own cost."""
FORWARDS = 3


def cpu_seconds(call: Callable[[], Any]) -> float:
    """The CPU time that a call takes."""
    began = time.process_time()
    call()
    return time.process_time() - began


def main() -> None:
    """Time each experiment between plain forwards."""
    torch.set_num_threads(1)
    model = sinklens.load(Path(sinklens.models.cache_folder() / "tests" / SMOLLM2_FILE))
    prompts = sinklens.prompts(model, n=16, length=64)
    sinklens.check(model)

    def forward() -> None:
        with torch.no_grad():
            model(prompts.tokens)

    forward()
    for name in sys.argv[1:] or BARS:
        bar = BARS[name] or "its own"
        before = [cpu_seconds(forward) for _ in range(FORWARDS)]
        taken = cpu_seconds(partial(sinklens.run, name, model, prompts, progress=False))
        after = [cpu_seconds(forward) for _ in range(FORWARDS)]
        unit = statistics.median(before + after)
        print(f"{name:25} {taken / unit:.1f} forwards of {unit:.2f} s    bar {bar}", flush=True)


if __name__ == "__main__":
    main()
