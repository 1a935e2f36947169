"""Text, tokenizer and token order for training the shipped models.

The training text is 200 State of the Union addresses; the 33 that `sinklens.prompts` reads are not
among them (`data/SOURCES.md` has the rule). The text is locked by its SHA-256 and so are the tokens
it gives, since a model's weights mean nothing without them.
"""

from __future__ import annotations

import hashlib
import itertools
import lzma
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TEXT_SHA256 = "6fe5e8a8b0180e6005be1feeb4c3d2471c86e84248e0b5a72977d8fcb42326ff"
TOKENS_SHA256 = "1da4115ee43add0a0de092a9b42096267c07d541ba8cba5d3fb145b3101b12f7"
VOCABULARY = 1024
PAD, BOS, EOS, MASK = range(4)
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<mask>")
WINDOW = 64
GOLDEN = 2_654_435_769  # 2^32 over the golden ratio


def training_text() -> str:
    """The training text, checked against its hash.

    Raises:
        ValueError: The file that is installed is not the one the recipes were written for.
    """
    packed = resources.files("sinklens.zoo").joinpath("data/sotu_train.txt.xz").read_bytes()
    text = lzma.decompress(packed)
    _require_hash("training text", text, TEXT_SHA256)
    return text.decode("utf-8")


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
    _require_hash("tokens of the training text", np.asarray(tokens, "<u2").tobytes(), TOKENS_SHA256)
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


def generator_at(seed: int, step: int) -> torch.Generator:
    """A generator of its own for each step of each seed, so that a stopped run can start anywhere.

    torch's generator reads 32 bits of its seed. Multiples of the golden ratio lie far apart there:
    the first thousand seeds and that of held-out tokens have a million steps each to themselves.
    """
    return torch.Generator().manual_seed((seed * GOLDEN + step) % 2**32)


def _require_hash(what: str, content: bytes, expected: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise ValueError(f"the {what} has SHA-256 {found}, expected {expected}")
