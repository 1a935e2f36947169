"""Batch sizes: prompts, interventions and rows of logits per forward pass.

On a CPU large forward passes gain little: on SmolLM2-135M, time per token varied by less than a
fifth between 256 and 1,024 tokens per pass, and between slices of 16 and 128 MiB of logits. The
sizes on CPU lie in these ranges; on other devices a forward pass fills the memory budget. They
depend on shapes, device and budget alone, never on a timing: rounding depends on them, and the same
run has to give the same bytes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from ..core.errors import SinklensError, UsageError
from ..core.protocol import HookedModel

LARGEST_BUDGET = 2**30
SHARE = 0.25
CPU_ACTIVATION_BYTES = 2**22
CPU_ROW_BYTES = 2**26
FEWEST_ROWS = 64
PATTERN_BYTES = 2**26
FEWEST_QUERIES = 16


@dataclass(frozen=True)
class Sizes:
    """The sizes of a run.

    Attributes:
        prompts: Prompts in a batch.
        interventions: The largest number of interventions in one forward pass.
        rows: Rows of logits at once.
        queries: Rows of a layer's attention pattern at once, where probes can read slices.
        memory: The budget in bytes.
    """

    prompts: int
    interventions: int
    rows: int
    queries: int
    memory: int


def choose_sizes(
    model: HookedModel,
    prompts: int,
    length: int,
    *,
    batch_size: int | None,
    memory: int | None,
    starts: int,
) -> Sizes:
    """The sizes for a run.

    Args:
        model: The model.
        prompts: The number of prompts.
        length: Their length in tokens.
        batch_size: Rows of tokens per forward pass, if the caller chooses it.
        memory: Memory budget of a forward pass in bytes; by default 1 GiB, or a quarter of the
            device's memory where that is less.
        starts: The number of blocks whose clean output is kept.

    Raises:
        UsageError: The batch size or the budget is below 1.
    """
    for name, given in (("batch_size", batch_size), ("memory", memory)):
        if given is not None and given < 1:
            raise UsageError(f"{name} must be at least 1, not {given}")
    budget = memory or default_memory(model)
    width, hidden = int(model.cfg.d_model), int(getattr(model.cfg, "d_mlp", 0) or 0)
    patterns = 3 * int(model.cfg.n_heads) * length
    token = 4 * (4 * width + 3 * max(hidden, width) + patterns)
    tokens = budget // token
    row = 4 * int(model.cfg.d_vocab)
    rows = budget // (4 * row)
    if torch.device(model.cfg.device).type == "cpu":
        tokens = min(tokens, CPU_ACTIVATION_BYTES // (4 * max(hidden, width)))
        rows = min(rows, CPU_ROW_BYTES // row)
    kept = 4 * width * length * (1 + starts)
    batch = batch_size or min(tokens // length, budget // kept)
    batch = max(1, min(prompts, batch))
    # A batch size that was asked for holds for the whole forward.
    most = tokens // length if batch_size is None else batch_size
    attended = 4 * int(model.cfg.n_heads) * length * batch
    return Sizes(
        prompts=batch,
        interventions=max(1, most // batch),
        rows=max(FEWEST_ROWS, rows),
        queries=max(FEWEST_QUERIES, min(PATTERN_BYTES, budget // 4) // attended),
        memory=budget,
    )


def default_memory(model: HookedModel) -> int:
    """A quarter of the device's memory, at most 1 GiB.

    Total memory, not free memory: otherwise batch sizes, and with them rounding, would depend on
    what else runs on the machine.
    """
    whole = device_memory(model)
    return LARGEST_BUDGET if whole is None else min(LARGEST_BUDGET, int(SHARE * whole))


def device_memory(model: HookedModel) -> int | None:
    """The bytes of memory that the model's device has in all; None where that cannot be known."""
    device = torch.device(model.cfg.device)
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def require_room(model: HookedModel, length: int, matrices: int) -> None:
    """Refuse prompts whose attention does not fit into memory, before any of it is asked for.

    Args:
        model: The model.
        length: Positions in the longest prompt.
        matrices: How many matrices of query by key one layer makes at once.

    Raises:
        SinklensError: The device has less memory than they take.
    """
    there, needed = device_memory(model), 4 * matrices * length**2
    if there is not None and needed > there:
        raise SinklensError(
            f"prompts of {length:,} tokens need {needed / 2**30:,.0f} GiB for the attention of one "
            f"layer, and {model.cfg.device} has {there / 2**30:,.1f} GiB; use shorter ones "
            "(--length)"
        )
