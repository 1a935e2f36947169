"""Rope phase: planes and blocks made by hand, numpy, and plain Hugging Face."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import sinklens
from sinklens import SinklensError
from sinklens.core.errors import UsageError
from sinklens.experiments.position import _harmonics, _signals, rope_phase
from sinklens.models.prompts import random_prompts
from sinklens.runner import registry
from sinklens.runner.run import Run
from tests import families
from tests.measuring import values_of
from tests.reference import plain_hf

LENGTH = 12


def run(model: Any, prompts: Any, **settings: Any) -> Any:
    settings = {"null_models": 0, "progress": False, **settings}
    return sinklens.run("rope_phase", model, prompts, **settings)


def over_angles(function: Any, x: Tensor, count: int) -> Tensor:
    """What a block puts out for its turned input, `[angle, 1, 1, 1, entry]`."""
    order = torch.arange(len(x))
    turned = [
        math.cos(angle) * x + math.sin(angle) * _harmonics.quarter_turn(x, order)
        for angle in (2 * math.pi * step / count for step in range(count))
    ]
    return torch.stack([function(one) for one in turned])[:, None, None, None]


def test_harmonics_of_blocks_made_by_hand() -> None:
    """None of a linear block; all of a square; of an absolute value as its series says."""
    x = torch.randn(6, generator=torch.Generator().manual_seed(0)).double()
    weight = torch.randn(6, 6, generator=torch.Generator().manual_seed(1)).double()
    linear = over_angles(lambda one: weight @ one + 3, x, 8)
    assert float(_harmonics.share_above(linear)) == pytest.approx(0, abs=1e-12)
    square = over_angles(lambda one: (weight @ one) ** 2, x, 8)
    assert float(_harmonics.share_above(square)) == pytest.approx(1)
    # relu(cos) = 1/pi + cos / 2 + (2 / 3 pi) cos 2 - (2 / 15 pi) cos 4 + ...
    plane = torch.tensor([1.0, 0.0]).double()
    found = float(_harmonics.share_above(over_angles(lambda one: one.clamp_min(0), plane, 256)))
    even = sum((2 / (math.pi * (n**2 - 1))) ** 2 for n in range(2, 128, 2))
    assert found == pytest.approx(even / (even + 0.25), abs=1e-4)
    turned = _harmonics.quarter_turn(x, torch.arange(6))
    torch.testing.assert_close(_harmonics.quarter_turn(turned, torch.arange(6)), -x)


def test_phases_made_by_hand() -> None:
    """Phases that agree are aligned; sharper rows with more aligned keys correlate."""
    form = _signals.extraction(12, 6, True, windows=(), near=0, wavelets=False)
    logits = torch.linspace(0.5, 3, 6).double()[:, None] * (torch.arange(12) == 2)
    visible = torch.arange(12) <= torch.tensor(form.queries)[:, None]
    rows = logits.masked_fill(~visible, -torch.inf).softmax(-1)[None, None]
    found = rope_phase.aligned(rows, (logits / 4)[None, None], form)
    entropy = [stats.entropy(row[: q + 1]) for row, q in zip(rows[0, 0], form.queries, strict=True)]
    sharp = [1 - e / math.log(q + 1) for e, q in zip(entropy, form.queries, strict=True)]
    assert float(found["sharpness"]) == pytest.approx(np.mean(sharp))
    assert float(found["alignment"]) == pytest.approx(float(logits[:, 2].mean()) / 4)
    expected = stats.spearmanr(logits[:, 2], sharp).statistic
    assert float(found["alignment_sharpness"]) == pytest.approx(expected)
    same = rope_phase.aligned(rows, torch.ones_like(rows), form)
    assert bool(same["alignment_sharpness"].isnan())
    own = torch.randn(1, 1, 6, 12, generator=torch.Generator().manual_seed(2)).double()
    shifted = 0.3 * own + torch.arange(6).double()[:, None]
    assert float(rope_phase.slope_within(own, shifted, visible)) == pytest.approx(0.3)


def test_one_token_is_a_shift_of_queries() -> None:
    """A plane turned by its frequency is that of the next position."""
    frequency = torch.tensor([1.0, 0.1]).double()
    start = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.complex128)
    at = torch.arange(6).double()[:, None, None]
    planes = start.T[None] * torch.exp(1j * at * frequency)
    queries = torch.cat([planes.real, planes.imag], -1)[None]
    angles = {"first": [0, 1], "second": [2, 3], "angles": frequency}
    turned = rope_phase.turn_planes(queries, None, **angles)
    torch.testing.assert_close(turned[:, :-1], queries[:, 1:])


@pytest.mark.slow
def test_a_linear_block_has_no_harmonics() -> None:
    plain = families.neox()
    for layer in plain.gpt_neox.layers:
        layer.mlp.act = torch.nn.Identity()
    layers = [0, 1]
    model = sinklens.load(plain, tokenizer=families.tiny_tokenizer())
    declared = registry.get("rope_phase")
    made = Run(declared, model, random_prompts(model, n=2, length=LENGTH), declared.config())
    found = _harmonics.with_bar(made, layers)
    assert set(found) == {"entries", "random_entries"}
    for share in found.values():
        assert bool((share < 1e-9).all())


@pytest.mark.slow
@pytest.mark.parametrize("name", families.FAMILIES)
def test_every_family_works_or_says_why(name: str, boot_family: Any) -> None:
    model = boot_family(name)
    prompts = random_prompts(model, n=3, length=LENGTH)
    settings = {"draws": 1, "queries": 6, "angles": 4}
    if name not in ("llama", "gemma2", "mistral"):
        with pytest.raises(SinklensError, match="no rotary positions"):
            run(model, prompts, **settings)
        return
    result = run(model, prompts, **settings)
    assert all(np.isfinite(row.value) for row in result.effects)
    assert result.summary and result.plot().data
    assert {row.condition for row in result.effects if row.kind == "treatment"} == {
        "one_token",
        "common",
    }


@pytest.mark.slow
def test_bad_input(boot_family: Any) -> None:
    model = boot_family("llama")
    with pytest.raises(UsageError, match="at least 12 tokens"):
        run(model, random_prompts(model, n=2, length=8))
    for wrong in ({"angle": 0.0}, {"angles": 2}, {"queries": 1}):
        with pytest.raises(UsageError, match="must be"):
            run(model, random_prompts(model, n=2, length=LENGTH), **wrong)
    result = run(model, random_prompts(model, n=1, length=LENGTH), draws=0, angles=4)
    assert {row.kind for row in result.effects} <= {"measurement", "treatment"}


@pytest.mark.heavy
def test_smollm2_agrees_with_plain_code(plain_smollm2: Any, smollm2_tokenizer: Any) -> None:
    """Alignment and harmonics from plain projections; turned queries in plain attention."""
    model = sinklens.load(copy.deepcopy(plain_smollm2), tokenizer=smollm2_tokenizer)
    prompts = sinklens.prompts(model, n=2, length=16, bos=True)
    tokens = prompts.tokens
    result = run(model, prompts, draws=1, angles=4, angle=0.5)
    clean = plain_hf.run(plain_smollm2, tokens, plain_hf.Edit())
    config = plain_smollm2.config
    size, groups = config.head_dim, config.num_attention_heads // config.num_key_value_heads
    frequency = config.rope_parameters["rope_theta"] ** (-np.arange(0, size, 2) / size)
    at = np.exp(1j * np.arange(16)[:, None] * frequency)
    kept: dict[str, list[Tensor]] = {"q": [], "k": [], "in": [], "out": []}
    handles = []
    for layer in plain_smollm2.model.layers:
        for name, module in (("q", layer.self_attn.q_proj), ("k", layer.self_attn.k_proj)):
            handles.append(
                module.register_forward_hook(lambda m, i, out, name=name: kept[name].append(out))
            )
        handles.append(layer.mlp.register_forward_hook(lambda m, i, out: kept["in"].append(i[0])))
    with torch.no_grad():
        plain_smollm2(tokens, use_cache=False)
    for handle in handles:
        handle.remove()
    alignment, shares = [], []
    for number, pattern in enumerate(clean.pattern):
        sides = []
        for name in ("q", "k"):
            entries = kept[name][number].unflatten(-1, (-1, size)).transpose(1, 2).double().numpy()
            sides.append((entries[..., : size // 2] + 1j * entries[..., size // 2 :]) * at)
        query, key = sides[0], sides[1].repeat(groups, 1)
        ratio = np.einsum("bhip,bhjp->bhij", query, key.conj()).real / np.einsum(
            "bhip,bhjp->bhij", abs(query), abs(key)
        )
        strongest = pattern.numpy()[:, :, 7:].argmax(-1)[..., None]
        alignment.append(np.take_along_axis(ratio[:, :, 7:], strongest, -1)[..., 0].mean(-1))
        x = kept["in"][number][:, -8:]
        half = x.shape[-1] // 2
        quarter = torch.cat([-x[..., half:], x[..., :half]], -1)
        with torch.no_grad():
            outputs = [
                plain_smollm2.model.layers[number].mlp(math.cos(a) * x + math.sin(a) * quarter)
                for a in (0, math.pi / 2, math.pi, 3 * math.pi / 2)
            ]
        modes = np.abs(np.fft.fft(torch.stack(outputs).double().numpy(), axis=0)) ** 2
        power = modes.sum((2, 3))
        shares.append(power[2] / (power[1] + power[2] + power[3]))
    by_head = result.arrays["alignment"].values.numpy()
    np.testing.assert_allclose(by_head, np.stack(alignment, 1).mean(0), rtol=1e-3, atol=1e-3)
    found = result.arrays["harmonics"].values.numpy()
    np.testing.assert_allclose(found, np.stack(shares, 1).mean(0), rtol=1e-3, atol=1e-3)
    turned = copy.deepcopy(plain_smollm2)
    cos, sin = math.cos(0.5), math.sin(0.5)
    with torch.no_grad():
        for layer in turned.model.layers:
            weight = layer.self_attn.q_proj.weight.view(-1, size, config.hidden_size)
            one, other = weight[:, : size // 2].clone(), weight[:, size // 2 :].clone()
            weight[:, : size // 2] = one * cos - other * sin
            weight[:, size // 2 :] = one * sin + other * cos
    after = plain_hf.run(turned, tokens, plain_hf.Edit())
    losses = torch.nn.functional.cross_entropy(
        after.logits[:, 1:-1].transpose(1, 2), tokens[:, 2:], reduction="none"
    ).mean(1)
    got = values_of(result, metric="loss", condition="common", kind="treatment")
    np.testing.assert_allclose(got, losses, rtol=1e-3, atol=1e-3)
