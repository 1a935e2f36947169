"""Hooks that the model carries when an experiment starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import sinklens
from sinklens.models.prompts import corpus

Boot = Callable[[str], Any]


def test_hooks_of_the_models_user_are_named(boot_family: Boot) -> None:
    """Numbers differ under them, and so do provenance and notes."""
    model = boot_family("llama")
    prompts = sinklens.prompts(model, corpus()[:500], n=4, length=6)

    def run() -> sinklens.ExperimentResult:
        return sinklens.run("sink_profile", model, prompts, progress=False)

    clean = run()
    assert clean.provenance["own_hooks"] == []
    point = "blocks.1.hook_resid_pre"
    with model.hooks(fwd_hooks=[(point, lambda x, hook: x * torch.linspace(0, 2, 32))]):
        hooked = run()
    assert hooked.provenance["own_hooks"] == [point]
    assert any(point in note for note in hooked.notes())
    assert hooked.effects != clean.effects
    handle = model.blocks[0].original_component.register_forward_hook(lambda *_: None)
    try:
        (name,) = run().provenance["own_hooks"]
        assert "0" in name
    finally:
        handle.remove()
    for layer in range(2):
        for site in ("q", "k", "v", "z"):
            model.add_perma_hook(f"blocks.{layer}.attn.hook_{site}", lambda x, hook: x)
    try:
        many = run()
        assert len(many.provenance["own_hooks"]) == 8
        assert any("and 3 more" in note for note in many.notes())
    finally:
        for name in many.provenance["own_hooks"]:
            model.hook_dict[name].remove_hooks(including_permanent=True)
    again = run()
    assert again.provenance == clean.provenance
