"""Tiny random models of seven families, made offline, and a tokenizer for them.

Each function returns a plain Hugging Face model in eval mode with eager attention: width 32, four
heads of 8, a vocabulary of 64, two layers (three where sliding and full attention alternate), and
two key-value heads where the family has grouped keys. Every weight is drawn again, larger than an
initialisation would, so that attention is far from uniform and an edit moves the logits visibly.
Padding, BOS, EOS and the unknown token are ids 0 to 3: a BOS that is also the padding token has an
embedding of zeros, which makes every edit of it a silent no-op.

`boot` gives the same models as a TransformerLens bridge. Booting rewrites the Hugging Face model in
place, so take a second one (the same to the last bit) wherever both are wanted.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

PAD, BOS, EOS, UNK = 0, 1, 2, 3
SPECIAL_TOKENS = ["<pad>", "<bos>", "<eos>", "<unk>"]
N_LAYERS, N_HEADS, N_KV_HEADS, D_HEAD, D_MODEL, D_MLP = 2, 4, 2, 8, 32, 64
VOCABULARY = 64
MAX_POSITIONS = 128
WINDOW = 4

WEIGHT_STD = 0.3
BIAS_STD = 0.2


def tiny_tokenizer(*, bos: bool = True) -> PreTrainedTokenizerFast:
    """A tokenizer of 64 entries: lower-cased ASCII text, one token a character.

    Letters, digits, space, newline and most punctuation have a token, the other bytes are `<unk>`,
    so any text gives as many tokens as it has bytes.

    Args:
        bos: Whether the tokenizer has a BOS token (and prepends it, as Llama's does). Without one,
            TransformerLens fills the gap with EOS while it boots.
    """
    # ByteLevel writes a space as "Ġ" and a newline as "Ċ".
    characters = string.ascii_lowercase + string.digits + "ĠĊ" + ".,;:!?'\"()-/&%$[]*+=_#"
    vocabulary = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *characters])}
    assert len(vocabulary) == VOCABULARY
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    # TransformerLens reads `name_or_path` from the arguments, and asks the hub for a tokenizer that
    # prepends BOS unless this one says that it does.
    with_bos: dict[str, Any] = {"bos_token": "<bos>", "add_bos_token": True} if bos else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        name_or_path="tiny",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        **with_bos,
    )


def gpt2() -> PreTrainedModel:
    """GPT-2: learned positions, LayerNorm, biases everywhere, tied embeddings."""
    config = transformers.GPT2Config(
        **ids(),
        n_layer=N_LAYERS,
        n_head=N_HEADS,
        n_embd=D_MODEL,
        n_inner=D_MLP,
        n_positions=MAX_POSITIONS,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return random_model(transformers.GPT2LMHeadModel, config)


def llama() -> PreTrainedModel:
    """Llama: rotary positions, RMSNorm, two query heads for each key-value head."""
    return random_model(
        transformers.LlamaForCausalLM, transformers.LlamaConfig(**ids(), **_rotary())
    )


def uniform_llama() -> PreTrainedModel:
    """A `llama` whose queries are 0, so that all visible keys have the same weight."""
    plain = llama()
    with torch.no_grad():
        for layer in plain.model.layers:
            layer.self_attn.q_proj.weight.zero_()
    return plain


def neox() -> PreTrainedModel:
    """GPT-NeoX (Pythia): attention and MLP in parallel, rotary positions on half of each head."""
    config = transformers.GPTNeoXConfig(
        **ids(),
        num_hidden_layers=N_LAYERS,
        num_attention_heads=N_HEADS,
        hidden_size=D_MODEL,
        intermediate_size=D_MLP,
        max_position_embeddings=MAX_POSITIONS,
        rope_parameters={"rope_theta": 10_000.0, "partial_rotary_factor": 0.5},
    )
    return random_model(transformers.GPTNeoXForCausalLM, config)


def gemma2() -> PreTrainedModel:
    """Gemma-2: layers 0 and 2 see a window of 4, layer 1 sees everything; scaled embeddings."""
    config = transformers.Gemma2Config(
        **ids(),
        **_rotary(n_layers=3),
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        sliding_window=WINDOW,
        query_pre_attn_scalar=D_HEAD,
    )
    return random_model(transformers.Gemma2ForCausalLM, config)


def mistral() -> PreTrainedModel:
    """Mistral: Llama with a window of 4 in every layer."""
    config = transformers.MistralConfig(**ids(), **_rotary(), sliding_window=WINDOW)
    return random_model(transformers.MistralForCausalLM, config)


def opt() -> PreTrainedModel:
    """OPT: TransformerLens leaves its attention to Hugging Face, so pattern edits are ignored."""
    config = transformers.OPTConfig(
        **ids(),
        num_hidden_layers=N_LAYERS,
        num_attention_heads=N_HEADS,
        hidden_size=D_MODEL,
        word_embed_proj_dim=D_MODEL,
        ffn_dim=D_MLP,
        max_position_embeddings=MAX_POSITIONS,
        dropout=0.0,
    )
    return random_model(transformers.OPTForCausalLM, config)


def bert() -> PreTrainedModel:
    """BERT: attention in both directions, a masked language model without a next-token loss."""
    config = transformers.BertConfig(
        **ids(),
        num_hidden_layers=N_LAYERS,
        num_attention_heads=N_HEADS,
        hidden_size=D_MODEL,
        intermediate_size=D_MLP,
        max_position_embeddings=MAX_POSITIONS,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    # With seed 0, hardly a head looks at BOS and replacing it moves the logits by 0.002 nats.
    return random_model(transformers.BertForMaskedLM, config, seed=4)


FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2": gpt2,
    "llama": llama,
    "neox": neox,
    "gemma2": gemma2,
    "mistral": mistral,
    "opt": opt,
    "bert": bert,
}


def boot(name: str, *, tokenizer: PreTrainedTokenizerFast | None = None) -> TransformerBridge:
    """The family `name` as a TransformerLens bridge, with `tiny_tokenizer()` unless given one."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    model = FAMILIES[name]()
    # TransformerLens draws random numbers while it takes over GPT-2 and GPT-NeoX.
    with torch.random.fork_rng(devices=[]):
        return build_bridge_from_module(
            model,
            type(model).__name__,
            hf_config=model.config,
            tokenizer=tokenizer if tokenizer is not None else tiny_tokenizer(),
            model_name=f"tiny-{name}",
        )


def ids() -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    }


def _rotary(n_layers: int = N_LAYERS) -> dict[str, Any]:
    """What the Llama-shaped configs share."""
    return {
        "num_hidden_layers": n_layers,
        "num_attention_heads": N_HEADS,
        "num_key_value_heads": N_KV_HEADS,
        "head_dim": D_HEAD,
        "hidden_size": D_MODEL,
        "intermediate_size": D_MLP,
        "max_position_embeddings": MAX_POSITIONS,
        "tie_word_embeddings": False,
    }


def random_model(
    model_class: type[PreTrainedModel], config: transformers.PretrainedConfig, seed: int = 0
) -> PreTrainedModel:
    # A fresh config names no architecture, and TransformerLens reads it from there.
    config.architectures = [model_class.__name__]
    # Without `devices=[]`, a machine with many GPUs has the state of each saved, with a warning.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class._from_config(config, attn_implementation="eager")
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape)
                if parameter.ndim > 1:
                    parameter.copy_(WEIGHT_STD * noise)
                else:  # biases and norm scales, around the 0 or 1 that they start from
                    parameter.add_(BIAS_STD * noise)
    return model.eval()
