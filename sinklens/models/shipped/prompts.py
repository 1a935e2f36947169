"""What each shipped model takes as prompts, made of windows of the shipped corpus."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Int
from torch import Tensor

from .backcopy import sample
from .text import EOS, HELD_OUT_SEED


class OwnTokens(NamedTuple):
    """What a shipped model reads in place of windows of text, and what it is."""

    tokens: Int[Tensor, "prompt pos"]
    source: str


def closed(tokens: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"]:
    """The tokens with [SEP] in place of the last."""
    tokens = tokens.clone()
    tokens[:, -1] = EOS
    return tokens


def text_windows(tokens: Int[Tensor, "prompt pos"], source: str, *, bos: bool) -> OwnTokens:
    """The windows of text as they are."""
    return OwnTokens(tokens, source)


def closed_windows(tokens: Int[Tensor, "prompt pos"], source: str, *, bos: bool) -> OwnTokens:
    """The windows with [SEP] in place of their last token."""
    return OwnTokens(closed(tokens), f"{source}:sep")


def backcopy_sequences(tokens: Int[Tensor, "prompt pos"], source: str, *, bos: bool) -> OwnTokens:
    """Sequences of the Bigram-Backcopy task, as many and as long as the windows."""
    missing = 0 if bos else 1
    length = tokens.shape[1] + missing
    sequences = sample(len(tokens), length, HELD_OUT_SEED, length)[:, missing:]
    return OwnTokens(sequences.to(tokens.device), "backcopy")


OWN_PROMPTS: dict[str, Callable[..., OwnTokens]] = {
    "text": text_windows,
    "closed": closed_windows,
    "backcopy": backcopy_sequences,
}
"""How prompts are made, by what a card says under `prompts`."""
