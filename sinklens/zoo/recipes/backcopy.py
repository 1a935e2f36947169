"""The Bigram-Backcopy models (Guo et al. 2024, 2410.13835): one head per layer, a known optimum.

The models of the paper are twice as wide (256) and are trained on 16 times as many sequences per
step (512), for many more steps at a third of the learning rate.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ..backcopy import LENGTH, VOCABULARY, BackcopyTask
from .base import D_MODEL, Recipe, token_ids

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def backcopy_config(layers: int) -> PretrainedConfig:
    """GPT-2 with one head per layer and a ReLU MLP of four times the width, as in the paper."""
    from transformers import GPT2Config

    return GPT2Config(
        architectures=["GPT2LMHeadModel"],
        **{**token_ids(), "vocab_size": VOCABULARY},
        n_embd=D_MODEL,
        n_layer=layers,
        n_head=1,
        n_inner=4 * D_MODEL,
        n_positions=LENGTH,
        activation_function="relu",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
        use_cache=False,
    )


def _recipe(layers: int, steps: int) -> Recipe:
    plural = "s" if layers > 1 else ""
    return Recipe(
        name=f"backcopy-{layers}",
        description=f"GPT-2 with {layers} layer{plural} of one head, on the Bigram-Backcopy task",
        config=partial(backcopy_config, layers),
        differs="another task and shape; not comparable with `rope`",
        also_differs=(
            "GPT-2's block with learned positions and a ReLU MLP, without biases",
            "learning rate, weight decay and betas of AdamW",
        ),
        task=BackcopyTask(),
        steps=steps,
        learning_rate=1e-3,
        weight_decay=1e-4,
        betas=(0.9, 0.99),
        frozen=("bias",),  # they start at 0 and the paper's model has none
    )


# Three layers cost three times as much per step.
RECIPES = [_recipe(1, steps=4000), _recipe(3, steps=2000)]
