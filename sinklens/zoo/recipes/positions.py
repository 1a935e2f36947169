"""Members that differ in their positional encoding: the base `rope` and its relatives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import (
    CHECKPOINTS,
    CONTEXT,
    D_HEAD,
    D_MLP_WITHOUT_GATE,
    D_MODEL,
    N_HEADS,
    N_LAYERS,
    NORM_EPSILON,
    ROPE_THETA,
    Recipe,
    llama_shape,
    token_ids,
)

if TYPE_CHECKING:
    from transformers import PretrainedConfig

NTK_FACTOR = 4.0
GPT2_BLOCK = "LayerNorm, biases, and an ungated GELU MLP"


def rope_config() -> PretrainedConfig:
    """Llama: rotary positions, RMSNorm before each sub-block, causal, gated SiLU."""
    from transformers import LlamaConfig

    return LlamaConfig(architectures=["LlamaForCausalLM"], **llama_shape())


def ntk_config() -> PretrainedConfig:
    """Llama with the base that NTK-aware scaling by `NTK_FACTOR` gives: theta s^(d / (d - 2)).

    It acts at every length, unlike `dynamic` scaling, which starts beyond the original context.
    """
    from transformers import LlamaConfig

    theta = ROPE_THETA * NTK_FACTOR ** (D_HEAD / (D_HEAD - 2))
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        **llama_shape(),
    )


def learned_config() -> PretrainedConfig:
    """GPT-2 with an untied unembedding, without dropout."""
    from transformers import GPT2Config

    return GPT2Config(
        architectures=["GPT2LMHeadModel"],
        **token_ids(),
        n_embd=D_MODEL,
        n_layer=N_LAYERS,
        n_head=N_HEADS,
        n_inner=D_MLP_WITHOUT_GATE,
        n_positions=CONTEXT,
        layer_norm_epsilon=NORM_EPSILON,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
        use_cache=False,
    )


def layernorm_config() -> PretrainedConfig:
    """StarCoder2: GPT-2's norms, biases and MLP with rotary positions."""
    from transformers import Starcoder2Config

    return Starcoder2Config(
        architectures=["Starcoder2ForCausalLM"],
        **{**llama_shape(), "intermediate_size": D_MLP_WITHOUT_GATE},
        use_bias=True,
        norm_epsilon=NORM_EPSILON,
        initializer_range=0.02,
        sliding_window=None,
        residual_dropout=0.0,
        embedding_dropout=0.0,
        attention_dropout=0.0,
    )


def alibi_config() -> PretrainedConfig:
    """Bloom with an untied unembedding, without dropout."""
    from transformers import BloomConfig

    return BloomConfig(
        architectures=["BloomForCausalLM"],
        **token_ids(),
        hidden_size=D_MODEL,
        n_layer=N_LAYERS,
        n_head=N_HEADS,
        layer_norm_epsilon=NORM_EPSILON,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tie_word_embeddings=False,
        use_cache=False,
    )


def nope_config() -> PretrainedConfig:
    """SmolLM3 with the rotary embedding switched off in every layer."""
    from transformers import SmolLM3Config

    return SmolLM3Config(
        architectures=["SmolLM3ForCausalLM"], **llama_shape(), no_rope_layers=[0] * N_LAYERS
    )


RECIPES = [
    Recipe(
        name="rope",
        description="Llama: rotary positions, RMS pre-norm, causal; the base of the family",
        config=rope_config,
        differs="nothing; it is the base",
        checkpoints=CHECKPOINTS,
        seeds=(0, 1, 2),
    ),
    Recipe(
        name="ntk",
        description="Llama with an NTK-aware rotary base (factor 4, at every length)",
        config=ntk_config,
        differs="the rotary base is 43,873 instead of 10,000 (NTK-aware scaling by 4)",
    ),
    Recipe(
        name="learned",
        description="GPT-2: learned absolute positions",
        config=learned_config,
        differs="learned absolute positions instead of rotary ones",
        also_differs=(
            GPT2_BLOCK,
            "smaller initial weights of the projections into the residual stream",
            "position embeddings beyond the 64th are untrained",
        ),
        control="layernorm",
        control_shares="norms, biases and MLP",
    ),
    Recipe(
        name="layernorm",
        description="StarCoder2: rotary positions in GPT-2's block; the control of learned, alibi",
        config=layernorm_config,
        differs=GPT2_BLOCK,
    ),
    Recipe(
        name="alibi",
        description="Bloom: ALiBi",
        config=alibi_config,
        differs="ALiBi, a penalty on distance, instead of rotary positions",
        also_differs=(
            GPT2_BLOCK,
            "a wider MLP, which Bloom fixes at four times d_model (a sixth more parameters)",
            "a LayerNorm after the embedding",
        ),
        control="layernorm",
        control_shares="norms, biases and type of MLP",
    ),
    Recipe(
        name="nope",
        description="SmolLM3 without rotary layers: no positional encoding at all",
        config=nope_config,
        differs="no positional encoding; only the causal mask distinguishes positions",
    ),
]
