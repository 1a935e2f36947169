"""The training tasks of the shipped models, with their data and losses.

`TextWindows`: next tokens of windows of the training text, with BOS or without. `MaskedWindows`:
masked tokens of the same windows between [CLS] and [SEP], as in BERT (Devlin et al. 2018,
1810.04805, section 3.1): a share of tokens is predicted, of which 80 % are replaced by the mask, 10
% by another token, and 10 % are kept. The share is 40 %, with which BERT-large is better than with
the original 15 % (Wettig et al. 2022, 2202.08005), and which gives 2.7 times as many predictions
per step. The Bigram-Backcopy task is in `backcopy.py`.

A task gives the same tokens in the same order for the same seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from ..models.shipped.prompts import closed
from ..models.shipped.text import (
    BOS,
    EOS,
    HELD_OUT_SEED,
    MASK,
    PAD,
    SPECIAL_TOKENS,
    generator_at,
    training_text,
)
from . import corpus
from .corpus import VOCABULARY, WINDOW

if TYPE_CHECKING:
    from ..core.protocol import HookedModel
    from ..models.prompts import Prompts

IGNORED = -100  # the label without a loss, in Hugging Face as in torch
MASKED_SHARE, SHOWN_AS_MASK, SHOWN_AS_OTHER = 0.4, 0.8, 0.1
HELD_OUT_PROMPTS = 512


class Batch(NamedTuple):
    """Inputs and labels in Hugging Face's convention."""

    input_ids: Int[Tensor, "batch pos"]
    labels: Int[Tensor, "batch pos"]


@runtime_checkable  # so that shape checks in tests can look at it
class Task(Protocol):
    """Tokens to train on, and the loss on tokens that were not trained on."""

    @property
    def bos(self) -> bool:
        """Whether position 0 is BOS (or [CLS])."""

    @property
    def length(self) -> int:
        """Positions in what is trained on."""

    @property
    def prompts(self) -> str:
        """What its model takes as prompts, an entry of `OWN_PROMPTS`."""

    @property
    def description(self) -> str:
        """One line for the card."""

    def save_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer where Hugging Face looks for it."""

    def batches(self, batch_size: int, seed: int, start: int) -> Iterator[Batch]:
        """Endless batches from number `start` on."""

    def held_out(self, model: HookedModel, prompts: Prompts) -> dict[str, float]:
        """The loss on held-out prompts, and whatever else tells how well the task is done."""


@dataclass(frozen=True)
class TextWindows:
    """Next tokens of text.

    Attributes:
        bos: Whether every window starts with BOS; without, it is one position shorter.
    """

    bos: bool = True

    @property
    def length(self) -> int:
        """One less without BOS."""
        return WINDOW - 1 + self.bos

    @property
    def prompts(self) -> str:
        """Text as it is."""
        return "text"

    @property
    def description(self) -> str:
        """One line for the card."""
        kind = f"with BOS (id {BOS})" if self.bos else "without BOS"
        return f"next token; windows of {self.length} positions {kind}"

    def save_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer; without BOS its token stays special and is never used."""
        if self.bos:
            write_tokenizer(folder, bos_token=SPECIAL_TOKENS[BOS], add_bos_token=True)
        else:
            write_tokenizer(folder, extra_special_tokens=[SPECIAL_TOKENS[BOS]])

    def batches(self, batch_size: int, seed: int, start: int) -> Iterator[Batch]:
        """Windows, each its own label."""
        windows = corpus.training_windows(corpus.training_tokens(), WINDOW)
        if not self.bos:
            windows = windows[:, 1:]
        for tokens in corpus.batches(windows, batch_size, seed, start):
            yield Batch(tokens, tokens)

    def held_out(self, model: HookedModel, prompts: Prompts) -> dict[str, float]:
        """Next-token cross-entropy in nats of the predictions made at positions >= 1."""
        from ..engine import evaluate

        return {"loss": float(evaluate(model, prompts, [], ["loss"], progress=False).clean.mean())}


