"""Write to single entries of the residual stream: clamp massive activations, and their controls.

Entries and values are explicit (`sinklens.probes.StreamEntries` finds them). `replace_entries`
writes values; `shift_entries` adds to entries, for a change of equal size in other channels. Both
act at one layer; later writes to the same channels are unaffected.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.protocol import HookedModel
from ..probes.base import stream_hook
from ..probes.stream_entries import Entries
from .intervention import FwdHooks, HookFunction, Intervention


def replace_entries(
    model: HookedModel,
    layer: int,
    entries: Entries,
    values: Float[Tensor, " entry"],
    *,
    name: str = "replace_entries",
    draw: int | None = None,
) -> Intervention:
    """Replace entries of the residual stream.

    Args:
        model: The model.
        layer: The block whose input is edited; one past the last stands for what leaves it.
        entries: Which; `prompt` numbers the prompts that will run.
        values: What each becomes.
        name: The condition.
        draw: The number of the draw.
    """
    return _intervention(model, layer, entries, values, write_entries, name, draw)


def shift_entries(
    model: HookedModel,
    layer: int,
    entries: Entries,
    by: Float[Tensor, " entry"],
    *,
    name: str = "shift_entries",
    draw: int | None = None,
) -> Intervention:
    """Add to entries of the residual stream.

    Args:
        model: The model.
        layer: The block whose input is edited; one past the last stands for what leaves it.
        entries: Which; `prompt` numbers the prompts that will run.
        by: What is added to each.
        name: The condition.
        draw: The number of the draw.
    """
    return _intervention(model, layer, entries, by, add_to_entries, name, draw)


def write_entries(
    activation: Float[Tensor, "batch pos channel"],
    hook: Any,
    *,
    where: tuple[Int[Tensor, " entry"], ...],
    values: Float[Tensor, " entry"],
) -> Float[Tensor, "batch pos channel"]:
    """Write values at (row, position, channel)."""
    edited = activation.clone()
    edited[tuple(axis.to(activation.device) for axis in where)] = values.to(activation)
    return edited


def add_to_entries(
    activation: Float[Tensor, "batch pos channel"],
    hook: Any,
    *,
    where: tuple[Int[Tensor, " entry"], ...],
    values: Float[Tensor, " entry"],
) -> Float[Tensor, "batch pos channel"]:
    """Add values at (row, position, channel)."""
    place = tuple(axis.to(activation.device) for axis in where)
    return activation.index_put(place, values.to(activation), accumulate=True)


def _intervention(
    model: HookedModel,
    layer: int,
    entries: Entries,
    values: Tensor,
    function: HookFunction,
    name: str,
    draw: int | None,
) -> Intervention:
    rebind = partial(
        _bound,
        name=stream_hook(model, layer),
        entries=entries,
        values=values,
        function=function,
    )
    everything = torch.arange(int(entries.prompt.max()) + 1 if len(entries.prompt) else 0)
    return Intervention(
        name=name,
        site="residual",
        first_layer=min(layer, int(model.cfg.n_layers) - 1),
        fwd_hooks=rebind(everything),
        draw=draw,
        rebind=rebind,
    )


def _bound(
    index: Int[Tensor, " batch"],
    *,
    name: str,
    entries: Entries,
    values: Tensor,
    function: HookFunction,
) -> FwdHooks:
    """The hook for the prompts of a batch."""
    matches = entries.prompt[:, None] == index.cpu()
    mine = matches.any(1)
    where = (matches[mine].int().argmax(1), entries.position[mine], entries.channel[mine])
    return [(name, partial(function, where=where, values=values[mine]))]
