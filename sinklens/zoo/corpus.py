"""Text, tokenizer and token order for training the shipped models.

The training text is 200 State of the Union addresses; the 33 that `sinklens.prompts` reads are not
among them (`data/SOURCES.md` has the rule). Text and tokenizer are locked by their SHA-256, since a
model's weights mean nothing without them.
"""

from __future__ import annotations

import hashlib
import lzma
from collections.abc import Iterator
from importlib import resources
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from .recipes import BOS, VOCABULARY

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TEXT_SHA256 = "6fe5e8a8b0180e6005be1feeb4c3d2471c86e84248e0b5a72977d8fcb42326ff"
SPECIAL_TOKENS = ["<pad>", "<bos>", "<eos>", "<mask>"]


def training_text() -> str:
    """The training text, checked against its hash.

    Raises:
        ValueError: The file that is installed is not the one the recipes were written for.
    """
    packed = resources.files("sinklens.zoo").joinpath("data/sotu_train.txt.xz").read_bytes()
    text = lzma.decompress(packed)
    found = hashlib.sha256(text).hexdigest()
    if found != TEXT_SHA256:
        raise ValueError(f"the training text has SHA-256 {found}, expected {TEXT_SHA256}")
    return text.decode("utf-8")


def train_tokenizer(text: str) -> Tokenizer:
    """A byte-level BPE tokenizer of `VOCABULARY` entries, special tokens first."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.split("\n"), trainer)
    return tokenizer


def training_windows(tokens: list[int], window: int) -> Int[Tensor, "window pos"]:
    """Consecutive windows of `window` positions, each BOS and the next `window - 1` tokens."""
    length = window - 1
    count = len(tokens) // length
    body = torch.tensor(tokens[: count * length]).view(count, length)
    return torch.cat([torch.full((count, 1), BOS), body], dim=1)


def batches(
    windows: Int[Tensor, "window pos"], batch_size: int, seed: int
) -> Iterator[Int[Tensor, "batch pos"]]:
    """Endless batches: every epoch is a new seeded permutation of all windows."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(windows), generator=generator)
        for start in range(0, len(windows) - batch_size + 1, batch_size):
            yield windows[order[start : start + batch_size]]
