"""Bias constancy: a constant made by hand, uniform attention, and plain Hugging Face."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sinklens
from sinklens import SinklensError
from sinklens.core.errors import UsageError
from sinklens.experiments.sinks.bias_constancy import inconstancy, tag_share
from sinklens.models.prompts import random_prompts
from tests import families
from tests.measuring import values_of, with_prompts
from tests.reference import plain_hf


def run(model: Any, prompts: Any, **settings: Any) -> Any:
    settings = {"null_models": 0, "progress": False, **settings}
    return sinklens.run("bias_constancy", model, prompts, **settings)


def test_reads_made_by_hand() -> None:
    """A constant is constant; weights of 1 and 3 differ by half of their mean; opposite signs."""
    written = torch.tensor([[[3.0, 4.0]], [[3.0, 4.0]]])
    assert inconstancy(torch.full((2, 1, 4), 0.7), written).tolist() == [[0], [0]]
    weight = torch.tensor([[[1.0, 3.0]], [[1.0, 3.0]]])
    torch.testing.assert_close(inconstancy(weight, written), torch.full((2, 1), 0.5).double())
    turned = torch.tensor(
        [[[1.0, 0.0]], [[0.0, 1.0]]]
    )  # mean (0.5, 0.5): each as far as it is long
    torch.testing.assert_close(inconstancy(torch.ones(2, 1, 3), turned), torch.ones(2, 1).double())
    value = torch.tensor([[[0.0, 2.0]]])
    along = torch.tensor([[[[5.0, 1.0], [5.0, 2.0], [5.0, 6.0]]]])
    assert float(tag_share(along, value)) == pytest.approx(1)
    assert float(tag_share(along.flip(-1), value)) == pytest.approx(0)


def test_uniform_attention_reads_one_over_the_number_of_keys() -> None:
    model, prompts = with_prompts(families.uniform_llama(), n=3, length=16)
    result = run(model, prompts, draws=2, burn_in=4)
    weights = 1 / np.arange(5, 17)
    expected = np.abs(weights / weights.mean() - 1).mean()
    found = values_of(result, metric="inconstancy", condition="other_heads", against=None)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert "no head has a sink mass" in result.settings["left_out"]["constant"]


@pytest.mark.slow
@pytest.mark.parametrize("name", families.FAMILIES)
def test_every_family_works_or_says_why(name: str, boot_family: Any) -> None:
    model = boot_family(name)
    prompts = random_prompts(model, n=3, length=12)
    if name == "bert":
        with pytest.raises(SinklensError, match="input_dependence"):
            run(model, prompts)
        return
    result = run(model, prompts, draws=1, burn_in=2 if name in ("gemma2", "mistral") else 8)
    assert {row.metric for row in result.effects} >= {"inconstancy", "tag_share"}
    assert all(np.isfinite(row.value) for row in result.effects)
    assert result.summary and result.plot().data


def test_bad_input(boot_family: Any) -> None:
    model = boot_family("llama")
    with pytest.raises(UsageError, match="fewer than 2 queries"):
        run(model, random_prompts(model, n=2, length=8))
    with pytest.raises(UsageError, match="unknown head"):
        run(model, random_prompts(model, n=2, length=12), heads=("L9H0",))
    with pytest.raises(UsageError, match="at least 2"):
        run(model, random_prompts(model, n=2, length=8), burn_in=1)
    result = run(model, random_prompts(model, n=1, length=12), draws=0)
    assert {row.kind for row in result.effects} <= {"measurement", "treatment"}


@pytest.mark.heavy
def test_smollm2_agrees_with_plain_hugging_face(plain_smollm2: Any, smollm2_tokenizer: Any) -> None:
    """Reads as whole vectors in the stream, and both edits in plain attention."""
    model = sinklens.load(copy.deepcopy(plain_smollm2), tokenizer=smollm2_tokenizer)
    prompts = sinklens.prompts(model, n=2, length=16, bos=True)
    tokens = prompts.tokens
    result = run(model, prompts, draws=1)
    clean = plain_hf.run(plain_smollm2, tokens, plain_hf.Edit())
    layers = plain_smollm2.model.layers
    values: list[Tensor] = []
    handles = [
        la.self_attn.v_proj.register_forward_hook(lambda m, i, out: values.append(out[:, 0]))
        for la in layers
    ]
    with torch.no_grad():
        plain_smollm2(tokens, use_cache=False)
    for handle in handles:
        handle.remove()
    size = plain_smollm2.config.head_dim
    heads, groups = (
        getattr(plain_smollm2.config, f"num_{kind}_heads") for kind in ("attention", "key_value")
    )
    first = [v.unflatten(-1, (groups, size)).repeat_interleave(heads // groups, 1) for v in values]
    sink = torch.stack([p[:, :, 1:, 0].mean((0, 2)) for p in clean.pattern]) > 0.3
    constancy, shares = [], []
    for layer, pattern, value, z in zip(layers, clean.pattern, first, clean.z, strict=True):
        output = layer.self_attn.o_proj.weight.detach().T.unflatten(0, (heads, size))
        reads = torch.einsum("pht,phd,hdm->phtm", pattern[..., 8:, 0], value, output).double()
        mean = reads.mean((0, 2))
        away = (reads - mean[:, None]).norm(dim=-1).mean(-1) / mean.norm(dim=-1)
        constancy.append(away)
        centred = z[:, :, 8:] - z[:, :, 8:].mean(2, keepdim=True)
        unit = value / value.norm(dim=-1, keepdim=True)
        along = torch.einsum("phtd,phd->pht", centred, unit).square().sum(-1)
        shares.append(along / centred.square().sum((2, 3)))
    for metric, by_layer in (("inconstancy", constancy), ("tag_share", shares)):
        for group, chosen in (("sink_heads", sink), ("other_heads", ~sink)):
            expected = torch.stack(by_layer, 1)[:, chosen].mean(1)
            found = values_of(result, metric=metric, condition=group, against=None)
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)

    def drop(layer: int, pattern: Tensor) -> Tensor:
        edited = pattern.clone()
        edited[:, sink[layer], 1:, 0] = 0
        return edited

    def add(layer: int, z: Tensor, rows: Tensor) -> Tensor:
        weight = clean.pattern[layer][:, :, 1:, 0].mean(-1, keepdim=True)
        edited, bias = z.clone(), (weight * first[layer]).mean(0)
        edited[:, sink[layer], 1:] += bias[sink[layer]][:, None]
        return edited

    def remove(layer: int, z: Tensor, rows: Tensor) -> Tensor:
        unit = torch.nn.functional.normalize(first[layer].mean(0), dim=-1)[:, None]
        edited, away = z.clone(), z - (z * unit).sum(-1, keepdim=True) * unit
        edited[:, sink[layer], 1:] = away[:, sink[layer], 1:]
        return edited

    edits = {
        "constant": plain_hf.Edit(pattern=drop, z=add),
        "no_direction": plain_hf.Edit(z=remove),
    }
    for name, edit in edits.items():
        after = plain_hf.compare(plain_smollm2, tokens, edit)
        for metric in ("loss", "kl"):
            found = values_of(result, metric=metric, condition=name, kind="treatment")
            np.testing.assert_allclose(found, after[metric].value, rtol=1e-3, atol=1e-3)
