"""Members that differ in which keys a query can attend to: window, bidirectional, a sink logit.

And `no-bos`, in whose windows no token is the same in every prompt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..corpus import WINDOW
from ..tasks import MaskedWindows, TextWindows
from .base import (
    CONTEXT,
    D_HEAD,
    D_MLP_WITHOUT_GATE,
    D_MODEL,
    N_HEADS,
    N_LAYERS,
    ROPE_THETA,
    Recipe,
    llama_shape,
    token_ids,
)
from .positions import rope_config

if TYPE_CHECKING:
    from transformers import PretrainedConfig

SLIDING_WINDOW = WINDOW // 2


def window_config() -> PretrainedConfig:
    """Mistral: Llama whose queries attend to the last `SLIDING_WINDOW` keys, their own included."""
    from transformers import MistralConfig

    return MistralConfig(
        architectures=["MistralForCausalLM"],
        **llama_shape(),
        head_dim=D_HEAD,
        sliding_window=SLIDING_WINDOW,
    )


def encoder_config() -> PretrainedConfig:
    """BERT with an untied unembedding, without dropout."""
    from transformers import BertConfig

    return BertConfig(
        architectures=["BertForMaskedLM"],
        **token_ids(),
        hidden_size=D_MODEL,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=N_HEADS,
        intermediate_size=D_MLP_WITHOUT_GATE,
        max_position_embeddings=CONTEXT,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        tie_word_embeddings=False,
    )


def learned_sink_config() -> PretrainedConfig:
    """GPT-OSS with one expert, full attention and plain rotary positions."""
    from transformers import GptOssConfig

    return GptOssConfig(
        architectures=["GptOssForCausalLM"],
        **llama_shape(),
        head_dim=D_HEAD,
        num_local_experts=1,
        num_experts_per_tok=1,
        layer_types=["full_attention"] * N_LAYERS,
        attention_dropout=0.0,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
    )


def no_bos_config() -> PretrainedConfig:
    """The configuration of `rope`, without a BOS."""
    config = rope_config()
    config.bos_token_id = None
    return config


RECIPES = [
    Recipe(
        name="window",
        description="Mistral: a sliding window of 32, half the training length",
        config=window_config,
        differs=f"a query attends to the last {SLIDING_WINDOW} keys only",
    ),
    Recipe(
        name="encoder",
        description="BERT: bidirectional, trained on masked tokens between [CLS] and [SEP]",
        config=encoder_config,
        differs="bidirectional attention, with masked-token prediction as its task",
        also_differs=(
            "LayerNorm after each addition to the residual stream, biases, and an ungated GELU MLP",
            "learned absolute positions, of which those beyond the 64th are untrained",
            "position embeddings are initialised as sinusoids; from random ones the final training "
            "loss was 5.35, where a unigram model has 5.47",
            "a LayerNorm after the embedding, token-type embeddings, a LayerNorm epsilon of 1e-12",
            "a dense layer with GELU and LayerNorm before the unembedding",
            "[SEP] replaces the last token of each window; the loss is over 40 % of the tokens",
            "a learning rate of 1e-3 (at 4e-3 the loss stayed at 5.99 for 800 steps), 200 steps of "
            "warm-up and a weight decay of 0.01, neither of which was varied separately",
        ),
        task=MaskedWindows(),
        first_weights="start_from_sinusoids",
        learning_rate=1e-3,
        weight_decay=0.01,
        warmup=200,
    ),
    Recipe(
        name="learned-sink",
        description="GPT-OSS: a learned sink logit in each head, one expert, full attention",
        config=learned_sink_config,
        differs="a learned logit in each head's softmax absorbs attention and contributes no value",
        also_differs=(
            "biases in attention and MLP",
            "the MLP is one expert: a clamped, scaled SiLU gate times (1 + up), without routing",
            "the router weights have no effect, but count as parameters",
            "an RMSNorm epsilon of 1e-5 instead of 1e-6",
        ),
    ),
    Recipe(
        name="no-bos",
        description="Llama trained on windows without BOS: the first token varies",
        config=no_bos_config,
        differs="the windows of `rope` without their BOS (63 tokens)",
        task=TextWindows(bos=False),
    ),
]
