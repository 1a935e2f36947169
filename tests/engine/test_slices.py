"""Patterns read some queries at a time: the same numbers, less memory, the model left as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

import sinklens
from sinklens.engine import shortcuts, sizes
from sinklens.engine.attention import in_slices
from sinklens.models.capabilities import check, hook_name
from sinklens.models.prompts import Prompts, random_prompts
from sinklens.probes import KeyMass, ResidualNorms, SinkScores
from tests.families import FAMILIES

Boot = Callable[[str], TransformerBridge]


@pytest.fixture
def few_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "PATTERN_BYTES", 1)
    monkeypatch.setattr(sizes, "FEWEST_QUERIES", 5)


def some_prompts(model: TransformerBridge) -> Prompts:
    return random_prompts(model, n=3, length=12, bos=True)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_scores_are_those_of_whole_patterns(name: str, boot_family: Boot, few_queries: Any) -> None:
    """The definitions written out on patterns that TransformerLens made, 12 queries in 3 slices."""
    model = boot_family(name)
    prompts = some_prompts(model)
    patterns: dict[int, Tensor] = {}

    def keep(pattern: Tensor, hook: Any) -> None:
        patterns[hook.layer()] = pattern

    layers = range(model.cfg.n_layers)
    with torch.no_grad():
        hooks = [(hook_name("pattern", layer), keep) for layer in layers]
        model.run_with_hooks(prompts.tokens, fwd_hooks=hooks)
    pattern = torch.stack([patterns[layer] for layer in layers], 1)
    probe, norms, keys = SinkScores(model), ResidualNorms(model), KeyMass(model, [0, 3, 7])
    run = sinklens.evaluate(model, prompts, [], [], probes=[probe, norms, keys], progress=False)
    assert run.shortcuts["patterns"] and shortcuts(model).slices
    found = probe.compute()
    wanted = {
        "scores": torch.stack([pattern[..., k:, k].mean(-1) for k in range(12)], -1),
        "mass": pattern[..., 1:, 0].mean(-1),
        "last": pattern[..., :-1, -1].mean(-1),
        "unplaced": 1 - pattern[..., 1:, :].sum(-1).mean(-1),
    }
    for field, value in wanted.items():
        torch.testing.assert_close(getattr(found, field), value, atol=1e-6, rtol=0)
    for key, mass in keys.compute().items():
        torch.testing.assert_close(mass, pattern[..., key + 1 :, key].mean(-1), atol=1e-6, rtol=0)
    assert norms.compute().position0.shape == (3, model.cfg.n_layers + 1)


def test_whole_patterns_where_slices_cannot_be(boot_family: Boot, few_queries: Any) -> None:
    """An edit needs the pattern."""
    model = boot_family("llama")
    prompts = some_prompts(model)
    edits = [sinklens.hooks.ablate_heads(model, [(0, 0)], "drop_edge")]
    probe = SinkScores(model)
    run = sinklens.evaluate(model, prompts, edits, ["loss"], probes=[probe], progress=False)
    assert not run.shortcuts["patterns"]
    assert probe.compute().mass.shape == (3, model.cfg.n_layers, model.cfg.n_heads)


def test_prompts_that_are_short_are_read_whole(boot_family: Boot) -> None:
    model = boot_family("llama")
    probe = SinkScores(model)
    run = sinklens.evaluate(model, some_prompts(model), [], [], probes=[probe], progress=False)
    assert not run.shortcuts["patterns"]


def test_the_model_is_left_as_it_was_after_an_error(boot_family: Boot) -> None:
    model = boot_family("llama")
    tokens = some_prompts(model).tokens
    with torch.no_grad():
        before = model(tokens)

    def fail(rows: Tensor, *, layer: int, first: int) -> None:
        if layer == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), in_slices(model, [fail], 4), torch.no_grad():
        model(tokens)
    assert model.original_model.config._attn_implementation == "eager"
    with torch.no_grad():
        assert torch.equal(model(tokens), before)
    assert check(model).edits["pattern"]
