"""What kind of model it is, in the words by which models are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.protocol import HookedModel
from .origins import count_parameters, short_prompt
from .state import alone

ENCODINGS = {"standard": "absolute", "rotary": "rotary", "alibi": "alibi"}
"""Position encodings by TransformerLens's name; others keep it."""


@dataclass(frozen=True)
class Anatomy:
    """What kind of model it is.

    Attributes:
        family: The kind of model in transformers, such as `llama`.
        architecture: Its class.
        parameters: How many it has; tied ones count once.
        n_layers: Blocks.
        n_heads: Query heads of a block.
        d_model: Width of the residual stream.
        position_encoding: `absolute` (learned or sinusoidal vectors), `rotary`, `rotary in some
            layers`, `alibi`, `none`, or TransformerLens's name of another.
        norm: `LN` or `RMS`.
        norm_placement: `pre` (before each sub-block), `sandwich` (before and after), `post
            sub-block` (on its output, before that is added), `post` (on the sum), `none`.
    """

    family: str
    architecture: str
    parameters: int
    n_layers: int
    n_heads: int
    d_model: int
    position_encoding: str
    norm: str
    norm_placement: str


@alone
def anatomy_of(model: HookedModel) -> Anatomy:
    """What kind of model it is; where norms stand is found by running its first block."""
    config = getattr(model.original_model, "config", None)
    return Anatomy(
        family=str(getattr(config, "model_type", "") or model.cfg.architecture),
        architecture=str(model.cfg.architecture),
        parameters=count_parameters(model),
        n_layers=int(model.cfg.n_layers),
        n_heads=int(model.cfg.n_heads),
        d_model=int(model.cfg.d_model),
        position_encoding=_position_encoding(model, config),
        norm=str(model.cfg.normalization_type).removesuffix("Pre"),
        norm_placement=_norm_placement(model),
    )


def _position_encoding(model: HookedModel, config: Any) -> str:
    named = str(model.cfg.positional_embedding_type)
    rotated = getattr(config, "no_rope_layers", None)  # which says of each layer whether it has it
    if named == "rotary" and rotated and not all(rotated):
        return "rotary in some layers" if any(rotated) else "none"
    return ENCODINGS.get(named, named)


def _norm_placement(model: HookedModel) -> str:
    """Where the norms of the first block stand, by their names and by what the first one reads."""
    parts = dict(model.blocks[0].named_children())
    if "ln1_post" in parts:
        return "sandwich" if "ln1" in parts else "post sub-block"
    if "ln1" not in parts:
        return "none"
    held: dict[str, Tensor] = {}

    def keep(activation: Tensor, hook: Any) -> None:
        held[hook.name] = activation.detach()

    names = ("blocks.0.hook_in", "blocks.0.ln1.hook_in")
    with torch.no_grad():
        hooks = [(name, keep) for name in names]
        model.run_with_hooks(short_prompt(model), fwd_hooks=hooks, stop_at_layer=1)
    entering, normed = (held.get(name) for name in names)
    if entering is None or normed is None or entering.shape != normed.shape:
        return "unknown"
    return "pre" if torch.allclose(entering, normed) else "post"
