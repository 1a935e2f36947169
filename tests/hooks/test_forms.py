"""Every form in which hooks are written is an intervention, with the numbers of plain hooks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

import sinklens
from sinklens import metrics as metrics_of
from sinklens.hooks import Intervention, ablate_heads
from sinklens.hooks.forms import as_interventions, named_interventions
from tests.engine.helpers import LENGTH, random_prompts
from tests.reference.plain_engine import plain_values

Boot = Callable[[str], TransformerBridge]
POINT = "blocks.1.hook_resid_pre"
RAMP = torch.linspace(-1, 1, 32)


def push(x: Tensor, hook: Any) -> Tensor:
    x[:, 0] += RAMP
    return x


def halve(z: Tensor, hook: Any) -> Tensor:
    return z * 0.5


def values_of(model: Any, prompts: sinklens.Prompts, given: Any, **how: Any) -> Tensor:
    found = sinklens.evaluate(model, prompts, given, ["loss"], progress=False, **how)
    return found.values[:, 0]


def test_hooks_as_they_are_written(boot_family: Boot) -> None:
    model, prompts = boot_family("llama"), random_prompts(4)
    one = Intervention("one", "residual", 1, [(POINT, push)])
    two = Intervention("two", "z", 0, [("blocks.0.attn.hook_z", halve), (POINT, push)])
    own = ablate_heads(model, [(1, 0)], "zero")
    wanted = plain_values(model, prompts, [one, two, own])["loss"]
    pairs = [("blocks.0.attn.hook_z", halve), (POINT, push)]
    forms: list[tuple[Any, list[int]]] = [
        ((POINT, push), [0]),
        ([(POINT, push)], [0]),
        ([[POINT, push]], [0]),
        (pairs, [1]),
        ([[(POINT, push)], pairs], [0, 1]),
        ([own, [(POINT, push)], pairs], [2, 0, 1]),
        (own, [2]),
        ({"a": (POINT, push), "b": pairs, "c": own}, [0, 1, 2]),
        ({"a": [[(POINT, push)], pairs]}, [0, 1]),
        ((lambda name: name == POINT, push), [0]),
        ([], []),
    ]
    for given, numbers in forms:
        found = values_of(model, prompts, given)
        torch.testing.assert_close(found, wanted[numbers], rtol=1e-5, atol=1e-5)


def test_names(boot_family: Boot) -> None:
    model = boot_family("llama")
    own = ablate_heads(model, [(1, 0)], "zero")
    (first,) = as_interventions(model, [(POINT, push)])
    assert first.name == f"push at {POINT}" and first.site == "residual" and first.first_layer == 1
    (every,) = as_interventions(model, (lambda name: name.endswith("hook_z"), halve))
    assert every.name == "halve at blocks.0.attn.hook_z and 1 more" and every.site == "z"
    named = as_interventions(model, {"a": own, "b": (POINT, push)})
    assert [one.name for one in named] == ["a", "b"]
    assert named[0].fwd_hooks is own.fwd_hooks
    assert list(named_interventions(model, (POINT, push), "treatment")) == ["treatment"]
    assert list(named_interventions(model, [own, own], "treatment")) == ["zero"]
    draws = named_interventions(model, {"a": [[(POINT, push)], [(POINT, push)]], "b": own}, "x")
    assert [(name, len(group)) for name, group in draws.items()] == [("a", 2), ("b", 1)]


def test_a_filter_leaves_points_out_that_are_switched_off(boot_family: Boot) -> None:
    model = boot_family("llama")
    (every,) = as_interventions(model, (lambda name: "attn.hook_" in name, push))
    names = [name for name, _ in every.fwd_hooks]
    assert "blocks.0.attn.hook_pattern" in names and "blocks.0.attn.hook_result" not in names


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("position", [None, 0, 3])
def test_values_by_prompt(position: int | None, batch_size: int, boot_family: Boot) -> None:
    """Each prompt gets its own, however the prompts are batched."""
    model, prompts = boot_family("llama"), random_prompts(5)
    shape = (5, 32) if position is not None else (5, LENGTH, 32)
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))

    def write(x: Tensor, hook: Any) -> Tensor:
        edited = x.clone()
        edited[:, slice(None) if position is None else position] = values
        return edited

    plain = Intervention("plain", "residual", 1, [(POINT, write)], position=position or 0)
    wanted = plain_values(model, prompts, [plain])["loss"]
    edit = Intervention.from_values(POINT, values, position=position)
    assert (edit.first_layer, edit.position) == (1, position or 0)
    found = values_of(model, prompts, edit, batch_size=batch_size)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_per_head_results_once_they_are_switched_on(boot_family: Boot) -> None:
    """In place too, on every family that computes them."""
    prompts = random_prompts(3)
    point = "blocks.1.attn.hook_result"

    def drop_head(result: Tensor, hook: Any) -> None:
        result[:, :, 1] = 0

    for name in ("gpt2", "llama"):
        model: Any = boot_family(name)
        with pytest.raises(sinklens.SinklensError, match="set_use_attn_result\\(True\\)"):
            values_of(model, prompts, [(point, drop_head)])
        by_z = values_of(model, prompts, ablate_heads(model, [(1, 1)], "zero"))
        model.set_use_attn_result(True)
        try:
            found = values_of(model, prompts, [(point, drop_head)])
        finally:
            model.set_use_attn_result(False)
        # Dropping a head's result is dropping its z.
        torch.testing.assert_close(found, by_z, rtol=1e-5, atol=1e-5)


def test_hooks_with_state_bound_by_partial(boot_family: Boot) -> None:
    model, prompts = boot_family("llama"), random_prompts(3)

    def scale(x: Tensor, hook: Any, *, by: float) -> Tensor:
        return x * by

    (one,) = as_interventions(model, (POINT, partial(scale, by=0.5)))
    assert one.name == f"scale at {POINT}"
    wanted = plain_values(model, prompts, [one])["loss"]
    found = values_of(model, prompts, (POINT, partial(scale, by=0.5)))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_one_metric_is_several(boot_family: Boot) -> None:
    model, prompts = boot_family("llama"), random_prompts(2)
    for metrics in ("loss", metrics_of.METRICS["loss"], metrics_of.loss):
        found = sinklens.evaluate(model, prompts, (POINT, push), metrics, progress=False)
        assert [metric.name for metric in found.metrics] == ["loss"]
    found = sinklens.evaluate(model, prompts, (POINT, push), "loss,kl", progress=False)
    assert [metric.name for metric in found.metrics] == ["loss", "kl"]
