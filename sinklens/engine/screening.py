"""A first guess of every intervention's effect, from one forward and backward for each position.

    estimate = sum over hook points of <gradient of the metric, edited - clean activation>

per prompt: the first-order term of the effect (attribution patching, 2310.10348, with the edit's
own difference). It is exact for infinitely small edits; a head's whole output is not small, and
where softmax or norms saturate the estimate can miss an effect altogether. It is there to choose
what is worth running, and is reported beside the exact value.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import SinklensError
from ..hooks.intervention import HookFunction, Intervention
from ..metrics import LogitMetric, counted_positions
from ..models import require_eval_mode
from ..protocol import HookedModel
from ..text import Prompts
from .sizes import choose_sizes

FORWARDS = 3
"""What the estimates of a position cost: a forward, and a backward that takes twice as long."""


def estimate(
    model: HookedModel,
    prompts: Prompts,
    interventions: Sequence[Intervention],
    metric: LogitMetric,
    *,
    batch_size: int | None = None,
    memory: int | None = None,
    positions: Sequence[int] | None = None,
) -> Float[Tensor, "intervention prompt"]:
    """The first-order effect of each intervention on a metric.

    Args:
        model: In eval mode; it comes back as it was, without gradients.
        prompts: The prompts.
        interventions: What would be done. Edits of the same position share a gradient, since the
            predictions after it count.
        metric: A metric whose gradient at the clean run is not 0 (so not `kl`).
        batch_size: Prompts in a forward; by default as many as `memory` allows.
        memory: Bytes for what a forward holds, as in `evaluate`.
        positions: Count only predictions at these positions.

    Raises:
        SinklensError: The gradient is not finite.
    """
    require_eval_mode(model)
    size = batch_size or _prompts_in_a_forward(model, prompts, memory)
    estimates = torch.zeros(len(interventions), len(prompts))
    for place in sorted({one.position for one in interventions}):
        counted = counted_positions(prompts.length, place, positions).to(model.cfg.device)
        numbers = [i for i, one in enumerate(interventions) if one.position == place]
        chosen = [interventions[i] for i in numbers]
        estimates[numbers] = torch.cat(
            [
                _estimate_batch(model, prompts, index, chosen, metric, counted)
                for index in torch.arange(len(prompts)).split(size)
            ],
            1,
        )
    if not bool(torch.isfinite(estimates).all()):
        raise SinklensError(
            f"the gradient of {metric.name} is NaN or infinite on these prompts; use screen=False, "
            "or load the model in float32"
        )
    return estimates


def _estimate_batch(
    model: HookedModel,
    prompts: Prompts,
    index: Int[Tensor, " batch"],
    interventions: Sequence[Intervention],
    metric: LogitMetric,
    counted: Int[Tensor, " counted"],
) -> Float[Tensor, "intervention batch"]:
    """The estimates for some prompts, from one gradient."""
    from transformer_lens.tools.analysis.attribution_patching import cache_activation_and_gradient

    bound = [one.for_prompts(index).fwd_hooks for one in interventions]
    # The backward runs as far as the embedding; hooks on the way then see their gradients.
    names = list(dict.fromkeys(["hook_embed", *(name for hooks in bound for name, _ in hooks)]))
    # Under a caller's inference mode there are no gradients, and tensors cannot enter them.
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        _gradient_from_the_embedding(model),
    ):
        answers = None if prompts.answers is None else prompts.answers[index]
        tokens = prompts.tokens[index].to(model.cfg.device)
        cache = cache_activation_and_gradient(
            model,
            tokens,
            partial(_total, metric=metric, tokens=tokens, counted=counted, answers=answers),
            names_filter=names,
        )
    with torch.no_grad():
        rows = [
            sum(_first_order(model, function, cache, name) for name, function in hooks)
            for hooks in bound
        ]
    return torch.stack([torch.as_tensor(row) for row in rows]).float().cpu()


def _prompts_in_a_forward(model: HookedModel, prompts: Prompts, memory: int | None) -> int:
    """As many as fit with their logits, the softmax and its gradient, and what backward needs."""
    sizes = choose_sizes(
        model,
        len(prompts),
        prompts.length,
        batch_size=None,
        memory=memory,
        starts=int(model.cfg.n_layers),
    )
    logits = 4 * 4 * prompts.length * int(model.cfg.d_vocab)
    return max(1, min(sizes.prompts, sizes.memory // logits))


@contextmanager
def _gradient_from_the_embedding(model: HookedModel) -> Iterator[None]:
    """Gradients of activations also where the caller has switched off those of parameters."""
    bridge: Any = model
    find = getattr(model.original_model, "get_input_embeddings", None)
    embedding = find() if find else bridge.embed.original_component  # of `boot_native`
    handle = embedding.register_forward_hook(lambda _module, _inputs, out: out.requires_grad_())
    try:
        yield
    finally:
        handle.remove()


def _total(
    logits: Tensor, *, metric: LogitMetric, tokens: Tensor, counted: Tensor, answers: Tensor | None
) -> Tensor:
    """The metric summed over prompts, which keeps their gradients apart."""
    values: Tensor = metric.function(
        logits, tokens, clean_logits=logits.detach(), positions=counted, answers=answers
    )
    return values.sum()


def _first_order(
    model: HookedModel, function: HookFunction, cache: Any, name: str
) -> Float[Tensor, " batch"]:
    """The part of one hook point."""
    activation, gradient = cache.activations[name], cache.gradients[name]
    difference = function(activation, hook=model.hook_dict[name]) - activation
    product: Tensor = (gradient * difference).float()
    return product.flatten(1).sum(1)
