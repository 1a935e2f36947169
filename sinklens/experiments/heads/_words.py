"""Whole words among tokens, and the words that take their place.

A whole word is a token of letters that begins a word (`Ġword`, `▁word`, or in WordPiece without
`##`) and that the next token does not continue. Of a prompt count those that occur once in it, as
in Ruscio et al. 2023 (2303.08288), not at position 0, nor at the last position, which may continue.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...core.errors import SinklensError, UsageError
from ...core.protocol import HookedModel
from ...core.seeds import content_seed
from ...metrics import LogitMetric
from ...models import ordinary_tokens
from ...models.prompts import Prompts, corpus_tokens

MARKS, CONTINUES = ("Ġ", "▁"), "##"
LEAST_WORDS, LEAST_LETTERS = 30, 2
NEAR = 20
"""So many words, those nearest in frequency, are the band that a control is drawn from."""
LIKELIEST = "likeliest"
THIRDS = ("unlikely", "middle", "likely")


class Word(NamedTuple):
    """A word of a prompt."""

    prompt: int
    position: int
    token: int


class Vocabulary:
    """The whole words of a tokenizer.

    Attributes:
        words: Their tokens.
        length: By token, its number of letters; 0 for what is no whole word.
        frequency: By token, log(1 + its count in the shipped corpus).
    """

    def __init__(self, model: HookedModel) -> None:
        """Look at every token.

        Raises:
            SinklensError: There is no tokenizer, or it has too few whole words.
        """
        if model.tokenizer is None:
            raise SinklensError(
                "attention_likelihood substitutes words, and this model has no tokenizer that says "
                "which tokens are words; load it with tokenizer="
            )
        size = int(model.cfg.d_vocab)
        ordinary = ordinary_tokens(model)
        named = model.tokenizer.convert_ids_to_tokens(ordinary.tolist())
        texts = [text or "" for text in named]
        pieces = any(text.startswith(CONTINUES) for text in texts)
        letters = [_letters(text, pieces) for text in texts]
        lengths = [len(one) if len(one) >= LEAST_LETTERS else 0 for one in letters]
        self.length = torch.zeros(size, dtype=torch.long)
        self.length[ordinary] = torch.tensor(lengths)
        self.continues = torch.zeros(size, dtype=torch.bool)
        self.continues[ordinary] = torch.tensor([_continues(text, pieces) for text in texts])
        self.words = self.length.nonzero().flatten()
        if len(self.words) < LEAST_WORDS:
            raise SinklensError(
                f"attention_likelihood needs a tokenizer with whole words; this one has "
                f"{len(self.words)} of {len(texts)} tokens, fewer than {LEAST_WORDS}; use a model "
                "whose tokenizer has words as tokens"
            )
        counts = torch.bincount(torch.tensor(corpus_tokens(model)), minlength=size)[:size]
        self.frequency = counts.double().log1p()

    def places(self, tokens: Int[Tensor, " pos"]) -> list[int]:
        """The positions of the words of a prompt that count."""
        tokens = tokens.cpu()
        once = (tokens[:, None] == tokens).sum(1) == 1
        good = (self.length[tokens] > 0) & once
        good[:-1] &= ~self.continues[tokens[1:]]
        good[[0, -1]] = False
        return [int(place) for place in good.nonzero().flatten()]

    def drawn(
        self, row: Float[Tensor, " token"], word: Word, kind: str, seed: Sequence[int]
    ) -> int:
        """A word by its rank among the whole words, the word itself left out.

        Args:
            row: The model's log-probabilities at the word's position.
            word: The word.
            kind: `likeliest`, or a third of the ranks: `unlikely`, `middle`, `likely`.
            seed: Of the draw.
        """
        others = self.words[self.words != word.token]
        ranked = others[row[others].argsort(stable=True)]
        if kind == LIKELIEST:
            return int(ranked[-1])
        third = ranked.tensor_split(3)[THIRDS.index(kind)]
        return int(third[np.random.default_rng(seed).integers(len(third))])

    def as_frequent(self, token: int, word: Word, seed: Sequence[int]) -> int:
        """A word about as frequent as another one, which is neither of the two."""
        others = self.words[(self.words != word.token) & (self.words != token)]
        distance = (self.frequency[others] - self.frequency[token]).abs()
        band = others[distance <= distance.sort().values[min(NEAR, len(others)) - 1]]
        return int(band[np.random.default_rng(seed).integers(len(band))])


def _letters(text: str, pieces: bool) -> str:
    """The letters of a token that is a word; empty for others."""
    word = text if pieces else text[1:] if text[:1] in MARKS else ""
    return word if word.isalpha() else ""


def _continues(text: str, pieces: bool) -> bool:
    """Whether a token goes on with the word before it."""
    return text.startswith(CONTINUES) if pieces else text[:1].isalpha() and text[:1] not in MARKS


def chosen_words(
    vocabulary: Vocabulary, prompts: Prompts, most: int, seed: int
) -> list[list[Word]]:
    """By prompt its words in random order, at most so many.

    Raises:
        UsageError: A prompt has none.
    """
    chosen = []
    for number, tokens in enumerate(prompts.tokens):
        places = vocabulary.places(tokens)
        if not places:
            raise UsageError(
                f"prompt {number} has no word to substitute: no token that is a whole word, occurs "
                "once and stands between the first and the last position; use longer prompts or "
                "a text of words"
            )
        random = np.random.default_rng(content_seed(tokens, seed))
        order = [places[i] for i in random.permutation(len(places))[:most]]
        chosen.append([Word(number, place, int(tokens[place])) for place in order])
    return chosen


Key = tuple[int, ...]
Reading = Callable[[Float[Tensor, " token"]], float]


def read_rows(name: str, wanted: Mapping[Key, tuple[int, Reading]]) -> LogitMetric:
    """A metric that reads a number from one row of log-probabilities of each prompt.

    Args:
        name: Its name.
        wanted: By a prompt's tokens the position of the row, and what is made of it; 0 for others.
    """

    def function(logits: Tensor, tokens: Tensor, **_: Any) -> Float[Tensor, " prompt"]:
        values = []
        for row, own in zip(logits, tokens.tolist(), strict=True):
            place, reading = wanted.get(tuple(own), (0, None))
            values.append(
                0.0 if reading is None else reading(row[place].float().log_softmax(-1).cpu())
            )
        return torch.tensor(values, dtype=torch.float64)

    return LogitMetric(name, function)
