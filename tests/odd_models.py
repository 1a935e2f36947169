"""Tiny random models that are unlike the usual decoder, made offline from their configs.

Each function returns a plain Hugging Face model of three layers, as those of `tests.families`.
"""

from __future__ import annotations

from typing import Any

import transformers
from transformers import PreTrainedModel

from tests.families import (
    D_HEAD,
    D_MLP,
    D_MODEL,
    N_HEADS,
    N_KV_HEADS,
    VOCABULARY,
    ids,
    random_model,
)

LAYERS = 3
CHUNK = 5
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}


def decoder(**more: Any) -> dict[str, Any]:
    """Settings of a decoder that most configs share."""
    shared = {
        "num_hidden_layers": LAYERS,
        "num_attention_heads": N_HEADS,
        "num_key_value_heads": N_KV_HEADS,
        "head_dim": D_HEAD,
        "hidden_size": D_MODEL,
        "intermediate_size": D_MLP,
        "max_position_embeddings": 128,
    }
    return {**ids(), **shared, **more}


def latent() -> dict[str, Any]:
    """Settings of multi-head latent attention, with experts in all blocks but the first."""
    return dict(
        **decoder(num_key_value_heads=N_HEADS, head_dim=4),
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=4,
        qk_nope_head_dim=8,
        v_head_dim=8,
        n_shared_experts=1,
    )


def deepseek_v3() -> PreTrainedModel:
    """Multi-head latent attention: z and keys have other axes than elsewhere."""
    config = transformers.DeepseekV3Config(**latent())
    return random_model(transformers.DeepseekV3ForCausalLM, config)


def olmo_clipped() -> PreTrainedModel:
    """Queries, keys and values clamped behind their projections."""
    settings = decoder(clip_qkv=0.5)
    del settings["head_dim"]
    return random_model(transformers.OlmoForCausalLM, transformers.OlmoConfig(**settings))


def gemma4() -> PreTrainedModel:
    """Gemma 4 with values of its own in every layer, which it norms."""
    config = transformers.Gemma4TextConfig(
        **decoder(),
        layer_types=["sliding_attention", "full_attention", "full_attention"],
        num_kv_shared_layers=0,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=VOCABULARY,
        global_head_dim=D_HEAD,
    )
    return random_model(transformers.Gemma4ForCausalLM, config)


def glm_moe_dsa(most: int = 4) -> PreTrainedModel:
    """Latent attention in which a query sees the keys that an indexer picks, `most` of them."""
    config = transformers.GlmMoeDsaConfig(
        **latent(),
        index_n_heads=2,
        index_head_dim=8,
        index_topk=most,
    )
    return random_model(transformers.GlmMoeDsaForCausalLM, config)


def deepseek_v4() -> PreTrainedModel:
    """Several residual streams at once, which blocks mix."""
    config = transformers.DeepseekV4Config(
        **decoder(num_key_value_heads=1),
        moe_intermediate_size=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_shared_experts=1,
        q_lora_rank=16,
        o_groups=2,
        o_lora_rank=8,
        qk_rope_head_dim=4,
        sliding_window=8,
        index_n_heads=2,
        index_head_dim=8,
        index_topk=4,
    )
    return random_model(transformers.DeepseekV4ForCausalLM, config)


def hrm_text() -> PreTrainedModel:
    """Two stacks that are gone through in turns."""
    return random_model(transformers.HrmTextForCausalLM, transformers.HrmTextConfig(**decoder()))


def falcon() -> PreTrainedModel:
    """Falcon's new decoder architecture, whose bridge is wrong in TransformerLens 4.3.0."""
    config = transformers.FalconConfig(
        **ids(),
        num_hidden_layers=LAYERS,
        num_attention_heads=N_HEADS,
        num_kv_heads=N_KV_HEADS,
        hidden_size=D_MODEL,
        new_decoder_architecture=True,
        multi_query=False,
        bias=False,
    )
    return random_model(transformers.FalconForCausalLM, config)


def afmoe() -> PreTrainedModel:
    """A gate behind attention, which is delegated."""
    config = transformers.AfmoeConfig(
        **decoder(**EXPERTS),
        moe_intermediate_size=16,
        num_dense_layers=1,
        num_shared_experts=1,
        sliding_window=64,
    )
    return random_model(transformers.AfmoeForCausalLM, config)


def _qwen(kinds: list[str]) -> PreTrainedModel:
    config = transformers.Qwen3_5TextConfig(
        **decoder(),
        layer_types=kinds,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
    )
    return random_model(transformers.Qwen3_5ForCausalLM, config)


def hybrid() -> PreTrainedModel:
    """Qwen3.5: only layer 1 has attention."""
    return _qwen(["linear_attention", "full_attention", "linear_attention"])


def gated() -> PreTrainedModel:
    """Qwen3.5 with attention in every layer, gated, and rebuilt by TransformerLens."""
    return _qwen(["full_attention"] * LAYERS)


def mamba() -> PreTrainedModel:
    """No attention at all."""
    config = transformers.MambaConfig(
        **ids(), num_hidden_layers=LAYERS, hidden_size=D_MODEL, state_size=8, intermediate_size=64
    )
    return random_model(transformers.MambaForCausalLM, config)


def chunked(size: int = CHUNK) -> PreTrainedModel:
    """Llama 4: layers 0 and 2 attend within chunks."""
    config = transformers.Llama4TextConfig(
        **decoder(),
        intermediate_size_mlp=D_MLP,
        num_local_experts=2,
        num_experts_per_tok=1,
        attention_chunk_size=size,
        layer_types=["chunked_attention", "full_attention", "chunked_attention"],
        no_rope_layers=[1, 0, 1],
        moe_layers=[1],
    )
    return random_model(transformers.Llama4ForCausalLM, config)


