"""Members that differ in where they normalise: no pre-norm, both sides, and a control."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import CHECKPOINTS, D_HEAD, NORM_EPSILON, ROPE_THETA, Recipe, llama_shape

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def postnorm_config() -> PretrainedConfig:
    """OLMo-2: RMSNorm on the output of each sub-block, none before it; QK norm."""
    from transformers import Olmo2Config

    return Olmo2Config(architectures=["Olmo2ForCausalLM"], **llama_shape())


def sandwich_config() -> PretrainedConfig:
    """GLM-4: RMSNorm before and after each sub-block, the placement of Gemma-2 and Gemma-3.

    Gemma itself would bring more with it: embeddings scaled by the root of the width, and gains of
    the form 1 + w, which weight decay pulls to 1 instead of 0.
    """
    from transformers import Glm4Config

    return Glm4Config(
        architectures=["Glm4ForCausalLM"],
        **llama_shape(),
        rms_norm_eps=NORM_EPSILON,
        head_dim=D_HEAD,
        attention_bias=False,
        attention_dropout=0.0,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": ROPE_THETA,
            "partial_rotary_factor": 1.0,
        },
    )


def qknorm_config() -> PretrainedConfig:
    """Qwen3: Llama with queries and keys normalised within each head."""
    from transformers import Qwen3Config

    return Qwen3Config(architectures=["Qwen3ForCausalLM"], **llama_shape(), head_dim=D_HEAD)


RECIPES = [
    Recipe(
        name="postnorm",
        description="OLMo-2: RMSNorm after each sub-block instead of before it",
        config=postnorm_config,
        differs="sub-blocks read the residual stream without a norm; their outputs are normalised",
        also_differs=(
            "queries and keys are normalised, over the whole width",
            "an RMSNorm epsilon of 1e-5 instead of 1e-6",
        ),
        control="qknorm",
        control_shares="the normalisation of queries and keys, although within each head",
        checkpoints=CHECKPOINTS,
        seeds=(0, 1, 2),
    ),
    Recipe(
        name="sandwich",
        description="GLM-4: RMSNorm before and after each sub-block, as in Gemma-2 and Gemma-3",
        config=sandwich_config,
        differs="the output of each sub-block is normalised as well",
        also_differs=("rotary pairs are neighbouring channels instead of the two halves",),
    ),
    Recipe(
        name="qknorm",
        description="Qwen3: queries and keys normalised; the control of postnorm",
        config=qknorm_config,
        differs="queries and keys are normalised within each head",
    ),
]
