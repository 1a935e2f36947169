"""Metrics that read the weights on key 0, with attention left to sdpa: what whole patterns give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

import sinklens
from sinklens.engine import shortcuts
from sinklens.engine.attention import with_key0_weights
from sinklens.hooks import ablate_heads, replace_bos_embedding
from sinklens.models.capabilities import hook_name
from sinklens.models.prompts import random_prompts
from tests.families import FAMILIES

Boot = Callable[[str], TransformerBridge]
WITHOUT = ("gemma2",)  # soft-capped scores, which sdpa does not have


def keep(pattern: Tensor, hook: Any, *, kept: list[Tensor]) -> None:
    kept.append(pattern)


def plain_patterns(model: TransformerBridge, tokens: Tensor, hooks: Any) -> Tensor:
    """What TransformerLens makes of them under an edit, [prompt, layer, head, query, key]."""
    kept: list[Tensor] = []
    reading = [
        (hook_name("pattern", layer), lambda pattern, hook: keep(pattern, hook, kept=kept))
        for layer in range(model.cfg.n_layers)
    ]
    with torch.no_grad():
        model.run_with_hooks(tokens, fwd_hooks=[*hooks, *reading])
    return torch.stack(kept, 1)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_mass_and_rate_are_those_of_whole_patterns(name: str, boot_family: Boot) -> None:
    """Windows, grouped heads, biases and a bidirectional model among them."""
    model = boot_family(name)
    prompts = random_prompts(model, n=3, length=12, bos=True)
    edits = [
        replace_bos_embedding(model, with_="mean"),
        ablate_heads(model, [(0, 1), (1, 2)], "zero"),
        ablate_heads(model, [(1, 0)], "zero"),
    ]
    found = sinklens.evaluate(model, prompts, edits, ["sink_mass", "sink_rate"], progress=False)
    allowed = shortcuts(model)
    assert allowed.key0 == (name not in WITHOUT)
    # GPT-2 leaves no hook on z to the other attention.
    assert found.shortcuts["patterns"] == (allowed.key0 and "z" in allowed.sites)
    for number, edit in enumerate(edits):
        pattern = plain_patterns(model, prompts.tokens, edit.fwd_hooks)
        mass, rate = (layered.values[number].T for layered in found.by_layer)
        torch.testing.assert_close(mass, pattern[..., 1:, 0].mean((2, 3)), atol=1e-6, rtol=0)
        wanted = (pattern[..., 0].mean(-1) > 0.3).float().mean(2)
        torch.testing.assert_close(rate, wanted, atol=0, rtol=0)


def test_an_edit_of_patterns_has_them_made(boot_family: Boot) -> None:
    model = boot_family("llama")
    prompts = random_prompts(model, n=3, length=12, bos=True)
    edits = [ablate_heads(model, [(0, 0)], "drop_edge")]
    found = sinklens.evaluate(model, prompts, edits, ["sink_mass"], progress=False)
    assert not found.shortcuts["patterns"]
    pattern = plain_patterns(model, prompts.tokens, edits[0].fwd_hooks)
    wanted = pattern[..., 1:, 0].mean((2, 3))
    torch.testing.assert_close(found.by_layer[0].values[0].T, wanted, atol=1e-6, rtol=0)


def test_the_model_is_left_as_it_was_after_an_error(boot_family: Boot) -> None:
    model = boot_family("llama")
    tokens = random_prompts(model, n=2, length=8, bos=True).tokens
    with torch.no_grad():
        before = model(tokens)

    def fail(weights: Tensor, *, layer: int) -> None:
        if layer == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), with_key0_weights(model, [fail]), torch.no_grad():
        model(tokens)
    assert model.original_model.config._attn_implementation == "eager"
    with torch.no_grad():
        assert torch.equal(model(tokens), before)
