"""Tiny random models of the architectures on the page of limits, popular ones first.

Those of `tests.families` and `tests.odd_models`, and more of the same size: three layers, width 32,
four heads. Each function returns a plain Hugging Face model.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import transformers
from transformers import PreTrainedModel

from tests import families, odd_models
from tests.families import D_MLP, D_MODEL, N_HEADS, ids, random_model
from tests.odd_models import EXPERTS, LAYERS, decoder

SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]
EXPERT_SIZE = {"moe_intermediate_size": 16}


def _made(name: str, without: tuple[str, ...] = (), text: str = "", **more: Any) -> PreTrainedModel:
    """A causal model by the name that its classes begin with, of a decoder's usual settings."""
    settings = {key: value for key, value in decoder(**more).items() if key not in without}
    config = getattr(transformers, f"{name}{text}Config")(**settings)
    return random_model(getattr(transformers, f"{name}ForCausalLM"), config)


def _gpt(name: str, **more: Any) -> PreTrainedModel:
    """A causal model whose config has GPT-2's names."""
    config = getattr(transformers, f"{name}Config")(
        **ids(), n_layer=LAYERS, n_head=N_HEADS, n_embd=D_MODEL, n_positions=128, **more
    )
    known = {"GPT2": "GPT2LMHeadModel"}
    return random_model(getattr(transformers, known.get(name, f"{name}ForCausalLM")), config)


def _bloom() -> PreTrainedModel:
    config = transformers.BloomConfig(**ids(), n_layer=LAYERS, n_head=N_HEADS, hidden_size=D_MODEL)
    return random_model(transformers.BloomForCausalLM, config)


def _mpt() -> PreTrainedModel:
    config = transformers.MptConfig(
        **ids(), n_layers=LAYERS, n_heads=N_HEADS, d_model=D_MODEL, max_seq_len=128
    )
    return random_model(transformers.MptForCausalLM, config)


def _falcon_7b() -> PreTrainedModel:
    config = transformers.FalconConfig(
        **ids(), num_hidden_layers=LAYERS, num_attention_heads=N_HEADS, hidden_size=D_MODEL
    )
    return random_model(transformers.FalconForCausalLM, config)


def _gpt_neo() -> PreTrainedModel:
    config = transformers.GPTNeoConfig(
        **ids(),
        num_layers=4,
        num_heads=N_HEADS,
        hidden_size=D_MODEL,
        intermediate_size=D_MLP,
        max_position_embeddings=128,
        attention_types=[[["global", "local"], 2]],
        window_size=5,
    )
    return random_model(transformers.GPTNeoForCausalLM, config)


def _xglm() -> PreTrainedModel:
    config = transformers.XGLMConfig(
        **ids(),
        num_layers=LAYERS,
        attention_heads=N_HEADS,
        d_model=D_MODEL,
        ffn_dim=D_MLP,
        max_position_embeddings=128,
        **dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), 0.0),
    )
    return random_model(transformers.XGLMForCausalLM, config)


