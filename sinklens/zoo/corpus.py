"""Tokenizer and token order for training the shipped models.

The tokens that the training text gives are locked by their SHA-256 as the text is, since a model's
weights mean nothing without them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ..models.shipped.text import BOS, SPECIAL_TOKENS, require_hash, training_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENS_SHA256 = "1da4115ee43add0a0de092a9b42096267c07d541ba8cba5d3fb145b3101b12f7"
VOCABULARY = 1024
WINDOW = 64


def train_tokenizer(text: str, special_tokens: Sequence[str] = SPECIAL_TOKENS) -> Tokenizer:
    """A byte-level BPE tokenizer of `VOCABULARY` entries, special tokens first."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.split("\n"), trainer)
    return tokenizer


@cache
def training_tokens() -> tuple[int, ...]:
    """The tokens of the training text, checked against their hash.

    Raises:
        ValueError: The installed version of `tokenizers` cuts the text in another way.
    """
    text = training_text()
    tokens = tuple(train_tokenizer(text).encode(text).ids)
    require_hash("tokens of the training text", np.asarray(tokens, "<u2").tobytes(), TOKENS_SHA256)
    return tokens


def training_windows(tokens: Sequence[int], window: int) -> Int[Tensor, "window pos"]:
    """Consecutive windows of `window` positions, each BOS and the next `window - 1` tokens."""
    length = window - 1
    count = len(tokens) // length
    body = torch.tensor(tokens[: count * length]).view(count, length)
    return torch.cat([torch.full((count, 1), BOS), body], dim=1)


def batches(
    windows: Int[Tensor, "window pos"], batch_size: int, seed: int, start: int = 0
) -> Iterator[Int[Tensor, "batch pos"]]:
    """Endless batches from number `start` on; every epoch is a new seeded permutation."""
    return itertools.islice(_all_batches(windows, batch_size, seed), start, None)


def _all_batches(
    windows: Int[Tensor, "window pos"], batch_size: int, seed: int
) -> Iterator[Int[Tensor, "batch pos"]]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(windows), generator=generator)
        for first in range(0, len(windows) - batch_size + 1, batch_size):
            yield windows[order[first : first + batch_size]]
