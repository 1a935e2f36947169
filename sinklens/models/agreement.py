"""Whether a TransformerLens bridge gives the logits of the Hugging Face model that it wraps.

A bridge puts components of its own in the place of the model's modules, and keeps each module
inside of its component. `unwrapped` puts the modules back for the length of a `with` block, so that
the plain model runs on the very same weights. Some bridges are wrong: that of Falcon's new decoder
architecture orders queries, keys and values in another way. Every experiment would then measure
another model, without a word.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from ..core.errors import SinklensError
from ..core.protocol import HookedModel

# The largest difference of logits that is rounding, as a share of the largest logit.
ROUNDING = {
    torch.float64: 1e-6,
    torch.float32: 2e-3,
    torch.float16: 0.05,
    torch.bfloat16: 0.25,
}


@contextmanager
def unwrapped(bridge: HookedModel) -> Iterator[Any]:
    """The Hugging Face model of a bridge with its own modules, as it was before it was wrapped."""
    model = bridge.original_model
    replaced: list[tuple[Any, str, Any]] = []
    try:
        _put_back(model, replaced, set())
        yield model
    finally:
        for parent, name, component in reversed(replaced):
            parent._modules[name] = component


def _put_back(parent: Any, replaced: list[tuple[Any, str, Any]], seen: set[int]) -> None:
    """Put the modules of everything below a module back, and note what was there."""
    seen.add(id(parent))
    for name, child in list(parent._modules.items()):
        own = _original(child)
        if own is not child:
            replaced.append((parent, name, child))
            parent._modules[name] = own
        if own is not None and id(own) not in seen:
            _put_back(own, replaced, seen)


def _original(module: Any) -> Any:
    """The module inside a component of TransformerLens; any other module is itself."""
    from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

    while isinstance(module, GeneralizedComponent) and module.original_component is not None:
        module = module.original_component
    return module


class Compared(NamedTuple):
    """The logits of a bridge beside those of its plain model.

    Attributes:
        difference: The largest difference.
        largest: The largest logit of the plain model.
        rounding: Whether the difference is no more than rounding.
    """

    difference: float
    largest: float
    rounding: bool


def compared(bridge: HookedModel, tokens: Int[Tensor, "prompt pos"]) -> Compared | None:
    """How far a bridge and its plain model agree.

    Args:
        bridge: In eval mode.
        tokens: Short prompts.

    Returns:
        None where they cannot be compared: in compatibility mode, whose folded weights are not
        those of the plain model, without a Hugging Face model, with hooks of the user's, or
        where the plain model gives NaN or infinite logits.
    """
    if not _comparable(bridge):
        return None
    with torch.no_grad():
        logits = bridge(tokens)
        with unwrapped(bridge) as plain:
            expected = plain(tokens).logits
    if not bool(torch.isfinite(expected).all()):
        return None
    difference = float((logits - expected).abs().max())
    largest = float(expected.abs().max())
    rounding = difference <= ROUNDING.get(expected.dtype, 0.25) * largest
    return Compared(difference, largest, rounding)


def agreement(bridge: HookedModel, tokens: Int[Tensor, "prompt pos"]) -> float | None:
    """The largest difference between the logits of a new bridge and of its plain model.

    Args:
        bridge: In eval mode, as it was wrapped.
        tokens: Short prompts.

    Returns:
        None where they cannot be compared (`compared`).

    Raises:
        SinklensError: They differ beyond rounding.
    """
    found = compared(bridge, tokens)
    if found is not None and not found.rounding:
        raise SinklensError(
            f"TransformerLens gives other logits for {bridge.cfg.architecture} than Hugging Face: "
            f"they differ by up to {found.difference:.2g} where the largest is "
            f"{found.largest:.2g}, so that everything would be measured on another model; this "
            "needs a TransformerLens that supports this architecture"
        )
    return found and found.difference


def require_as_on_cpu(bridge: HookedModel, tokens: Int[Tensor, "prompt pos"]) -> None:
    """Refuse a device on which the model computes something else than on the CPU.

    Args:
        bridge: In eval mode.
        tokens: Short prompts.

    Raises:
        SinklensError: The logits differ beyond rounding.
    """
    with torch.no_grad():
        logits = bridge(tokens).cpu()
        with unwrapped(bridge) as plain:
            expected = copy.deepcopy(plain).cpu()(tokens.cpu()).logits
    difference, largest = float((logits - expected).abs().max()), float(expected.abs().max())
    if not difference <= ROUNDING.get(expected.dtype, 0.25) * largest:
        raise SinklensError(
            f"{bridge.cfg.architecture} gives other logits on {bridge.cfg.device} than on the CPU: "
            f"they differ by up to {difference:.2g} where the largest is {largest:.2g}; "
            'load it with device="cpu"'
        )


def _comparable(bridge: Any) -> bool:
    """Whether the plain model is there and hooks change nothing."""
    model = bridge.original_model
    processed = getattr(bridge, "compatibility_mode", False) or getattr(
        bridge, "_weights_processed", False
    )
    if processed or not hasattr(model, "config"):
        return False
    return not any(
        not handle.is_permanent
        for point in bridge.hook_dict.values()
        for handle in (*point.fwd_hooks, *point.bwd_hooks)
    )


def require_one_stack(architecture: str, config: Any) -> None:
    """Refuse encoder-decoders, whose tokens go into two stacks.

    Raises:
        SinklensError: It is one.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise SinklensError(
            f"{architecture} is an encoder-decoder; sinklens works on models with one stack of "
            "blocks: decoders such as Llama and encoders such as BERT"
        )


def require_tokens(architecture: str, model: Any) -> None:
    """Refuse models of images and sound.

    Raises:
        SinklensError: What it takes is no text.
    """
    takes = getattr(model, "main_input_name", "input_ids")
    if takes != "input_ids":
        raise SinklensError(
            f"{architecture} takes {takes} instead of tokens; sinklens works on models of text, "
            "and on those of images and text as far as they are given text alone"
        )
