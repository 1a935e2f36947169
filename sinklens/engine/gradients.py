"""The trace of the empirical Fisher information, for each group of weights.

    trace of a group = |gradient of the prompt's mean loss by the group's weights|^2

for each prompt separately (nats squared over the weights' own unit squared), averaged over prompts
by the caller. Ruscio et al. 2025 (2508.02546) call the mean over samples the empirical Fisher
information. It depends on the scale of the weights, so that layers and groups are comparable,
models are not.

One prompt at a time: a forward pass and a backward pass of about twice its cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..core.errors import SinklensError
from ..core.protocol import HookedModel
from ..models import origin, require_eval_mode
from ..models.weights import is_offloaded
from .forward import forward
from .progress import progress_bar

NO_LABEL = -100
"""Label of positions without a prediction: padding, unmasked tokens, the last token."""


def squared_gradients(
    model: HookedModel,
    tokens: Int[Tensor, "prompt pos"],
    labels: Int[Tensor, "prompt pos"],
    groups: Mapping[Any, Sequence[Tensor]],
    *,
    progress: bool | None = None,
) -> Float[Tensor, "prompt group"]:
    """The squared gradient norm of each prompt's mean loss, by group of parameters.

    Args:
        model: In eval mode; it is left unchanged, without gradients.
        tokens: The input.
        labels: The target at each position; `NO_LABEL` where there is none.
        groups: Parameters by group; one that the loss does not reach counts as 0.
        progress: Whether to show a bar; None shows one in a terminal or a notebook.

    Raises:
        SinklensError: A gradient is not finite, or no weight has or takes one.
    """
    require_eval_mode(model)
    require_weight_gradients(model)
    everything = list({id(p): p for group in groups.values() for p in group}.values())
    rows = []
    bar = progress_bar(len(tokens), progress, "gradients", "prompt")
    with _wanting_gradients(everything), bar as shown:
        for row, wanted in zip(tokens, labels, strict=True):
            row, wanted = row.to(model.cfg.device), wanted.to(model.cfg.device)
            with torch.enable_grad():
                logits = forward(model, row[None], []).last[0].float()
                loss = cross_entropy(logits, wanted, ignore_index=NO_LABEL)
                gradients = torch.autograd.grad(loss, everything, allow_unused=True)
            squares = {
                id(p): gradient.double().square().sum().item()
                for p, gradient in zip(everything, gradients, strict=True)
                if gradient is not None
            }
            rows.append([sum(squares.get(id(p), 0.0) for p in group) for group in groups.values()])
            shown.update(1)
    norms = torch.tensor(rows, dtype=torch.float64)
    if not bool(torch.isfinite(norms).all()) or not bool(norms.any()):
        raise SinklensError(
            f"the gradient of the loss is NaN, infinite or 0 on {origin(model).name}; load the "
            "model in float32"
        )
    return norms.float()


def require_gradients(model: HookedModel) -> None:
    """Refuse weights that take no gradients.

    Raises:
        SinklensError: They were made in inference mode.
    """
    if any(weight.is_inference() for weight in model.original_model.parameters()):
        raise SinklensError(
            f"{origin(model).name} was made in torch.inference_mode(), so that its weights take no "
            "gradients; load it outside of that, or do without screen=True and fisher=True"
        )


def require_weight_gradients(model: HookedModel) -> None:
    """Refuse weights whose own gradients cannot be had.

    Raises:
        SinklensError: They were made in inference mode, part of them is offloaded, or this
            TransformerLens is older than 4, whose gradients of weights are off by 0.3 %.
    """
    require_gradients(model)
    if version("transformer-lens").startswith("3."):
        raise SinklensError(
            "TransformerLens 3 gives other gradients of weights than Hugging Face; do without "
            "fisher=True, or install TransformerLens 4"
        )
    if is_offloaded(model):
        raise SinklensError(
            f"part of the weights of {origin(model).name} is offloaded, and accelerate keeps no "
            "gradients of those; do without fisher=True, or load the model on one device"
        )


@contextmanager
def _wanting_gradients(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Enable gradients of parameters within a `with` block."""
    before = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, wanted in zip(parameters, before, strict=True):
            parameter.requires_grad_(wanted)
