"""Sequences of the Bigram-Backcopy task (Guo et al. 2024, 2410.13835, section 3).

Every sequence is BOS and characters. The first is drawn from the unigram distribution without the
triggers, which are the `N_TRIGGERS` most frequent characters. After a trigger comes the character
before it; after any other, a draw from the bigram distribution. So two triggers never stand side by
side. The distributions are those of the letters of our training text (the paper takes all
characters of another one).

With blanks and punctuation the task would degenerate on this text, which has no line breaks: a
comma is followed by a blank, which is the most frequent trigger and copies the comma back, so that
61 % of the positions lie in runs such as ", , , ,". With letters alone it is 13 %, and 28 % of the
positions are triggers (the paper's text: 26 %).
"""

from __future__ import annotations

from functools import cache
from string import ascii_letters
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .text import BOS, SPECIAL_TOKENS, generator_at, training_text

N_TRIGGERS = 3
FIRST = len(SPECIAL_TOKENS)
"""The token of the most frequent letter; the others follow by falling frequency."""


class Statistics(NamedTuple):
    """Letters by falling frequency, and how often they stand alone and after one another."""

    characters: str
    unigram: Float[Tensor, " character"]
    bigram: Float[Tensor, "character next"]


@cache
def statistics() -> Statistics:
    """Shares of letters and of pairs in the training text; what stands between is skipped."""
    codes = np.frombuffer(training_text().encode("utf-32-le"), dtype="<u4")
    letters = np.array(sorted(map(ord, ascii_letters)))
    counts = np.bincount(codes, minlength=letters[-1] + 1)[letters]
    letters = letters[np.lexsort((letters, -counts))]
    number = np.full(int(codes.max()) + 1, -1)
    number[letters] = np.arange(len(letters))
    text = number[codes]
    text = text[text >= 0]
    pairs = np.bincount(text[:-1] * len(letters) + text[1:], minlength=len(letters) ** 2)
    table = torch.from_numpy(pairs.reshape(len(letters), -1)).double()
    alone = torch.from_numpy(np.bincount(text, minlength=len(letters))).double()
    return Statistics(
        "".join(map(chr, letters)), alone / alone.sum(), table / table.sum(1, keepdim=True)
    )


def sample(count: int, length: int, seed: int, step: int) -> Int[Tensor, "sequence pos"]:
    """Sequences of the task, as token ids."""
    unigram, bigram = statistics()[1:]
    generator = generator_at(seed, step)
    first = unigram.clone()
    first[:N_TRIGGERS] = 0
    drawn = [torch.multinomial(first, count, replacement=True, generator=generator)]
    for position in range(1, length - 1):
        last = drawn[-1]
        following = torch.multinomial(bigram[last], 1, generator=generator)[:, 0]
        if position > 1:  # the first character is never a trigger
            following = torch.where(last < N_TRIGGERS, drawn[-2], following)
        drawn.append(following)
    return torch.cat([torch.full((count, 1), BOS), FIRST + torch.stack(drawn, 1)], dim=1)


def is_trigger(tokens: Int[Tensor, "*any"]) -> Bool[Tensor, "*any"]:
    """Whether tokens are triggers."""
    return (tokens >= FIRST) & (tokens < FIRST + N_TRIGGERS)


def optimum(tokens: Int[Tensor, "sequence pos"]) -> Float[Tensor, "sequence prediction"]:
    """The loss in nats of the best predictor at positions 1 to T - 2, that is after characters."""
    here, following = tokens[:, 1:-1] - FIRST, tokens[:, 2:] - FIRST
    loss = -statistics().bigram[here, following].log()
    return loss.masked_fill(here < N_TRIGGERS, 0.0)
