"""The text that the shipped models were trained on, their special tokens, and draws from a seed.

The text is 200 State of the Union addresses; the 33 that `sinklens.prompts` reads are not among
them (`data/SOURCES.md` has the rule). It is locked by its SHA-256, since a model's weights mean
nothing without it.
"""

from __future__ import annotations

import hashlib
import lzma
from importlib import resources

import torch

TEXT_SHA256 = "6fe5e8a8b0180e6005be1feeb4c3d2471c86e84248e0b5a72977d8fcb42326ff"
PAD, BOS, EOS, MASK = range(4)
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<mask>")
HELD_OUT_SEED = 2**31 - 1  # no training seed
GOLDEN = 2_654_435_769  # 2^32 over the golden ratio


def training_text() -> str:
    """The training text, checked against its hash.

    Raises:
        ValueError: The file that is installed is not the one the recipes were written for.
    """
    packed = resources.files("sinklens").joinpath("data/sotu_train.txt.xz").read_bytes()
    text = lzma.decompress(packed)
    require_hash("training text", text, TEXT_SHA256)
    return text.decode("utf-8")


def require_hash(what: str, content: bytes, expected: str) -> None:
    """Refuse content that is not what it was.

    Raises:
        ValueError: Its SHA-256 is another one.
    """
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise ValueError(f"the {what} has SHA-256 {found}, expected {expected}")


def generator_at(seed: int, step: int) -> torch.Generator:
    """A generator of its own for each step of each seed, so that a stopped run can start anywhere.

    torch's generator reads 32 bits of its seed. Multiples of the golden ratio lie far apart there:
    the first thousand seeds and that of held-out tokens have a million steps each to themselves.
    """
    return torch.Generator().manual_seed((seed * GOLDEN + step) % 2**32)
