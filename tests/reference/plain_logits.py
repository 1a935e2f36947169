"""Attention logits of a plain Hugging Face Llama, and the figures of position from definitions.

Nothing here imports sinklens or TransformerLens: hidden states, projections and rotary embeddings
are the model's, means over all pairs of different prompts are taken in numpy, one prompt left out
after the other.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, repeat_kv


class Plain:
    """Logits of a Llama by layer, and the figures from their definitions."""

    def __init__(self, model: Any) -> None:
        self._model, self._llama = model, model.model

    def states(self, tokens: Tensor) -> list[Tensor]:
        """What enters each block."""
        with torch.no_grad():
            found = self._llama(tokens, output_hidden_states=True, use_cache=False).hidden_states
        return list(found[:-1])

    def reads(self, tokens: Tensor) -> tuple[np.ndarray, np.ndarray, Any]:
        """Patterns and values by layer, prompt and head, and what makes outputs of values."""
        logits = self.logits(tokens)
        hidden = np.triu(np.full(logits.shape[-2:], -np.inf), 1)
        odds = np.exp(logits + hidden - (logits + hidden).max(-1, keepdims=True))
        values, outputs = [], []
        with torch.no_grad():
            for layer, state in zip(self._llama.layers, self.states(tokens), strict=True):
                attention, normed = layer.self_attn, layer.input_layernorm(state)
                shape = (*normed.shape[:2], -1, attention.head_dim)
                v = attention.v_proj(normed).view(shape).transpose(1, 2)
                values.append(repeat_kv(v, attention.num_key_value_groups).double().numpy())
                weight = attention.o_proj.weight.double()
                outputs.append(weight.unflatten(1, (-1, attention.head_dim)).permute(1, 2, 0))
        made = torch.stack(outputs).numpy()  # layer, head, d_head, d_model

        def written(of: np.ndarray) -> np.ndarray:
            if of.ndim == 4:
                return np.einsum("lphd,lhdm->lphm", of, made)
            return np.einsum("lphid,lhdm->lphim", of, made)

        return odds / odds.sum(-1, keepdims=True), np.stack(values), written

    def logits(
        self,
        tokens: Tensor,
        edited: dict[int, Tensor] | None = None,
        patch: tuple[int, Tensor] | None = None,
    ) -> np.ndarray:
        """`[layer, prompt, head, query, key]`.

        Args:
            tokens: The prompts.
            edited: Embeddings that are replaced, by position.
            patch: A block, and what its input holds at position 0 instead.
        """

        def put(_: Any, arguments: Any) -> Any:
            stream = arguments[0].clone()
            assert patch is not None
            stream[:, 0] = patch[1]
            return (stream, *arguments[1:])

        handle = None
        if patch is not None:
            handle = self._llama.layers[patch[0]].register_forward_pre_hook(put)
        try:
            return self._logits(tokens, edited, patch)
        finally:
            if handle is not None:
                handle.remove()

    def _logits(
        self,
        tokens: Tensor,
        edited: dict[int, Tensor] | None,
        patch: tuple[int, Tensor] | None,
    ) -> np.ndarray:
        with torch.no_grad():
            embedded = self._llama.embed_tokens(tokens).clone()
            for position, vector in (edited or {}).items():
                embedded[:, position] = vector
            states = self._llama(
                inputs_embeds=embedded, output_hidden_states=True, use_cache=False
            ).hidden_states
            if patch is not None:  # the hook edits what the block gets, not what is handed out
                states = list(states)
                states[patch[0]] = states[patch[0]].clone()
                states[patch[0]][:, 0] = patch[1]
            ids = torch.arange(tokens.shape[1])[None]
            cos, sin = self._llama.rotary_emb(embedded, ids)
            found = []
            for layer, state in zip(self._llama.layers, states[:-1], strict=True):
                attention, normed = layer.self_attn, layer.input_layernorm(state)
                shape = (*normed.shape[:2], -1, attention.head_dim)
                q = attention.q_proj(normed).view(shape).transpose(1, 2)
                k = attention.k_proj(normed).view(shape).transpose(1, 2)
                q, k = apply_rotary_pos_emb(q, k, cos, sin)
                k = repeat_kv(k, attention.num_key_value_groups)
                found.append((q @ k.transpose(2, 3) * attention.scaling).double().numpy())
        return np.stack(found)

    @staticmethod
    def figure(logits: np.ndarray, queries: range, without: tuple[int, ...]) -> np.ndarray:
        """Component and variance by layer (mean over heads), of all prompts and without each."""
        pairs = [(i, j) for i in queries for j in range(i + 1) if j not in without]
        i, j = (np.array(part) for part in zip(*pairs, strict=True))
        vectors = logits[..., i, j]
        residual = vectors.copy()
        for offset in np.unique(i - j):
            there = i - j == offset
            residual[..., there] -= residual[..., there].mean(-1, keepdims=True)
        centred = vectors - vectors.mean(-1, keepdims=True)
        n = vectors.shape[1]
        versions = []
        for kept in [list(range(n)), *([k for k in range(n) if k != out] for out in range(n))]:
            by_form = []
            for form in (residual, centred):
                products = [
                    (form[:, p] * form[:, q]).sum(-1).mean(-1) / len(pairs)
                    for p, q in itertools.permutations(kept, 2)
                ]
                by_form.append(np.mean(products, 0))
            versions.append(by_form)
        return np.maximum(np.array(versions), 0)  # version, form, layer
