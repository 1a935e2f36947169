"""Harmonics of feed-forward blocks: their input turned by angles, their output a function of these.

The input x of a block becomes cos(phi) x + sin(phi) J x, with J the quarter turn in planes of two
entries each. All blocks are turned in one pass: each gets the turned input of the clean run,
whatever the blocks below it put out. A block that is linear puts out a first harmonic in phi and
nothing else. With K angles what is above harmonic K / 2 is counted as a lower one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...core.seeds import seeded
from ...engine import forwards_bar, read_under
from ...hooks.intervention import FwdHooks, Intervention
from ...models.capabilities import hook_name
from ...probes.base import LayerProbe
from ...runner.run import Run

INPUT, OUTPUT = "mlp.hook_in", "mlp.hook_out"
LAST = 8
"""Of how many last positions blocks are read."""
Ends = Float[Tensor, "prompt layer end d_model"]


class LastPositions(LayerProbe[Tensor]):
    """What a hook holds at the last positions."""

    def reduce(
        self, activation: Float[Tensor, "batch pos d_model"], layer: Any, /
    ) -> Float[Tensor, "batch end d_model"]:
        """Of one layer."""
        return activation[:, -LAST:]


def blocks_with_hooks(run: Run[Any]) -> list[int]:
    """The layers whose feed-forward block has a hook before and behind it."""
    known, layers = run.model.hook_dict, range(run.capabilities.n_layers)
    return [la for la in layers if all(hook_name(part, la) in known for part in (INPUT, OUTPUT))]


def forwards_of(run: Run[Any]) -> int:
    """How many forward passes `harmonics` takes."""
    turns = int(run.config.angles) - 1
    return run.batches() * (1 + turns * (1 + bool(run.config.draws)))


def entries_of(width: int, seed: int, *, random: bool) -> Int[Tensor, " entry"]:
    """The order of entries of which those half the width apart turn together."""
    order = seeded(seed, "entries").permutation(width) if random else np.arange(width)
    return torch.from_numpy(order)


def quarter_turn(
    x: Float[Tensor, "*batch d"], order: Int[Tensor, " d"]
) -> Float[Tensor, "*batch d"]:
    """J x: in each plane (a, b) becomes (-b, a); with an odd number one entry becomes 0."""
    half, turned = len(order) // 2, torch.zeros_like(x)
    first, second = order[:half], order[half : 2 * half]
    turned[..., first], turned[..., second] = -x[..., second], x[..., first]
    return turned


def write_ends(
    activation: Float[Tensor, "batch pos d_model"],
    hook: Any,
    *,
    values: Float[Tensor, "batch end d_model"],
) -> Float[Tensor, "batch pos d_model"]:
    """Write the last positions."""
    edited = activation.clone()
    edited[:, -values.shape[1] :] = values.to(activation)
    return edited


def turned_inputs(inputs: Ends, layers: Sequence[int], order: Tensor, angle: float) -> Intervention:
    """The inputs of all blocks turned by an angle."""
    turned = math.cos(angle) * inputs + math.sin(angle) * quarter_turn(inputs, order)

    def bind(index: Int[Tensor, " batch"]) -> FwdHooks:
        return [
            (hook_name(INPUT, layer), partial(write_ends, values=turned[index, number]))
            for number, layer in enumerate(layers)
        ]

    hooks = bind(torch.arange(1))
    return Intervention(f"turned by {angle:.3g}", "mlp", layers[0], hooks, rebind=bind)


def harmonics(
    run: Run[Any], layers: Sequence[int], *, advance: Any
) -> dict[str, Float[Tensor, "prompt layer"]]:
    """The share of power above the first harmonic, by planes."""
    config, last = run.config, run.capabilities.n_layers - 1
    size = {"batch_size": config.batch_size, "memory": config.memory}
    inputs, clean = run.read(*(LastPositions(part, layers) for part in (INPUT, OUTPUT)))
    found = {}
    for random in (False, True)[: 1 + bool(config.draws)]:
        order, outputs = entries_of(inputs.shape[-1], config.seed, random=random), [clean]
        for step in range(1, config.angles):
            edit = turned_inputs(inputs, layers, order, 2 * math.pi * step / config.angles)
            probe = LastPositions(OUTPUT, layers)
            read = read_under(run.model, run.prompts, edit, probe, last_layer=last, **size)
            run.count(run.batches(), {edit.name: read.fired})
            advance(run.batches())
            outputs.append(read.values)
        found["random_entries" if random else "entries"] = share_above(torch.stack(outputs))
    return found


def share_above(
    outputs: Float[Tensor, "angle prompt layer end d_model"],
) -> Float[Tensor, "prompt layer"]:
    """Of the power over angles without the constant, that above the first harmonic."""
    power = torch.fft.rfft(outputs.double(), dim=0).abs().square().sum((-2, -1))
    weights = torch.full((len(power),), 2.0, dtype=torch.float64)
    weights[0] = 0
    if len(outputs) % 2 == 0:
        weights[-1] = 1  # the other harmonics have a twin at the negative frequency
    weighted = power * weights[:, None, None]
    share: Tensor = weighted[2:].sum(0) / weighted.sum(0)
    return share


def with_bar(run: Run[Any], layers: Sequence[int]) -> dict[str, Float[Tensor, "prompt layer"]]:
    """`harmonics`, with progress."""
    forwards = forwards_of(run) - run.batches()
    with forwards_bar(forwards, run.config.progress) as advance:
        return harmonics(run, layers, advance=advance)
