"""Interventions that share a forward pass, each of them verified.

A batch holds the same prompts once for every intervention that shares it. Each hook point then has
one function, which gives every intervention its own part of the activation. An intervention that
did not take effect is an error: every hook has to fire, and over the whole run at least one has to
change its tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ..core.errors import SinklensError, near_names
from ..core.protocol import HookedModel
from ..hooks.intervention import FwdHooks, Intervention, restore_position
from ..hooks.reach import block_of
from ..models.capabilities import SITES, check, switched_off
from .hook_calls import CannotShareError, edited_by


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
        for name in self.names:
            _require_hook(model, name, intervention.name)
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
        compared = not self.changed and not _restores(function)
        before = activation.clone() if compared else activation
        named = {"point": self.names[number], "name": self.intervention.name}
        edited = edited_by(function, activation, hook, **named)
        self.fired[number] += 1
        if compared and edited is not None:
            self.changed = not torch.equal(edited, before)
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
                "nothing. A hook function has to write to its tensor or return one that differs; "
                "an intervention that is meant to change nothing is marked identity=True"
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


def _require_hook(model: HookedModel, name: str, what: str) -> None:
    """Refuse a hook point that the model does not have, or that is switched off."""
    known: Any = model.hook_dict
    if name not in known:
        near = near_names(name, known)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise SinklensError(
            f"{what} needs the hook {name}, which {model.cfg.architecture} does not have; "
            f"{hint}sinklens.check(model) says what can be edited"
        )
    reason = switched_off(model, name)
    if reason:
        raise SinklensError(f"{what} needs the hook {name}, which is switched off: {reason}")


def _restores(function: Any) -> bool:
    """Whether a hook restores clean values, which may differ by rounding only."""
    return getattr(function, "func", function) is restore_position
