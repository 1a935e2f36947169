"""Hooks that edit in place, as TransformerLens notebooks write them, are interventions.

Their numbers are those of plain TransformerLens with the same hooks, whatever the engine spares,
and what it keeps of the clean run stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

import sinklens
from sinklens.engine import read_under
from sinklens.engine.screening import estimate
from sinklens.hooks import ablate_heads
from sinklens.hooks.intervention import Intervention
from sinklens.metrics import METRICS
from sinklens.models.capabilities import check, hook_name
from sinklens.models.prompts import Prompts
from sinklens.probes import ResidualNorms
from tests.engine.helpers import random_prompts
from tests.families import FAMILIES
from tests.reference.plain_engine import plain_values

Boot = Callable[[str], TransformerBridge]
SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "q", "k", "v", "z")


def push_and_return(x: Tensor, hook: Any, *, by: float = 2.0) -> Tensor:
    push(x, hook, by=by)
    return x


def push(x: Tensor, hook: Any, *, by: float = 2.0) -> None:
    x[:, :2] += by * torch.linspace(-1, 1, x.shape[-1])


def pushed(x: Tensor, hook: Any, *, by: float = 2.0) -> Tensor:
    return push_and_return(x.clone(), hook, by=by)


def halve_first_key(pattern: Tensor, hook: Any) -> None:
    pattern[:, :, 1:, 0] *= 0.5


def in_place(model: Any, function: Any) -> list[Intervention]:
    """An edit of every kind of site of the last block, and of the embedding."""
    last = int(model.cfg.n_layers) - 1
    names = [hook_name(site, last) for site in SITES]
    names = [name for name in names if name in model.hook_dict]
    edits = [Intervention(name, "own", last, [(name, function)]) for name in names]
    edits.append(Intervention("embedding", "own", 0, [("hook_embed", function)]))
    if check(model).edits["pattern"]:
        hooks: Any = [(hook_name("pattern", last), halve_first_key)]
        edits.append(Intervention("pattern", "own", last, hooks))
    return edits


def with_answers(n: int) -> Prompts:
    prompts = random_prompts(n)
    return Prompts(prompts.tokens, True, "random", torch.tensor([[5, 9]]).repeat(n, 1))


@pytest.mark.parametrize("metrics", [[*METRICS][:-1], ["loss", "kl", "logit_diff"]])
@pytest.mark.parametrize("function", [push_and_return, push])
@pytest.mark.parametrize(
    "name",
    [
        name if name in ("llama", "bert") else pytest.param(name, marks=pytest.mark.slow)
        for name in FAMILIES
    ],
)
def test_equal_to_plain_transformer_lens(
    name: str, function: Any, metrics: list[str], boot_family: Boot
) -> None:
    """Every metric, and without one that reads patterns, so that every shortcut is taken."""
    model = boot_family(name)
    prompts = with_answers(3)
    metrics = [metric for metric in metrics if check(model).causal or metric != "loss"]
    last = int(model.cfg.n_layers) - 1
    tidy = [ablate_heads(model, [(last, head)], "zero") for head in range(2)]
    edits = [tidy[0], *in_place(model, function), tidy[1]]
    found = sinklens.evaluate(model, prompts, edits, metrics, batch_size=6, progress=False)
    wanted = plain_values(model, prompts, [None, *edits])
    names = {"sink_mass": "mass", "sink_rate": "rate", "position0_norm": "norm"}
    for row, metric in enumerate(metrics):
        clean, *edited = wanted[names.get(metric, metric)]
        torch.testing.assert_close(found.clean[row], clean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            found.values[:, row], torch.stack(edited), rtol=1e-5, atol=1e-5, equal_nan=True
        )
    if name == "llama":
        assert found.shortcuts["prefix"] and found.shortcuts["unembedding"]


@pytest.mark.parametrize("function", [push_and_return, push])
def test_a_free_site_edited_in_place_takes_every_shortcut(function: Any, boot_family: Boot) -> None:
    model, prompts = boot_family("llama"), random_prompts(5)
    names = [hook_name(site, 1) for site in ("resid_pre", "z", "k", "v", "mlp_out")]
    edits = [Intervention(name, "own", 1, [(name, function)]) for name in names]
    found = sinklens.evaluate(model, prompts, edits, ["loss"], batch_size=2, progress=False)
    assert all(found.shortcuts.values())
    wanted = plain_values(model, prompts, edits)["loss"]
    torch.testing.assert_close(found.values[:, 0], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("function", [push_and_return, push])
def test_an_edit_in_place_at_a_norm_is_not_lost(function: Any, boot_family: Boot) -> None:
    """TransformerLens takes the tensor it gets back for an unchanged one there."""
    model, prompts = boot_family("llama"), random_prompts(3)
    for name in ("blocks.1.ln1.hook_normalized", "blocks.1.ln2.hook_scale"):
        with pytest.warns(UserWarning, match="reconstructed"):
            values = [
                sinklens.evaluate(
                    model,
                    prompts,
                    [Intervention("own", "own", 1, [(name, hook)])],
                    ["loss"],
                    progress=False,
                ).values
                for hook in (function, pushed)
            ]
        torch.testing.assert_close(values[0], values[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("function", [push_and_return, push])
def test_an_edit_in_place_by_nothing_did_not_happen(function: Any, boot_family: Boot) -> None:
    model, prompts = boot_family("llama"), random_prompts(3)
    hooks = [(hook_name("residual", 1), partial(function, by=0.0))]
    nothing = Intervention("nothing", "residual", 1, hooks)
    with pytest.raises(sinklens.SinklensError, match="changed nothing"):
        sinklens.evaluate(model, prompts, [nothing], ["loss"], progress=False)


def test_in_place_under_inference_mode(boot_family: Boot) -> None:
    """Tensors made there have no counter of writes."""
    model, prompts = boot_family("llama"), random_prompts(3)
    for function in (push_and_return, push):
        edits = in_place(model, function)[:3]
        with torch.inference_mode():
            found = sinklens.evaluate(model, prompts, edits, ["loss"], progress=False)
        wanted = plain_values(model, prompts, edits)["loss"]
        torch.testing.assert_close(found.values[:, 0], wanted, rtol=1e-5, atol=1e-5)


def test_reading_under_an_edit_in_place(boot_family: Boot) -> None:
    model, prompts = boot_family("llama"), random_prompts(3)
    (name,) = (hook_name("residual", 0),)
    reads = [
        read_under(
            model,
            prompts,
            Intervention("own", "residual", 0, [(name, hook)]),
            ResidualNorms(model),
            last_layer=1,
        ).values.position0
        for hook in (push, pushed)
    ]
    torch.testing.assert_close(reads[0], reads[1])


def test_screening_estimates_edits_in_place(boot_family: Boot) -> None:
    """From one cache of clean activations, which none of them may write to."""
    model, prompts = boot_family("llama"), random_prompts(3)
    name = hook_name("residual", 1)
    estimates = [
        estimate(
            model,
            prompts,
            [Intervention(f"own {n}", "residual", 1, [(name, hook)]) for n in range(2)],
            METRICS["loss"],
        )
        for hook in (pushed, push, push_and_return)
    ]
    torch.testing.assert_close(estimates[0], estimates[1])
    torch.testing.assert_close(estimates[0], estimates[2])
    assert estimates[0].abs().min() > 0
