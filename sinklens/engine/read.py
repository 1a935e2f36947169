"""Read a probe while an intervention is in place, without computing logits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.protocol import HookedModel
from ..hooks.intervention import Intervention
from ..models import alone, require_eval_mode
from ..models.prompts import Prompts
from ..probes import Probe
from .forward import forward
from .readable import require_readable
from .resume import current_call
from .shortcuts import NO_SHORTCUTS, is_before_unembedding, shortcuts
from .sizes import choose_sizes, require_room
from .user_hooks import has_own_hooks
from .verify import Watch


class Reading(NamedTuple):
    """What `read_under` read.

    Attributes:
        values: What the probe computed.
        fired: How often the hooks of the intervention fired.
    """

    values: Any
    fired: int


@alone
def read_under(
    model: HookedModel,
    prompts: Prompts,
    intervention: Intervention | None,
    probe: Probe,
    *,
    last_layer: int,
    batch_size: int | None = None,
    memory: int | None = None,
) -> Reading:
    """The values of a probe while an intervention is in place.

    Args:
        model: In eval mode; it is left unchanged.
        prompts: The prompts.
        intervention: The intervention; None for a clean run.
        probe: Reads blocks up to `last_layer`.
        last_layer: The last block that has to run.
        batch_size: Prompts in a forward; by default as many as `memory` allows, on a CPU fewer.
        memory: Bytes for what a forward holds, as in `evaluate`.

    Raises:
        SinklensError: The intervention did not take effect.
    """
    require_eval_mode(model)
    require_readable(model, [probe])
    sizes = choose_sizes(
        model, len(prompts), prompts.longest, batch_size=batch_size, memory=memory, starts=0
    )
    require_room(model, prompts.longest, int(model.cfg.n_heads))
    watch = None if intervention is None else Watch(model, intervention)
    run = _runner(model, last_layer, [*(watch.names if watch else []), *_names(probe)])
    probe.reset()
    with torch.no_grad():
        for index in prompts.batches(sizes.prompts):
            hooks = [*(watch.hooks(index) if watch else []), *probe.fwd_hooks]
            run(prompts.take(index).tokens.to(model.cfg.device), hooks)
    if watch:
        watch.verify()
    return Reading(probe.compute(), sum(watch.fired) if watch else 0)


def _names(probe: Probe) -> list[Any]:
    return [name for name, _ in probe.fwd_hooks]


def _runner(model: HookedModel, last_layer: int, names: list[Any]) -> Callable[[Tensor, Any], Any]:
    """Runs tokens with hooks up to a block."""
    if last_layer + 1 < len(model.blocks):
        return lambda tokens, hooks: model.run_with_hooks(
            tokens, fwd_hooks=hooks, stop_at_layer=last_layer + 1
        )
    # TransformerLens has no stop behind the last block, and would go on to the logits.
    allowed = NO_SHORTCUTS if has_own_hooks(model) else shortcuts(model)
    rows = allowed.unembedding and is_before_unembedding(model, names)
    return lambda tokens, hooks: forward(
        model, tokens, hooks, rows=rows, tuple_length=allowed.tuple_length
    )


def finished_or(
    model: HookedModel, intervention: Intervention, make: Callable[[], Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """What `make` returns of an intervention, from disk where an earlier run has finished it."""
    call, said = current_call(), repr(Watch(model, intervention).identity)
    name = hashlib.sha256(said.encode()).hexdigest()[:12]
    found = call.load(0, name)
    if found is None:
        found = dict(make())
        call.store(0, name, found)
    return found
