"""What is read of words: likelihoods, substitutes by their rank, and the attention of rows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...core.seeds import content_seed
from ...functional.graphs import visible_keys
from ...models.prompts import Prompts
from ...probes import Probe
from ...probes.base import LayerProbe
from ...runner.run import Run
from ._words import Reading, Vocabulary, Word, read_rows


class WordRows(LayerProbe[Tensor]):
    """What the rows of words give to the word itself, to key 0, and to the rest."""

    def __init__(self, layers: Sequence[int], positions: Int[Tensor, "prompt word"]) -> None:
        """Read these positions of each prompt, in the order in which prompts run."""
        super().__init__("pattern", layers)
        self._positions = positions

    def reduce(
        self, pattern: Float[Tensor, "batch head query key"], layer: Any, /
    ) -> Float[Tensor, "batch word head 3"]:
        """Of one layer."""
        start = self.count[layer]
        places = self._positions[start : start + len(pattern)].to(pattern.device)
        batch = torch.arange(len(pattern), device=pattern.device)[:, None]
        rows = pattern.transpose(1, 2)[batch, places].float()
        own = rows.gather(-1, places[..., None, None].expand(*rows.shape[:3], 1))[..., 0]
        first = rows[..., 0]
        return torch.stack([own, first, rows.sum(-1) - own - first], -1)


def read_words(
    run: Run[Any], vocabulary: Vocabulary, words: Sequence[Sequence[Word]], mask: int | None
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray, list[list[int]]]:
    """Likelihoods of all words, attention of the clean run, and substitutes of those replaced."""
    most = max(map(len, words))
    positions = [[word.position for word in own] for own in words]
    padded = torch.tensor([[*own, *[0] * (most - len(own))] for own in positions])
    probe = WordRows(run.capabilities.attention, padded)
    config, rows = run.config, run.prompts.tokens

    def readings(word: Word, replaced: bool) -> list[Reading]:
        asked: list[Reading] = [lambda row: float(row[word.token])]
        for kind in run.conditions if replaced else ():
            seed = [content_seed(rows[word.prompt], config.seed), word.position, *kind.encode()]
            asked.append(partial(vocabulary.drawn, word=word, kind=kind, seed=seed))
        return asked

    asked = [
        [readings(word, k < config.substituted) for k, word in enumerate(own)] for own in words
    ]
    if mask is None:
        by_prompt = [
            [
                (word.position - 1, one)
                for word, these in zip(own, mine, strict=True)
                for one in these
            ]
            for own, mine in zip(words, asked, strict=True)
        ]
        values, clean = _ask(run, run.prompts, by_prompt, [probe])
        unmasked = None
    else:
        flat = [word for own in words for word in own]
        seen = [[(w.position, lambda row, w=w: float(row[w.token])) for w in own] for own in words]
        found, clean = _ask(run, run.prompts, seen, [probe])
        unmasked = np.array([value for own in found for value in own])
        hidden = changed(run.prompts, flat, [mask] * len(flat))
        every = [these for mine in asked for these in mine]
        of_words = [
            [(w.position, one) for one in these] for w, these in zip(flat, every, strict=True)
        ]
        values, _ = _ask(run, hidden, of_words, [])
    numbers = iter([value for own in values for value in own])
    likelihood, substitutes = [], []
    for mine in asked:
        for these in mine:
            first, *others = (next(numbers) for _ in these)
            likelihood.append(first)
            if others:
                substitutes.append([int(token) for token in others])
    return np.array(likelihood), unmasked, by_word(clean[0], words), substitutes


def _ask(
    run: Run[Any],
    prompts: Prompts,
    asked: Sequence[Sequence[tuple[int, Reading]]],
    probes: Sequence[Probe],
) -> tuple[list[list[float]], list[Any]]:
    """Numbers read from rows of log-probabilities, by prompt as many as are asked for."""
    keys = [tuple(row) for row in prompts.tokens.tolist()]
    most = max(map(len, asked))
    metrics = [
        read_rows(
            f"read {n}", {k: own[n] for k, own in zip(keys, asked, strict=True) if n < len(own)}
        )
        for n in range(most)
    ]
    found = run.evaluate([], metrics=metrics, probes=probes, prompts=prompts)
    by_prompt = found.clean.T.tolist()
    return [own[: len(mine)] for own, mine in zip(by_prompt, asked, strict=True)], found.probes


def changed(prompts: Prompts, words: Sequence[Word], tokens: Sequence[int]) -> Prompts:
    """For each word its prompt with another token in its place."""
    rows = prompts.tokens[[word.prompt for word in words]].clone()
    places = torch.tensor([word.position for word in words])
    rows[torch.arange(len(words)), places] = torch.tensor(tokens).to(rows)
    return Prompts(rows, prompts.bos, "substituted words")


def by_word(
    read: Float[Tensor, "prompt layer word head 3"], words: Sequence[Sequence[Word]]
) -> Float[np.ndarray, "item layer 3"]:
    """Averaged over heads, of all words in one axis."""
    means = read.double().mean(3)
    rows = [means[p, :, k] for p, own in enumerate(words) for k in range(len(own))]
    return torch.stack(rows).numpy()


def uniform_shares(run: Run[Any], places: Sequence[int]) -> np.ndarray:
    """Uniform attention to the word itself and to its context, `[share, word, layer]`."""
    length, causal = run.prompts.length, run.capabilities.causal
    found = []
    for window in run.capabilities.visible_keys(length):
        seen = visible_keys(length, causal=causal, window=window)[list(places)]
        count = seen.sum(-1).double()
        found.append(torch.stack([1 / count, (count - 1 - seen[:, 0].double()) / count]))
    return torch.stack(found, -1).numpy()
