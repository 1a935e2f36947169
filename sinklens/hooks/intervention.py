"""Interventions: hook functions, with the facts about them that results record."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from ..core.errors import UsageError
from .reach import block_of

HookFunction = Callable[..., Tensor]
FwdHooks = list[tuple[str, HookFunction]]


@dataclass(frozen=True)
class Intervention:
    """An intervention on a forward pass, for `model.run_with_hooks(tokens, fwd_hooks=...)`.

    Attributes:
        name: The condition, as named in results (`mean`, `other_token:residual`, ...).
        site: What is intervened on: `embedding`, `residual`, `key`, `value`, `z` or `pattern`.
        first_layer: The first block whose output the intervention can change.
        fwd_hooks: Pairs of hook name and function `fn(activation, hook)`.
        position: The intervened position; 0 for heads.
        counted_after: Predictions at later positions than this count; None for `position`.
        layer: The layer, where there is one.
        head: The query head, where there is one.
        draw: The number of the random draw, where there is one.
        identity: True only for an intervention that is meant to change nothing.
        rebind: Makes `fwd_hooks` for a part of the prompts, where the values differ by prompt;
            None where they do not depend on the prompts.
    """

    name: str
    site: str
    first_layer: int
    fwd_hooks: FwdHooks
    position: int = 0
    counted_after: int | None = None
    layer: int | None = None
    head: int | None = None
    draw: int | None = None
    identity: bool = False
    rebind: Callable[[Int[Tensor, " batch"]], FwdHooks] | None = field(default=None, repr=False)

    @property
    def last_uncounted(self) -> int:
        """The position after which predictions count."""
        return self.position if self.counted_after is None else self.counted_after

    @property
    def run(self) -> tuple[int, int]:
        """Equal for interventions that share hooks, which one forward pass can serve."""
        return id(self.fwd_hooks), id(self.rebind)

    @property
    def reading(self) -> tuple[int, int, int]:
        """Equal for interventions that share hooks and count the same predictions."""
        return *self.run, self.last_uncounted

    def read_after(self, position: int) -> Intervention:
        """The same intervention, read at predictions after a later position; one forward does both.

        Args:
            position: The position.
        """
        return replace(self, counted_after=position)

    def for_prompts(self, index: Int[Tensor, " batch"]) -> Intervention:
        """The intervention for the prompts with these numbers.

        Args:
            index: Numbers of the prompts in the batch, in the order of the batch.
        """
        if self.rebind is None:
            return self
        return replace(self, fwd_hooks=self.rebind(index))

    def among(self, numbers: Int[Tensor, " chosen"]) -> Intervention:
        """The intervention where only some of the prompts run.

        Args:
            numbers: Their numbers among the prompts that it was made for.
        """
        bind = self.rebind
        if bind is None:
            return self
        return replace(self, rebind=lambda index: bind(numbers[index]))

    @classmethod
    def from_values(
        cls,
        site: str,
        values: Float[Tensor, "prompt ..."],
        *,
        position: int | None = None,
        name: str = "values",
    ) -> Intervention:
        """Write values of each prompt's own at a hook point.

        Args:
            site: The name of the hook point: `blocks.2.hook_resid_pre`.
            values: `[prompt, pos, ...]`, or `[prompt, ...]` where one position is written.
            position: That position; predictions after it count.
            name: The condition, as named in results.

        Raises:
            UsageError: The site is no name, or the values are no tensor.
        """
        if not isinstance(site, str):
            raise UsageError(
                "from_values takes the name of one hook point (blocks.2.hook_resid_pre), not a "
                f"{type(site).__name__}"
            )
        if not isinstance(values, Tensor):
            raise UsageError(
                "values have to be a tensor [prompt, pos, ...], or [prompt, ...] with position=, "
                f"not a {type(values).__name__}"
            )
        write = partial(_write, position=position)

        def bind(index: Int[Tensor, " batch"]) -> FwdHooks:
            if int(index.max()) >= len(values):
                raise UsageError(
                    f"{name} has values of {len(values)} prompts, and there are more; it needs "
                    "one for each prompt"
                )
            return [(site, partial(write, values=values[index.to(values.device)]))]

        return cls(
            name=name,
            site="values",
            first_layer=block_of(site) or 0,
            fwd_hooks=[(site, partial(write, values=values))],
            position=position or 0,
            rebind=bind,
        )


def one_per_run(interventions: Iterable[Intervention]) -> list[Intervention]:
    """The first of each that one forward pass serves, in order."""
    runs: dict[tuple[int, int], Intervention] = {}
    for one in interventions:
        runs.setdefault(one.run, one)
    return list(runs.values())


def together(name: str, *interventions: Intervention) -> Intervention:
    """Several interventions in one forward pass, each at its own hooks.

    Args:
        name: The name of the combined condition.
        interventions: The interventions; at a shared hook point the first acts first.
    """

    def bind(index: Int[Tensor, " batch"]) -> FwdHooks:
        return [hook for one in interventions for hook in one.for_prompts(index).fwd_hooks]

    return Intervention(
        name=name,
        site="several",
        first_layer=min(one.first_layer for one in interventions),
        fwd_hooks=[hook for one in interventions for hook in one.fwd_hooks],
        position=max(one.position for one in interventions),
        counted_after=max(one.last_uncounted for one in interventions),
        draw=interventions[0].draw,
        identity=all(one.identity for one in interventions),
        rebind=bind,
    )


def replace_position(activation: Tensor, hook: Any, *, values: Tensor, position: int) -> Tensor:
    """Write `values` at one position.

    Args:
        activation: `[batch, pos, ...]`.
        hook: The hook point.
        values: `[...]` for all prompts alike, or `[batch, ...]`.
        position: Where.
    """
    edited = activation.clone()
    edited[:, position] = values.to(activation)
    return edited


def _write(activation: Tensor, hook: Any, *, values: Tensor, position: int | None) -> Tensor:
    """Write `values`, `[batch, ...]`, at one position, or everywhere.

    Raises:
        UsageError: They do not fit.
    """
    length = activation.shape[1]
    if position is not None and not 0 <= position < length:
        raise UsageError(f"there is no position {position} in prompts of {length} tokens")
    wanted = activation if position is None else activation[:, position]
    if values.shape[1:] != wanted.shape[1:]:
        raise UsageError(
            f"values of shape {list(values.shape[1:])} for each prompt do not fit {hook.name}, "
            f"where one prompt has {list(wanted.shape[1:])}"
        )
    if position is not None:
        return replace_position(activation, hook, values=values, position=position)
    return values.to(activation)


def restore_position(activation: Tensor, hook: Any, *, values: Tensor, position: int) -> Tensor:
    """Restore the clean values at one position; not an intervention on its own.

    Args:
        activation: `[batch, pos, ...]`.
        hook: The hook point.
        values: The clean values, `[...]` or `[batch, ...]`.
        position: Where.
    """
    return replace_position(activation, hook, values=values, position=position)


def redirect_position(activation: Tensor, hook: Any, *, direction: Tensor, position: int) -> Tensor:
    """Give the vector at one position another direction and keep its norm.

    Args:
        activation: `[batch, pos, d_model]`.
        hook: The hook point.
        direction: Any vector `[d_model]`; its length does not matter.
        position: Where.
    """
    edited = activation.clone()
    unit = (direction / direction.norm()).to(activation)
    edited[:, position] = activation[:, position].norm(dim=-1, keepdim=True) * unit
    return edited


def rescale_position(activation: Tensor, hook: Any, *, norm: float, position: int) -> Tensor:
    """Give the vector at one position another norm and keep its direction.

    Args:
        activation: `[batch, pos, d_model]`.
        hook: The hook point.
        norm: The new L2 norm.
        position: Where.
    """
    edited = activation.clone()
    vector = activation[:, position]
    edited[:, position] = vector * (norm / vector.norm(dim=-1, keepdim=True))
    return edited
