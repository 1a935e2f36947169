"""Which shortcuts a model allows, and that none is taken where it would change a number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

import sinklens
from sinklens.engine import shortcuts
from sinklens.engine.user_hooks import has_own_hooks
from sinklens.hooks import ablate_heads
from sinklens.hooks.intervention import Intervention
from tests import families
from tests.engine.helpers import random_prompts
from tests.reference.plain_engine import plain_values

Boot = Callable[[str], TransformerBridge]


def heads_of(model: TransformerBridge, layer: int) -> list[Intervention]:
    return [ablate_heads(model, [(layer, head)], "zero") for head in range(3)]


def test_a_stack_that_runs_twice_is_run_whole() -> None:
    """On a clean run, blocks that hand on the last pass look right; under an edit they are not."""
    model = families.boot("llama")
    inner = model.original_model.model
    once = type(inner)

    def twice(self: Any, input_ids: Any = None, inputs_embeds: Any = None, **how: Any) -> Any:
        first = once.forward(self, input_ids, inputs_embeds=inputs_embeds, **how)
        return once.forward(self, inputs_embeds=first.last_hidden_state, **how)

    inner.__class__ = type("Looped", (once,), {"forward": twice})
    prompts = random_prompts(3)
    assert not shortcuts(model).prefix and not shortcuts(model).unembedding
    found = sinklens.evaluate(model, prompts, heads_of(model, 1), ["loss"], progress=False)
    wanted = plain_values(model, prompts, heads_of(model, 1))["loss"]
    torch.testing.assert_close(found.values[:, 0], wanted, rtol=1e-5, atol=1e-5)
    assert not found.shortcuts["prefix"] and not found.shortcuts["unembedding"]


@pytest.mark.parametrize("everywhere", [False, True])
def test_hooks_on_hook_points_or_on_all_modules_stay_in_force(
    everywhere: bool, boot_family: Boot
) -> None:
    """Placed with PyTorch's own means, of which TransformerLens knows nothing."""
    model = boot_family("llama")
    prompts = random_prompts(3)
    steer, point = torch.linspace(-3, 3, 32), model.blocks[0].hook_in
    sinklens.evaluate(model, prompts, heads_of(model, 1), ["loss"], progress=False)
    without = plain_values(model, prompts, heads_of(model, 1))["loss"]

    def steer_output(module: Any, _: Any, output: Any) -> Any:
        return output + steer if module is point else None

    register = torch.nn.modules.module.register_module_forward_hook
    handle = register(steer_output) if everywhere else point.register_forward_hook(steer_output)
    try:
        found = sinklens.evaluate(model, prompts, heads_of(model, 1), ["loss"], progress=False)
        wanted = plain_values(model, prompts, heads_of(model, 1))["loss"]
    finally:
        handle.remove()
    torch.testing.assert_close(found.values[:, 0], wanted, rtol=1e-5, atol=1e-5)
    assert (without - wanted).abs().max() > 0.01
    assert not any(found.shortcuts.values()) and not has_own_hooks(model)


def test_weights_that_change_are_tried_again() -> None:
    """NeoX's values are a copy of TransformerLens's; what runs without patterns has its own."""
    model = families.boot("neox")
    prompts = random_prompts(3)
    before = sinklens.evaluate(model, prompts, heads_of(model, 1), ["loss"], progress=False)
    with torch.no_grad():
        model.blocks[0].attn.v.weight.mul_(-1)
    found = sinklens.evaluate(model, prompts, heads_of(model, 1), ["loss"], progress=False)
    wanted = plain_values(model, prompts, heads_of(model, 1))["loss"]
    torch.testing.assert_close(found.values[:, 0], wanted, rtol=1e-5, atol=1e-5)
    assert (found.values - before.values).abs().max() > 0.01


def test_a_forward_that_the_caller_replaced_counts() -> None:
    """Also one inside what TransformerLens wraps, which sdpa would call and eager does not."""
    model = families.boot("llama")
    prompts = random_prompts(3)
    attention = model.blocks[0].attn.original_component
    attend = attention.forward

    def louder(*inputs: Any, **named: Any) -> Any:
        output, *rest = attend(*inputs, **named)
        return (3 * output, *rest)

    attention.forward = louder
    found = sinklens.evaluate(model, prompts, heads_of(model, 1), ["loss"], progress=False)
    wanted = plain_values(model, prompts, heads_of(model, 1))["loss"]
    torch.testing.assert_close(found.values[:, 0], wanted, rtol=1e-5, atol=1e-5)
    assert not any(found.shortcuts.values())