@dataclass(frozen=True)
class MaskedWindows:
    """Masked tokens of text between [CLS] and [SEP].

    Attributes:
        bos: Position 0 is [CLS].
        length: Positions in each window.
    """

    bos: bool = True
    length: int = WINDOW

    @property
    def prompts(self) -> str:
        """Text that ends in [SEP]."""
        return "closed"

    @property
    def description(self) -> str:
        """One line for the card."""
        return (
            f"masked tokens ({100 * MASKED_SHARE:.0f} %); windows of {WINDOW} positions: "
            f"[CLS] (id {BOS}), text, [SEP] (id {EOS})"
        )

    def save_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer; BOS and EOS are [CLS] and [SEP]."""
        write_tokenizer(folder, cls_token="[CLS]", sep_token="[SEP]")

    def batches(self, batch_size: int, seed: int, start: int) -> Iterator[Batch]:
        """The windows of `TextWindows`, closed and masked."""
        windows = corpus.training_windows(corpus.training_tokens(), WINDOW)
        stream = corpus.batches(windows, batch_size, seed, start)
        for step, tokens in enumerate(stream, start):
            yield mask_tokens(closed(tokens), seed, step)

    def held_out(self, model: HookedModel, prompts: Prompts) -> dict[str, float]:
        """Cross-entropy in nats at masked tokens, and that of frequencies without context."""
        batch = mask_tokens(prompts.tokens.cpu(), HELD_OUT_SEED, 0)
        losses = []
        with torch.no_grad():
            for tokens, labels in zip(*(part.split(64) for part in batch), strict=True):
                logits = model(tokens.to(model.cfg.device)).float().cpu()
                losses.append(
                    torch.nn.functional.cross_entropy(
                        logits.flatten(0, 1), labels.flatten(), reduction="sum"
                    )
                )
        return {
            "loss": float(sum(losses) / (batch.labels != IGNORED).sum()),
            "loss without context": loss_without_context(batch),
        }


def mask_tokens(tokens: Int[Tensor, "batch pos"], seed: int, step: int) -> Batch:
    """Hide a share of the tokens between the first and the last."""
    generator = generator_at(seed, step)
    chance = torch.rand(tokens.shape, generator=generator)
    chosen = chance < MASKED_SHARE
    chosen[:, [0, -1]] = False
    shown = torch.rand(tokens.shape, generator=generator)
    others = torch.randint(len(SPECIAL_TOKENS), VOCABULARY, tokens.shape, generator=generator)
    inputs = tokens.clone()
    inputs[chosen & (shown < SHOWN_AS_MASK)] = MASK
    swapped = chosen & (shown >= SHOWN_AS_MASK) & (shown < SHOWN_AS_MASK + SHOWN_AS_OTHER)
    inputs[swapped] = others[swapped]
    return Batch(inputs, tokens.masked_fill(~chosen, IGNORED))


def loss_without_context(batch: Batch) -> float:
    """The loss, in nats, of a predictor that uses token frequencies and the shown token alone.

    With p the frequencies in the training text: the mask says nothing, so that t has p(t). Another
    token s was either kept, or drawn uniformly from the n that are no special ones, so that t has
    p(t) (keep [t = s] + swap / n) / (keep p(s) + swap / n).
    """
    # Every token once more, so that none that the held-out text has is impossible.
    counts = torch.bincount(torch.tensor(corpus.training_tokens()), minlength=VOCABULARY) + 1.0
    counts[: len(SPECIAL_TOKENS)] = 0
    share = counts / counts.sum()
    chosen = batch.labels != IGNORED
    true, shown = batch.labels[chosen], batch.input_ids[chosen]
    keep = 1 - SHOWN_AS_MASK - SHOWN_AS_OTHER
    swap = SHOWN_AS_OTHER / (VOCABULARY - len(SPECIAL_TOKENS))
    seen = share[true] * (keep * (true == shown) + swap) / (keep * share[shown] + swap)
    return float(-torch.where(shown == MASK, share[true], seen).log().mean())


def write_tokenizer(folder: Path, **roles: Any) -> None:
    """Train the shared tokenizer and save it.

    Args:
        folder: Receives it.
        roles: Special tokens by role besides end, padding and mask, and how Hugging Face is to use
            them. [CLS] and [SEP] take the places of BOS and EOS.
    """
    from transformers import PreTrainedTokenizerFast

    names = list(SPECIAL_TOKENS)
    if "sep_token" in roles:
        names[BOS], names[EOS] = roles["cls_token"], roles["sep_token"]
    else:
        roles["eos_token"] = names[EOS]
    PreTrainedTokenizerFast(
        tokenizer_object=corpus.train_tokenizer(training_text(), names),
        name_or_path="sinklens-zoo",
        pad_token=names[PAD],
        mask_token=names[MASK],
        clean_up_tokenization_spaces=False,
        **roles,
    ).save_pretrained(folder)
