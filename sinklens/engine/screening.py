"""Attribution patching: first-order estimates of effects, from one gradient for many interventions.

    estimate = sum over hook points of <gradient of the metric, intervened - clean activation>

per prompt: the first-order term of the effect (attribution patching, Syed et al. 2023, 2310.10348,
with the intervention's own difference). It is exact for infinitesimal interventions; a head's whole
output is not small, and where softmax or norms saturate the estimate can miss an effect. It serves
to choose what to run exactly, and is reported beside the exact value.

An intervention at position p is measured at the predictions after p; that at p itself does not
count. A gradient of the predictions at positions that no candidate intervenes on serves them all:
in a causal model those before p do not depend on it, and the mean over those after it is the sum
over their number. Where every position is intervened on, two gradients suffice, each for every
second position. The estimate is then of part of the predictions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.errors import SinklensError, UsageError
from ..core.protocol import HookedModel
from ..functional.counted import counted_positions
from ..hooks.intervention import HookFunction, Intervention
from ..metrics import LogitMetric
from ..models import require_eval_mode
from ..models.capabilities import check
from ..models.prompts import Prompts
from .gradients import require_gradients
from .sizes import choose_sizes

FORWARDS = 3
"""Cost of a gradient in forward passes: a forward pass, and a backward pass of twice its cost."""
LEAST_LEFT = 0.4
"""Of a position's predictions, those that a shared gradient has to be of."""


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
        model: In eval mode; it is left unchanged, without gradients.
        prompts: The prompts.
        interventions: The interventions whose effects are estimated.
        metric: A metric whose gradient at the clean run is not 0 (so not `kl`).
        batch_size: Prompts in a forward; by default as many as `memory` allows.
        memory: Bytes for what a forward holds, as in `evaluate`.
        positions: Count only predictions at these positions.

    Raises:
        SinklensError: The gradient is not finite, or the weights take none.
    """
    require_eval_mode(model)
    require_gradients(model)
    size = batch_size or _prompts_in_a_forward(model, prompts, memory)
    estimates = torch.zeros(len(interventions), len(prompts))
    for shared in shared_gradients(model, prompts, interventions, metric, positions):
        numbers = [i for i, one in enumerate(interventions) if one.last_uncounted in shared.share]
        chosen = [interventions[i] for i in numbers]
        counted = shared.counted.to(model.cfg.device)
        of_all = torch.cat(
            [
                _estimate_batch(model, prompts, index, chosen, metric, counted)
                for index in torch.arange(len(prompts)).split(size)
            ],
            1,
        )
        shares = torch.tensor([shared.share[one.last_uncounted] for one in chosen])
        estimates[numbers] = of_all / shares[:, None]
    if not bool(torch.isfinite(estimates).all()):
        raise SinklensError(
            f"the gradient of {metric.name} is NaN or infinite on these prompts; use screen=False, "
            "or load the model in float32"
        )
    return estimates


class SharedGradient(NamedTuple):
    """A gradient that serves edits of several positions.

    Attributes:
        counted: The predictions that it is of.
        share: By position, which share of them lies after it.
        of_part: Whether predictions at edited positions, which would count, are left out.
    """

    counted: Int[Tensor, " counted"]
    share: dict[int, float]
    of_part: bool = False


def shared_gradients(
    model: HookedModel,
    prompts: Prompts,
    interventions: Sequence[Intervention],
    metric: LogitMetric,
    positions: Sequence[int] | None = None,
) -> list[SharedGradient]:
    """The gradients that the estimates take: as few as leave each position its predictions.

    Args:
        model: The model.
        prompts: The prompts.
        interventions: What would be done.
        metric: A metric; one of a user's own gets a gradient for each position.
        positions: Count only predictions at these positions.
    """
    places = sorted({one.last_uncounted for one in interventions})
    ways: list[list[list[int]]] = [[[place] for place in places]]
    if metric.by_row is not None and check(model).causal:
        ways = [[places], [places[::2], places[1::2]], *ways]
    share = partial(_share, length=prompts.length, metric=metric, sample=positions)
    for way in ways:
        made = [share(group) for group in way if group]
        if all(one is not None for one in made):
            return [one for one in made if one is not None]
    raise AssertionError("a position alone always has its predictions")


def _share(
    group: list[int], *, length: int, metric: LogitMetric, sample: Sequence[int] | None
) -> SharedGradient | None:
    """The gradient of a group; None where some position is left with too few predictions."""
    own = {place: counted_positions(length, place, sample) for place in group}
    if len(group) == 1:
        return SharedGradient(own[group[0]], {group[0]: 1.0})
    # An edit at position 0 may be of other rows as well (a head's output), which all predict.
    edited = torch.tensor([place for place in group if place])
    counted = own[group[0]][~torch.isin(own[group[0]], edited)]
    share = {}
    for place in group:
        left = _number(metric, counted[counted > place], length)
        if not left or left < LEAST_LEFT * _number(metric, own[place], length):
            return None
        share[place] = left / _number(metric, counted, length)
    return SharedGradient(counted, share, len(counted) < len(own[group[0]]))


def _number(metric: LogitMetric, positions: Tensor, length: int) -> int:
    """How many predictions a metric counts at some positions."""
    try:
        return len(metric.counts(positions, length)) if len(positions) else 0
    except UsageError:  # none that it can count, as at the last position, which has no next token
        return 0


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
    copy = activation.clone()  # the function may write to it
    edited = function(copy, hook=model.hook_dict[name])
    difference = (copy if edited is None else edited) - activation
    product: Tensor = (gradient * difference).float()
    return product.flatten(1).sum(1)
