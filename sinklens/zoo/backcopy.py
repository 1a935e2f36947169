"""Training on the Bigram-Backcopy task (Guo et al. 2024, 2410.13835, section 3).

`models/shipped/backcopy.py` draws its sequences. The best loss is 0 after a trigger, after another
character the entropy of its bigram row. A head is useful after triggers and has nothing to do
elsewhere.

Losses are to be compared with the optimum of our table, not with the paper's numbers, whose
distributions are those of another text: the best loss after characters that are no triggers is 2.39
nats here and 2.22 there, by simulation. Sequences are `LENGTH` positions long, as in the paper.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from string import ascii_letters
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..models.capabilities import hook_name
from ..models.shipped.backcopy import (
    FIRST,
    N_TRIGGERS,
    is_trigger,
    optimum,
    sample,
    statistics,
)
from ..models.shipped.text import BOS, EOS, PAD, SPECIAL_TOKENS
from .tasks import Batch

if TYPE_CHECKING:
    from ..core.protocol import HookedModel
    from ..models.prompts import Prompts

LENGTH = 256
VOCABULARY = FIRST + len(ascii_letters)
UNKNOWN = FIRST - 1  # in the place of the mask, which this task does not have


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
    def prompts(self) -> str:
        """Sequences of the task."""
        return "backcopy"

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
