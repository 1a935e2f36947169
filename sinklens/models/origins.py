"""Where a model came from, its special and ordinary tokens, and the hash of its weights."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ..core.errors import SinklensError
from ..core.protocol import HookedModel
from .state import State, model_state, require_bridge
from .weights import stored_weights


@dataclass(frozen=True)
class Origin:
    """Where a model came from.

    Attributes:
        kind: `shipped`, `hub`, `folder`, `gguf`, `hugging_face` (an object) or `bridge`.
        name: The shipped name, the Hub id, or the name of the folder or file without its path.
        revision: The requested Hub revision.
        step: The training step of a shipped checkpoint.
        seed: The training seed of a shipped model.
        bos_token_id: The BOS token as tokenizer or config gave it before booting; None where the
            model has none (TransformerLens fills a missing BOS with EOS).
        agreement: The largest difference to the logits of the plain Hugging Face model; None where
            they were not compared.
    """

    kind: str
    name: str
    revision: str | None = None
    step: int | None = None
    seed: int | None = None
    bos_token_id: int | None = None
    agreement: float | None = None


SHORT = 8
ORIGINS: WeakKeyDictionary[Any, Origin] = WeakKeyDictionary()
_hashes: WeakKeyDictionary[Any, tuple[State, str]] = WeakKeyDictionary()


def require_eval_mode(model: HookedModel) -> None:
    """Refuse a model in train mode: dropout makes two equal runs differ.

    Raises:
        SinklensError: The model, or the Hugging Face model underneath, is in train mode.
        UsageError: It is no bridge.
    """
    require_bridge(model)
    if model.training or getattr(model.original_model, "training", False):
        raise SinklensError(
            "the model is in train mode, where two equal runs can differ; call model.eval() first"
        )


def origin(model: HookedModel) -> Origin:
    """Where the model came from; kind `bridge` if it was not made by `load`.

    Raises:
        UsageError: It is no bridge.
    """
    require_bridge(model)
    known = ORIGINS.get(model)
    if known is None:
        known = Origin("bridge", str(model.cfg.model_name), bos_token_id=_guess_bos(model))
    return known


def bos_token_id(model: HookedModel) -> int | None:
    """The token that marks the start of a text, None where the model has none."""
    return origin(model).bos_token_id


def ordinary_tokens(model: HookedModel) -> Int[Tensor, " token"]:
    """All token ids that a text can contain: the vocabulary without special tokens.

    Embedding rows beyond the tokenizer's last entry are padding and excluded too.

    Raises:
        SinklensError: There is none.
    """
    size = int(model.cfg.d_vocab)
    special = {bos_token_id(model)}
    config = getattr(model.original_model, "config", None)  # `boot_native` has none
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(config, name, None)
        special.update(value if isinstance(value, (list, tuple)) else [value])
    tokenizer = model.tokenizer
    if tokenizer is not None:
        size = min(size, len(tokenizer))
        special.update(tokenizer.all_special_ids)
        added = getattr(tokenizer, "added_tokens_decoder", {})
        special.update(token for token, entry in added.items() if entry.special)
    ordinary = [token for token in range(size) if token not in special]
    if not ordinary:
        raise SinklensError(
            f"every token of {origin(model).name} is a special one ({size} in all), so that there "
            "is none to try the model on or to draw; give it a tokenizer and a config whose "
            "special tokens are some of the vocabulary"
        )
    return torch.tensor(ordinary)


def short_prompt(model: HookedModel) -> Int[Tensor, "2 pos"]:
    """Two prompts of about 8 ordinary tokens that differ in the last one.

    Their length is none of the model's other sizes, so that no two axes can be confused.
    """
    sizes = {getattr(model.cfg, size, None) for size in ("n_heads", "n_key_value_heads", "d_head")}
    length = next(n for n in range(SHORT, SHORT + 4) if n not in sizes)
    choice = np.random.default_rng(0).choice(ordinary_tokens(model).numpy(), length + 1)
    tokens = torch.from_numpy(choice[:length]).repeat(2, 1)
    tokens[1, -1] = int(choice[-1])
    return tokens.to(model.cfg.device)


def count_parameters(model: HookedModel) -> int:
    """How many parameters a model has; tied ones count once.

    TransformerLens keeps joint matrices (queries, keys and values of GPT-2) in parts as well, so
    they are counted in a model of the same class and configuration without memory (`meta`).
    """
    original = model.original_model
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            config = copy.deepcopy(original.config)
            plain = type(original)._from_config(config, attn_implementation="eager")
    except Exception:  # made in another way than from a configuration
        plain = original
    return sum(weight.numel() for weight in plain.parameters())


def parameters_by_config(source: str, revision: str | None = None) -> int | None:
    """How many parameters the model of a folder or Hub id has, by its config alone.

    None where there is no config, or none of a model that Transformers knows.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    own = {"trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(source, revision=revision, **own)
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            plain = AutoModelForCausalLM.from_config(config, **own)
    except Exception:  # every kind of model has its own
        return None
    return int(sum(weight.numel() for weight in plain.parameters()))


def weights_hash(model: HookedModel) -> str:
    """SHA-256 over all weights, by name, as they are now (16 hexadecimal digits).

    Cached while the model's state is the same.
    """
    state = model_state(model)
    known = _hashes.get(model)
    if known is None or known[0] != state:
        digest = hashlib.sha256()
        for name, tensor in stored_weights(model):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(flat.numpy().data)
        known = (state, digest.hexdigest()[:16])
        _hashes[model] = known
    return known[1]


def _guess_bos(model: HookedModel) -> int | None:
    """BOS of a bridge that was booted elsewhere.

    Its tokenizer may carry EOS in place of a missing BOS, so the Hugging Face config decides; a
    tokenizer whose BOS differs from its EOS is trusted too.
    """
    value = getattr(getattr(model.original_model, "config", None), "bos_token_id", None)
    tokenizer = model.tokenizer
    if tokenizer is not None:
        if getattr(tokenizer, "cls_token_id", None) is not None:
            return int(tokenizer.cls_token_id)
        own = tokenizer.bos_token_id
        if value is None and own is not None and own != tokenizer.eos_token_id:
            return int(tokenizer.bos_token_id)
    return None if value is None else int(value)
