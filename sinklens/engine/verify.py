"""Interventions that share a forward pass, each of them verified.

A batch holds the same prompts once for every intervention that shares it. Each hook point then has
one function, which gives every intervention its own part of the activation. An intervention that
did not take effect is an error: every hook has to fire, and over the whole run at least one has to
change its tensor.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ..core.errors import SinklensError
from ..core.protocol import HookedModel
from ..hooks.intervention import FwdHooks, Intervention, restore_position
from ..models.capabilities import SITES, check


class CannotShareError(Exception):
    """A hook point whose activation does not hold the batch first; its edits run alone."""


class Watch:
    """Counts the firings of an intervention's hooks and checks whether they change anything.

    Attributes:
        intervention: The intervention.
        places: After which positions predictions count, one reading of the same forward for each.
        names: The names of its hooks.
        fired: How often each of them fired.
        changed: Whether any of them changed its tensor.
    """

    def __init__(
        self, model: HookedModel, intervention: Intervention, places: Iterable[int] = ()
    ) -> None:
        """Refuse hooks that this model does not have or ignores."""
        self.intervention, self.places = intervention, tuple(places)
        self.names = [name for name, _ in intervention.fwd_hooks]
        known = model.hook_dict
        for name in self.names:
            if name not in known:
                raise SinklensError(
                    f"{intervention.name} needs the hook {name}, which {model.cfg.architecture} "
                    "does not have; sinklens.check(model) says what can be edited"
                )
        if intervention.site in SITES:
            check(model).require(intervention.site, intervention.name)
        self.fired = [0] * len(self.names)
        self.changed = False

    @property
    def first_layer(self) -> int:
        """The first block that has to run: the intervention's word, but never after a hook."""
        # Nothing is before a hook outside the blocks.
        return min([self.intervention.first_layer, *(block_of(n) or 0 for n in self.names)])

    @property
    def identity(self) -> tuple[Any, ...]:
        """What tells the intervention from others of a run."""
        one = self.intervention
        said = (one.name, one.site, one.first_layer, one.position, one.layer, one.head, one.draw)
        return (*said, self.places, *self.names)

    def hooks(self, index: Int[Tensor, " batch"]) -> FwdHooks:
        """The hooks for a batch, each wrapped to be watched."""
        bound = self.intervention.for_prompts(index).fwd_hooks
        if [name for name, _ in bound] != self.names:
            raise SinklensError(
                f"{self.intervention.name} has other hooks for these prompts than without prompts; "
                "rebind may change what hooks do, not where they are"
            )
        return [
            (name, partial(self._watched, function=function, number=number))
            for number, (name, function) in enumerate(bound)
        ]

    def _watched(self, activation: Tensor, hook: Any, *, function: Any, number: int) -> Any:
        edited = function(activation, hook=hook)
        self.fired[number] += 1
        if not self.changed and edited is not None and not _restores(function):
            self.changed = not torch.equal(edited, activation)
        return edited

    def verify(self) -> None:
        """Fail if the intervention did not happen."""
        name = self.intervention.name
        if self.intervention.position:
            at = self.intervention.position
            name += f" at position {at} (a control; draws=0 leaves controls out)"
        for hook, count in zip(self.names, self.fired, strict=True):
            if not count:
                raise SinklensError(
                    f"{name} did not happen: its hook {hook} never fired on this model; "
                    "sinklens.check(model) says what can be edited"
                )
        if not self.changed and not self.intervention.identity:
            raise SinklensError(
                f"{name} did not happen: its hooks ({', '.join(self.names[:3])}) fired and changed "
                "nothing. A hook function has to return a new tensor that differs; one that is "
                "meant to change nothing is marked identity=True"
            )


def shared_hooks(watches: Sequence[Watch], index: Int[Tensor, " batch"]) -> FwdHooks:
    """The hooks of several interventions for a batch that holds the prompts once for each."""
    if len(watches) == 1:
        return watches[0].hooks(index)
    by_name: dict[str, list[tuple[int, Any]]] = {}
    for number, watch in enumerate(watches):
        for name, function in watch.hooks(index):
            by_name.setdefault(name, []).append((number, function))
    return [
        (name, partial(edit_parts, functions=functions, size=len(index), times=len(watches)))
        for name, functions in by_name.items()
    ]


def edit_parts(
    activation: Tensor,
    hook: Any,
    *,
    functions: Sequence[tuple[int, Any]],
    size: int,
    times: int,
) -> Tensor:
    """Have each function edit its own `size` rows of the batch; the others stay.

    Raises:
        CannotShareError: The activation has another number of rows.
    """
    if len(activation) != size * times:
        raise CannotShareError
    parts = list(activation.split(size))
    for number, function in functions:
        edited = function(parts[number], hook=hook)
        parts[number] = parts[number] if edited is None else edited
    return torch.cat(parts)


def block_of(name: str) -> int | None:
    """The block that a hook is in; None outside the blocks."""
    match = re.match(r"blocks\.(\d+)\.", name)
    return int(match[1]) if match else None


def _restores(function: Any) -> bool:
    """Whether a hook restores clean values, which may differ by rounding only."""
    return getattr(function, "func", function) is restore_position