def _roberta() -> PreTrainedModel:
    config = transformers.RobertaConfig(
        **ids(),
        num_hidden_layers=LAYERS,
        num_attention_heads=N_HEADS,
        hidden_size=D_MODEL,
        intermediate_size=D_MLP,
        max_position_embeddings=140,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return random_model(transformers.RobertaForMaskedLM, config)


def _jetmoe() -> PreTrainedModel:
    config = transformers.JetMoeConfig(
        **ids(),
        num_hidden_layers=LAYERS,
        num_key_value_heads=2,
        kv_channels=8,
        hidden_size=D_MODEL,
        intermediate_size=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=128,
    )
    return random_model(transformers.JetMoeForCausalLM, config)


def _zamba2() -> PreTrainedModel:
    config = transformers.Zamba2Config(
        **ids(),
        num_hidden_layers=LAYERS,
        num_attention_heads=N_HEADS,
        num_key_value_heads=N_HEADS,
        hidden_size=D_MODEL,
        intermediate_size=D_MLP,
        layers_block_type=["mamba", "hybrid", "mamba"],
        mamba_d_state=8,
        mamba_ngroups=1,
        n_mamba_heads=4,
        mamba_headdim=16,
        num_mem_blocks=1,
        use_shared_attention_adapter=False,
        max_position_embeddings=128,
    )
    return random_model(transformers.Zamba2ForCausalLM, config)


ROUTED = {
    **EXPERT_SIZE,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
}
NO_HEAD_SIZE = ("head_dim",)
ARCHITECTURES: dict[str, Callable[[], PreTrainedModel]] = {
    "Llama 3": families.llama,
    "Llama 4": odd_models.chunked,
    "Qwen 2.5": partial(_made, "Qwen2"),
    "Qwen 3": partial(_made, "Qwen3"),
    "Qwen 3 MoE": partial(_made, "Qwen3Moe", **EXPERTS, **EXPERT_SIZE),
    "Qwen 3 Next": odd_models.qwen3_next,
    "Qwen 3.5": odd_models.hybrid,
    "Qwen 3.5, full attention": odd_models.gated,
    "Gemma 2": families.gemma2,
    "Gemma 3": partial(_made, "Gemma3", text="Text", layer_types=SLIDING, sliding_window=4),
    "Gemma 4": partial(
        _made,
        "Gemma4",
        text="Text",
        layer_types=SLIDING[1:] + SLIDING[1:2],
        sliding_window=6,
        num_kv_shared_layers=1,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=families.VOCABULARY,
        global_head_dim=8,
    ),
    "Mistral": families.mistral,
    "Mixtral": partial(_made, "Mixtral", num_local_experts=4, num_experts_per_tok=2),
    "Phi 2": partial(_made, "Phi", NO_HEAD_SIZE),
    "Phi 3": partial(_made, "Phi3", NO_HEAD_SIZE),
    "OLMo 2": partial(_made, "Olmo2", NO_HEAD_SIZE),
    "OLMo 3": partial(_made, "Olmo3", NO_HEAD_SIZE, layer_types=SLIDING, sliding_window=4),
    "OLMoE": odd_models.olmoe,
    "OLMo Hybrid": odd_models.olmo_hybrid,
    "SmolLM 3": partial(_made, "SmolLM3", NO_HEAD_SIZE),
    "DeepSeek V3": odd_models.deepseek_v3,
    "GPT-OSS": odd_models.gpt_oss,
    "Granite 3": partial(_made, "Granite", NO_HEAD_SIZE),
    "Granite 4": odd_models.granite_4,
    "Falcon 7B": _falcon_7b,
    "Falcon, new decoder": odd_models.falcon,
    "Falcon H1": odd_models.falcon_h1,
    "Cohere 1": partial(_made, "Cohere", NO_HEAD_SIZE),
    "Cohere 2": partial(_made, "Cohere2", layer_types=SLIDING, sliding_window=4),
    "GLM 4": partial(_made, "Glm4"),
    "AFMoE": odd_models.afmoe,
    "LFM2": odd_models.lfm2,
    "Jamba": odd_models.jamba,
    "Bamba": odd_models.bamba,
    "Nemotron": partial(_made, "Nemotron"),
    "Nemotron H": odd_models.nemotron_h,
    "StarCoder 2": partial(_made, "Starcoder2", NO_HEAD_SIZE),
    "StableLM": partial(_made, "StableLm", NO_HEAD_SIZE),
    "Pythia": families.neox,
    "GPT-2": families.gpt2,
    "GPT-J": partial(_gpt, "GPTJ", rotary_dim=4),
    "GPT-Neo": _gpt_neo,
    "GPT-1": odd_models.gpt1,
    "OPT": families.opt,
    "OPT 350M": odd_models.opt_350m,
    "Bloom": _bloom,
    "MPT": _mpt,
    "BERT": families.bert,
    "ModernBERT": odd_models.modernbert,
    "T5": odd_models.t5,
    "Mamba": odd_models.mamba,
    "RWKV": odd_models.rwkv,
    "GPT-BigCode": partial(_gpt, "GPTBigCode"),
    "CodeGen": partial(_gpt, "CodeGen", rotary_dim=4),
    "XGLM": _xglm,
    "BitNet": partial(_made, "BitNet", NO_HEAD_SIZE),
    "Exaone 4": partial(_made, "Exaone4", layer_types=SLIDING, sliding_window=4),
    "HunYuan": partial(_made, "HunYuanDenseV1"),
    "GLM 4 MoE": partial(_made, "Glm4Moe", **ROUTED),
    "JetMoE": _jetmoe,
    "RecurrentGemma": partial(
        _made,
        "RecurrentGemma",
        lru_width=D_MODEL,
        attention_window_size=5,
        block_types=["recurrent", "recurrent", "attention"],
    ),
    "Zamba 2": _zamba2,
    "RoBERTa": _roberta,
    "DiffLlama": partial(_made, "DiffLlama"),
    "OLMo 1, clipped": odd_models.olmo_clipped,
    "GLM MoE DSA": odd_models.glm_moe_dsa,
    "Ministral 3": partial(_made, "Ministral3", layer_types=SLIDING, sliding_window=10),
    "DeepSeek V4": odd_models.deepseek_v4,
    "HRM": odd_models.hrm_text,
}
