"""The Bigram-Backcopy task (2410.13835, section 3): text of which a known part must be copied.

Every sequence is BOS and characters. The first is drawn from the unigram distribution without the
triggers, which are the `N_TRIGGERS` most frequent characters. After a trigger comes the character
before it; after any other, a draw from the bigram distribution. So two triggers never stand side by
side, and the best possible loss is known: 0 after a trigger, after another character the entropy of
its bigram row. A head is useful after triggers and has nothing to do elsewhere.

Here the distributions are those of the letters of our training text (the paper takes all characters
of another one), so losses are to be held against the optimum of this table, not against the paper's
numbers. Sequences are `LENGTH` positions long, as in the paper.

With blanks and punctuation the task would degenerate on this text, which has no line breaks: a
comma is followed by a blank, which is the most frequent trigger and copies the comma back, so that
61 % of the positions lie in runs such as ", , , ,". With letters alone it is 13 %, 28 % of the
positions are triggers and the best loss after others is 2.39 nats (the paper's text: 26 % and 2.22
by simulation).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from string import ascii_letters
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..models.capabilities import hook_name
from . import corpus
from .corpus import BOS, EOS, PAD, SPECIAL_TOKENS
from .tasks import HELD_OUT_SEED, Batch

if TYPE_CHECKING:
    from ..core.protocol import HookedModel
    from ..models.prompts import Prompts

N_TRIGGERS, LENGTH = 3, 256
FIRST = len(SPECIAL_TOKENS)
VOCABULARY = FIRST + len(ascii_letters)
UNKNOWN = FIRST - 1  # in the place of the mask, which this task does not have


class Statistics(NamedTuple):
    """Letters by falling frequency, and how often they stand alone and after one another."""

    characters: str
    unigram: Float[Tensor, " character"]
    bigram: Float[Tensor, "character next"]


@cache
def statistics() -> Statistics:
    """Shares of letters and of pairs in the training text; what stands between is skipped."""
    codes = np.frombuffer(corpus.training_text().encode("utf-32-le"), dtype="<u4")
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
    generator = corpus.generator_at(seed, step)
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


@dataclass(frozen=True)
class BackcopyTask:
    """Sequences drawn anew for every step.

    Attributes:
        bos: Position 0 is BOS.
        length: Positions in each sequence.
    """

    bos: bool = True
    length: int = LENGTH

    @property
    def description(self) -> str:
        """One line for the card."""
        return (
            f"Bigram-Backcopy over {len(ascii_letters)} letters with {N_TRIGGERS} triggers; "
            f"sequences of {LENGTH} positions"
        )

    def save_tokenizer(self, folder: Path) -> None:
        """Write a tokenizer of single characters."""
        from tokenizers import AddedToken, Tokenizer, decoders, models
        from transformers import PreTrainedTokenizerFast

        names = [*SPECIAL_TOKENS[:UNKNOWN], "<unk>"]
        entries = {token: i for i, token in enumerate([*names, *statistics().characters])}
        tokenizer = Tokenizer(models.BPE(vocab=entries, merges=[], unk_token=names[UNKNOWN]))
        tokenizer.decoder = decoders.Fuse()
        tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in names])
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            name_or_path="sinklens-zoo",
            add_bos_token=True,
            bos_token=names[BOS],
            eos_token=names[EOS],
            pad_token=names[PAD],
            unk_token=names[UNKNOWN],
            clean_up_tokenization_spaces=False,
        ).save_pretrained(folder)

    def batches(self, batch_size: int, seed: int, start: int) -> Iterator[Batch]:
        """Sequences, each its own label."""
        step = start
        while True:
            tokens = sample(batch_size, LENGTH, seed, step)
            yield Batch(tokens, tokens)
            step += 1

    def own_prompts(self, prompts: Prompts) -> Prompts:
        """Sequences of the task, as many and as long as the prompts."""
        missing = 0 if prompts.bos else 1
        length = prompts.length + missing
        tokens = sample(len(prompts), length, HELD_OUT_SEED, length)[:, missing:]
        return replace(prompts, tokens=tokens.to(prompts.tokens.device), source="backcopy")

    def held_out(self, model: HookedModel, prompts: Prompts) -> dict[str, float]:
        """Loss after triggers and after other characters, each beside the optimum, in nats.

        And each head's attention to BOS from triggers and from other characters: a head is active
        on the first, where the task needs it, and dormant on the others if that is high.
        """
        tokens = prompts.tokens.cpu()
        layers = range(int(model.cfg.n_layers))
        to_bos: dict[int, list[Tensor]] = {layer: [] for layer in layers}
        hooks = [
            (hook_name("pattern", layer), partial(_keep_first_column, kept=to_bos[layer]))
            for layer in layers
        ]
        logits = []
        with torch.no_grad():
            for part in tokens.split(64):
                logits.append(
                    model.run_with_hooks(part.to(model.cfg.device), fwd_hooks=hooks).float().cpu()
                )
        losses = torch.nn.functional.cross_entropy(
            torch.cat(logits)[:, 1:-1].transpose(1, 2), tokens[:, 2:], reduction="none"
        )
        best, trigger = optimum(tokens), is_trigger(tokens[:, 1:-1])
        figures = {
            "loss": float(losses.mean()),
            "optimum": float(best.mean()),
            "loss after triggers": float(losses[trigger].mean()),
            "loss after others": float(losses[~trigger].mean()),
            "optimum after others": float(best[~trigger].mean()),
        }
        for layer in layers:
            weight = torch.cat(to_bos[layer])[:, 1:-1]
            figures[f"attention of L{layer}H0 to BOS from triggers"] = float(weight[trigger].mean())
            figures[f"attention of L{layer}H0 to BOS from others"] = float(weight[~trigger].mean())
        return figures


def _keep_first_column(
    pattern: Float[Tensor, "batch head query key"], hook: Any, *, kept: list[Tensor]
) -> None:
    """Keep the attention of the only head to position 0."""
    kept.append(pattern[:, 0, :, 0].cpu())
