"""Text to token ids and back, and BOS in front."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from ...core.errors import SinklensError, UsageError
from ...core.protocol import HookedModel
from ..origins import bos_token_id


def single_token(model: HookedModel, text: str) -> int:
    """The single token that a text consists of.

    Raises:
        UsageError: The text is not exactly one token.
    """
    tokens = encode(model, text)
    if len(tokens) != 1:
        raise UsageError(f"{text!r} is {len(tokens)} tokens {tokens}; exactly one is needed")
    return tokens[0]


def token_text(model: HookedModel, token: int) -> str:
    """The text of a token; its number where there is no tokenizer."""
    tokenizer = model.tokenizer
    return str(token) if tokenizer is None else str(tokenizer.decode([token]))


def encode(model: HookedModel, text: str) -> list[int]:
    """Token ids of a text, without special tokens."""
    if model.tokenizer is None:
        raise SinklensError(
            "this model has no tokenizer to tokenise text; load it with tokenizer=..., or make "
            "Prompts(tokens, bos, source) from token ids"
        )
    # `verbose=False`: a whole corpus is longer than any context, which is intended here.
    return list(model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def resolve_bos(model: HookedModel, bos: bool | None) -> bool:
    """Whether prompts start with BOS, from the caller or the model's own default."""
    available = bos_token_id(model) is not None
    if bos and not available:
        raise SinklensError(
            f"BOS was requested, but {model.cfg.model_name} has no BOS token; use bos=False "
            "(--no-bos)"
        )
    if bos is None:
        return available and bool(model.cfg.default_prepend_bos)
    return bos


def prepend_bos(
    model: HookedModel, tokens: Int[Tensor, "prompt rest"], use_bos: bool
) -> Int[Tensor, "prompt pos"]:
    """The windows with BOS in front, on the model's device."""
    if use_bos:
        token = bos_token_id(model)
        assert token is not None
        tokens = torch.cat([torch.full((len(tokens), 1), token), tokens], dim=1)
    return tokens.contiguous().to(model.cfg.device)