def t5() -> PreTrainedModel:
    """An encoder-decoder."""
    config = transformers.T5Config(
        **ids(), num_layers=LAYERS, num_heads=N_HEADS, d_model=D_MODEL, d_kv=D_HEAD, d_ff=D_MLP
    )
    return random_model(transformers.T5ForConditionalGeneration, config)


def gpt1() -> PreTrainedModel:
    """The first GPT, whose blocks put out lists."""
    config = transformers.OpenAIGPTConfig(
        **ids(), n_layer=LAYERS, n_head=N_HEADS, n_embd=D_MODEL, n_positions=128
    )
    return random_model(transformers.OpenAIGPTLMHeadModel, config)


def opt_350m() -> PreTrainedModel:
    """OPT-350m: embeddings of half the width, projected up."""
    config = transformers.OPTConfig(
        **ids(),
        num_hidden_layers=LAYERS,
        num_attention_heads=N_HEADS,
        hidden_size=D_MODEL,
        word_embed_proj_dim=D_MODEL // 2,
        ffn_dim=D_MLP,
        max_position_embeddings=128,
        do_layer_norm_before=False,
    )
    return random_model(transformers.OPTForCausalLM, config)


def modernbert() -> PreTrainedModel:
    """A class that TransformerLens has no bridge for."""
    config = transformers.ModernBertConfig(
        **ids(),
        hidden_size=D_MODEL,
        num_attention_heads=N_HEADS,
        num_hidden_layers=LAYERS,
        intermediate_size=D_MLP,
        cls_token_id=1,
        sep_token_id=2,
    )
    return random_model(transformers.ModernBertForMaskedLM, config)


def gpt_oss() -> PreTrainedModel:
    """Learned sinks: attention rows sum to less than 1."""
    config = transformers.GptOssConfig(**decoder(), num_local_experts=4, num_experts_per_tok=2)
    return random_model(transformers.GptOssForCausalLM, config)


def olmoe() -> PreTrainedModel:
    """A mixture of experts, which PyTorch does not run in float64."""
    settings = decoder(**EXPERTS)
    del settings["head_dim"]
    return random_model(transformers.OlmoeForCausalLM, transformers.OlmoeConfig(**settings))


def qwen3_next() -> PreTrainedModel:
    """A hybrid: only layer 1 has attention, gated; experts in every layer."""
    config = transformers.Qwen3NextConfig(
        **decoder(**EXPERTS),
        layer_types=["linear_attention", "full_attention", "linear_attention"],
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    )
    return random_model(transformers.Qwen3NextForCausalLM, config)


def granite_4() -> PreTrainedModel:
    """Granite 4 H: Mamba in layers 0 and 2, attention without positions in layer 1."""
    config = transformers.GraniteMoeHybridConfig(
        **decoder(),
        layer_types=["mamba", "attention", "mamba"],
        num_local_experts=0,
        shared_intermediate_size=D_MLP,
        position_embedding_type="nope",
        **_mamba_heads(),
    )
    return random_model(transformers.GraniteMoeHybridForCausalLM, config)


def jamba() -> PreTrainedModel:
    """Mamba and experts beside one layer of attention, which is delegated."""
    config = transformers.JambaConfig(
        **decoder(num_experts=2, num_experts_per_tok=1),
        attn_layer_period=3,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        mamba_d_state=8,
        use_mamba_kernels=False,
    )
    return random_model(transformers.JambaForCausalLM, config)


def bamba() -> PreTrainedModel:
    """Mamba 2 beside one layer of attention."""
    settings = decoder()
    del settings["head_dim"]
    config = transformers.BambaConfig(
        **settings, attn_layer_indices=[1], mamba_expand=2, **_mamba_heads()
    )
    return random_model(transformers.BambaForCausalLM, config)


def falcon_h1() -> PreTrainedModel:
    """Attention and Mamba side by side in every layer."""
    config = transformers.FalconH1Config(**decoder(), mamba_d_ssm=64, **_mamba_heads())
    return random_model(transformers.FalconH1ForCausalLM, config)


def olmo_hybrid() -> PreTrainedModel:
    """OLMo with linear attention in layers 0 and 2."""
    settings = decoder()
    del settings["head_dim"]
    config = transformers.OlmoHybridConfig(
        **settings,
        layer_types=["linear_attention", "full_attention", "linear_attention"],
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
    )
    return random_model(transformers.OlmoHybridForCausalLM, config)


def lfm2() -> PreTrainedModel:
    """Convolutions in layers 0 and 2."""
    config = transformers.Lfm2Config(**decoder(), layer_types=["conv", "full_attention", "conv"])
    return random_model(transformers.Lfm2ForCausalLM, config)


def nemotron_h() -> PreTrainedModel:
    """One mixer a block, attention in one of them, none of which TransformerLens shows."""
    config = transformers.NemotronHConfig(
        **decoder(),
        layers_block_type=["mamba", "attention", "mlp"],
        mamba_num_heads=4,
        mamba_head_dim=16,
        ssm_state_size=8,
        n_groups=1,
    )
    return random_model(transformers.NemotronHForCausalLM, config)


def rwkv() -> PreTrainedModel:
    """A recurrent model of two sub-blocks a block."""
    config = transformers.RwkvConfig(
        **ids(),
        num_hidden_layers=LAYERS,
        hidden_size=D_MODEL,
        attention_hidden_size=D_MODEL,
        intermediate_size=D_MLP,
        context_length=128,
    )
    return random_model(transformers.RwkvForCausalLM, config)


def _mamba_heads() -> dict[str, Any]:
    return {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1}
