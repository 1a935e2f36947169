"""Rotary planes of a model, found by trying: which entries turn together, and how fast.

A token that is repeated has the same query at every position before it is turned (no position but
the rotary one is in the residual stream then), so that `hook_rot_q` shows the rotation itself: the
norm of every plane stays, and its phase advances by the frequency that `hook_cos` and `hook_sin`
give. Entry i turns with i + n in most families, with its neighbour in others; the layout that shows
this is taken, and a model that shows neither is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...core.errors import SinklensError
from ...hooks.intervention import FwdHooks, Intervention
from ...models.capabilities import hook_name
from ...models.prompts import repeated_prompts
from ...probes.base import SiteProbe
from ...runner.run import Run

NONE_SHOWN = "TransformerLens shows no rotary positions of {} (its hook_rot_q does not fire)"
NOTHING_TURNS = "nothing turns with position in hook_rot_q of {}"
UNKNOWN = (
    "how planes lie in hook_rot_q of {} is not known: no layout of them turns as hook_cos says"
)
REPEATED = 6
HALF_PRECISION, LEAST_ANGLE = 0.03, 1e-3
PARTS = ("rot_q", "rot_k")


class Turned(SiteProbe[Tensor]):
    """What fires of some hooks on one prompt, by layer and part."""

    def reduce(self, activation: Tensor, site: Any, /) -> Tensor:
        """All of it."""
        return activation.float()

    def compute(self) -> dict[Any, Tensor]:
        """Of those that fired."""
        return {site: self.at(site) for site in self.layers if self.count[site]}


@dataclass(frozen=True)
class Planes:
    """The rotary planes of a model.

    Attributes:
        layers: Where queries and keys are turned.
        first: By plane, one of its entries.
        second: By plane, the other.
        frequency: By plane, in the first of the layers, in radians a token; fastest first.
    """

    layers: Sequence[int]
    first: Sequence[int]
    second: Sequence[int]
    frequency: Float[Tensor, " plane"]

    def __len__(self) -> int:
        """The number of planes."""
        return len(self.first)

    def entries(self, planes: Sequence[int]) -> list[int]:
        """The entries of some planes."""
        return [*(self.first[p] for p in planes), *(self.second[p] for p in planes)]


def read_planes(run: Run[Any]) -> Planes | str:
    """The rotary planes of a run's model, or why there are none to intervene on.

    It takes one forward pass of one prompt, where the model has such hooks at all.
    """
    name, known = run.capabilities.architecture, run.model.hook_dict
    parts = (*PARTS, "cos", "sin")
    layers = [
        layer
        for layer in run.capabilities.attention
        if all(_hook(part, layer) in known for part in parts)
    ]
    if not layers:
        return NONE_SHOWN.format(name)
    probe = Turned(lambda site: _hook(*site), [(part, la) for la in layers for part in parts])
    prompt = repeated_prompts(run.model, n=1, length=REPEATED, bos=False)
    (found,) = run.read(probe, prompts=prompt)
    if not any(("rot_q", layer) in found and ("rot_k", layer) in found for layer in layers):
        return NONE_SHOWN.format(name)
    layers = [layer for layer in layers if all((part, layer) in found for part in parts)]
    if not layers:
        return NOTHING_TURNS.format(name)
    turned, cos, sin = (found[part, layers[0]][0].double() for part in ("rot_q", "cos", "sin"))
    rotation = torch.complex(cos, sin)
    for entries, frequency in layouts((rotation[1] / rotation[0]).angle(), turned.shape[-1]):
        if turns(turned, *entries, frequency):
            order = frequency.argsort(descending=True, stable=True).tolist()
            one, other = ([side[plane] for plane in order] for side in entries)
            return Planes(layers, one, other, frequency[order])
    return UNKNOWN.format(name)


def layouts(
    angle: Float[Tensor, " entry"], size: int
) -> list[tuple[tuple[list[int], list[int]], Float[Tensor, " plane"]]]:
    """The ways in which planes may lie, with the frequency of each plane.

    Args:
        angle: From one position to the next, once or twice for each plane.
        size: Entries of a query.
    """
    half = len(angle) // 2
    twice = [(angle[:half], angle[half:]), (angle[::2], angle[1::2])]
    frequency = next((one for one, same in twice if torch.equal(one, same)), angle)
    plane = list(range(len(frequency)))
    if 2 * len(plane) > size:
        return []
    halves = plane, [at + len(plane) for at in plane]
    neighbours = [2 * at for at in plane], [2 * at + 1 for at in plane]
    return [(halves, frequency), (neighbours, frequency)]


def turns(
    turned: Float[Tensor, "pos head entry"],
    first: Sequence[int],
    second: Sequence[int],
    frequency: Float[Tensor, " plane"],
) -> bool:
    """Whether planes of queries that are alike turn by a frequency from position to position."""
    planes = torch.complex(turned[..., list(first)], turned[..., list(second)])
    step, room = torch.exp(1j * frequency), HALF_PRECISION * planes.abs().amax()
    follows = (planes[1:] - planes[:-1] * step).abs() <= room
    return bool((frequency.abs() > LEAST_ANGLE).any() & follows.all())


def zero_entries(
    turned: Float[Tensor, "batch pos head entry"], hook: Any, *, entries: list[int]
) -> Float[Tensor, "batch pos head entry"]:
    """Set some entries of all queries or keys to 0."""
    edited = turned.clone()
    edited[..., entries] = 0
    return edited


def remove_planes(
    planes: Planes, chosen: Sequence[int], name: str, draw: int | None = None
) -> Intervention:
    """Rotary planes taken out of the logits of all heads.

    Args:
        planes: Those of the model.
        chosen: The numbers of those to remove.
        name: The condition.
        draw: The number of the draw.
    """
    zero = partial(zero_entries, entries=planes.entries(chosen))
    hooks: FwdHooks = [(_hook(part, layer), zero) for layer in planes.layers for part in PARTS]
    return Intervention(name, "rotary", planes.layers[0], hooks, draw=draw)


def bands(planes: int, names: Sequence[str]) -> dict[str, list[int]]:
    """Planes by band, the fastest first and as many in each as can be; some may have none."""
    parts = np.array_split(np.arange(planes), len(names))
    return {name: part.tolist() for name, part in zip(names, parts, strict=True)}


def require_planes(run: Run[Any], what: str) -> Planes:
    """The rotary planes of a run's model.

    Raises:
        SinklensError: There are none to intervene on.
    """
    planes = read_planes(run)
    if isinstance(planes, str):
        raise SinklensError(
            f"{what} turns rotary planes; {planes}; positional_spectrum reads patterns there"
        )
    return planes


def _hook(part: str, layer: int) -> str:
    return hook_name(f"attn.hook_{part}", layer)
