"""What each shipped model takes as prompts, made of windows of the shipped corpus."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from jaxtyping import Int
from torch import Tensor

from .backcopy import sample
from .text import EOS, HELD_OUT_SEED

if TYPE_CHECKING:
    from ..prompts import Prompts


def closed(tokens: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"]:
    """The tokens with [SEP] in place of the last."""
    tokens = tokens.clone()
    tokens[:, -1] = EOS
    return tokens


def as_they_are(prompts: Prompts) -> Prompts:
    """The prompts, which are text."""
    return prompts


def closed_prompts(prompts: Prompts) -> Prompts:
    """The prompts with [SEP] in place of their last token."""
    return replace(prompts, tokens=closed(prompts.tokens), source=f"{prompts.source}:sep")


def backcopy_prompts(prompts: Prompts) -> Prompts:
    """Sequences of the Bigram-Backcopy task, as many and as long as the prompts."""
    missing = 0 if prompts.bos else 1
    length = prompts.length + missing
    tokens = sample(len(prompts), length, HELD_OUT_SEED, length)[:, missing:]
    return replace(prompts, tokens=tokens.to(prompts.tokens.device), source="backcopy")


OWN_PROMPTS: dict[str, Callable[[Prompts], Prompts]] = {
    "text": as_they_are,
    "closed": closed_prompts,
    "backcopy": backcopy_prompts,
}
"""How prompts are made, by what a card says under `prompts`."""
