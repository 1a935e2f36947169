"""The recipes: what each shipped model is, and everything that decides its weights.

A recipe and its seed fix the architecture, the tokens, their order and the optimiser; `train.py`
turns one into weights. All members share the tokenizer and the training text (locked by hash in
`corpus.py`), so that one member can be compared with another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig


VOCABULARY = 1024
PAD, BOS, EOS, MASK = range(4)
WINDOW = 64


@dataclass(frozen=True)
class Recipe:
    """How one member of the zoo is made.

    Attributes:
        name: The shipped name.
        description: One line for `sinklens models`.
        config: Makes the Hugging Face configuration.
        steps: Optimiser steps.
        batch_size: Windows a step.
        learning_rate: Peak of the cosine schedule, reached after `warmup` steps; it ends at 0.
        weight_decay: On all parameters.
        checkpoints: Steps whose weights are kept besides the last.
    """

    name: str
    description: str
    config: Callable[[], PretrainedConfig]
    steps: int = 4000
    batch_size: int = 32
    learning_rate: float = 4e-3
    weight_decay: float = 0.5
    warmup: int = 100
    betas: tuple[float, float] = (0.9, 0.999)
    max_gradient_norm: float = 1.0
    checkpoints: tuple[int, ...] = (32, 64, 128, 256, 512, 1024, 2048)


def rope_config() -> PretrainedConfig:
    """Llama: rotary positions, RMSNorm before each sub-block, causal, gated SiLU."""
    from transformers import LlamaConfig

    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        use_cache=False,
    )


RECIPES: dict[str, Recipe] = {
    "rope": Recipe(
        name="rope",
        description="Llama: rotary positions, RMS pre-norm, causal; the base of the family",
        config=rope_config,
    ),
}
