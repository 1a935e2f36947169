"""Wrapping a Hugging Face model in a TransformerLens bridge, as the model itself computes."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from ..core.errors import near_names
from .gguf import first_line
from .placement import run_device

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def build(hugging_face: Any, tokenizer: Any, name: str) -> TransformerBridge:
    """Boot a Hugging Face object, with or without a tokenizer."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    device = run_device(hugging_face)
    if tokenizer is None:  # boot_transformers would query the Hub for one
        hugging_face.set_attn_implementation("eager")
        return build_bridge_from_module(
            hugging_face,
            hugging_face.config.architectures[0],
            hf_config=hugging_face.config,
            model_name=name,
            device=device,
        )
    return TransformerBridge.boot_transformers(
        name, hf_model=hugging_face, tokenizer=tokenizer, device=device, dtype=hugging_face.dtype
    )


def keep_device(bridge: TransformerBridge) -> None:
    """Send tokens to where an embedding runs that is kept on disk.

    TransformerLens reads its device from a weight, which is on `meta` until then.
    """
    if torch.device(bridge.cfg.device).type == "meta":
        bridge.cfg.device = str(run_device(bridge.original_model))


def keep_epsilons(bridge: TransformerBridge) -> None:
    """Give every norm the epsilon of the Hugging Face module that it wraps.

    TransformerLens reads it from the config, does not recognise every name that it can have
    (StarCoder2 has `norm_epsilon`), and then uses 1e-5.
    """
    from transformer_lens.model_bridge.generalized_components.normalization import (
        NormalizationBridge,
    )

    for norm in bridge.modules():
        if not isinstance(norm, NormalizationBridge):
            continue
        own = getattr(norm.original_component, "eps", None)
        if isinstance(own, float) and own != norm.config.eps:
            norm.config = copy.copy(norm.config)  # other norms may share it
            norm.config.eps = own


def why_not_wrapped(error: Exception, architecture: str) -> str:
    """What TransformerLens says of a model that it cannot wrap, without the list of all it can."""
    if "upported architecture" not in str(error):
        return first_line(error)
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES

    near = near_names(architecture, SUPPORTED_ARCHITECTURES)
    known = f"the {len(SUPPORTED_ARCHITECTURES)} classes that it knows"
    beside = f", among them {' and '.join(near)}" if near else ""
    return f"TransformerLens does not know {architecture}; use a model of {known}{beside}"
