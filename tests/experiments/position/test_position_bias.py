"""Position bias: uniform attention in closed form, and rollouts in plain Hugging Face and numpy."""

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
from sinklens.experiments.position._rollout import gap, step, thirds
from sinklens.models.prompts import random_prompts
from tests import families
from tests.measuring import values_of, with_prompts
from tests.reference import plain_hf


def run(model: Any, prompts: Any, **settings: Any) -> Any:
    settings = {"null_models": 0, "progress": False, **settings}
    return sinklens.run("position_bias", model, prompts, **settings)


def two_uniform_layers(length: int, residual: float) -> np.ndarray:
    """The last row of (1 - r) U + r I, squared: with harmonic numbers, U^2_ij = (H_i - H_j) / n."""
    harmonic = np.array([sum(1 / k for k in range(1, n + 1)) for n in range(length + 1)])
    twice = (harmonic[length] - harmonic[:length]) / length
    own = np.eye(length)[-1]
    return (1 - residual) ** 2 * twice + 2 * residual * (1 - residual) / length + residual**2 * own


@pytest.mark.parametrize("residual", [0.0, 0.5, 0.8])
def test_two_uniform_layers_are_harmonic_numbers(residual: float) -> None:
    length = 9
    uniform = torch.ones(length, length).tril() / torch.arange(1, length + 1)[:, None]
    rolled = step(step(torch.eye(length), uniform, residual), uniform, residual)
    np.testing.assert_allclose(rolled[-1], two_uniform_layers(length, residual), atol=1e-6)


def test_shares_made_by_hand() -> None:
    assert thirds(7).sum(-1).tolist() == [3, 2, 2]
    profile = torch.tensor([0.5, 0.1, 0.1, 0.1, 0.05, 0.15])
    assert float(gap(profile, 0)) == pytest.approx(0.6 - 0.2)
    assert float(gap(profile, 2)) == pytest.approx(0, abs=1e-7)
    assert float(gap(profile, 0, [0])) == pytest.approx((0.1 - 0.2) / 0.5)
    assert bool(gap(torch.tensor([1.0, 0, 0, 0, 0, 0]), 0, [0]).isnan())


def test_uniform_attention_is_the_mask_alone() -> None:
    """Each share is that of the null, and of the closed form; so is it without key 0."""
    model, prompts = with_prompts(families.uniform_llama(), n=3, length=12)
    result = run(model, prompts, draws=1)
    for row in result.effects:
        if row.metric in ("share", "gap") and row.against is None:
            assert row.effect == pytest.approx(0, abs=1e-6), row.condition
    for suffix, residual in (("half", 0.5), ("no_residual", 0.0)):
        found = values_of(result, metric="share", condition=f"position0:{suffix}", against=None)
        np.testing.assert_allclose(found, two_uniform_layers(12, residual)[0], atol=1e-6)
    said = [line for line in result.summary if "the mask alone gives 100% of it" in line]
    assert said or "all of it" in " ".join(result.summary)
    assert any("is the mask's" in line for line in result.summary)


@pytest.mark.slow
@pytest.mark.parametrize("name", families.FAMILIES)
def test_every_family_works_or_says_why(name: str, boot_family: Any) -> None:
    model = boot_family(name)
    prompts = random_prompts(model, n=3, length=12)
    if name == "bert":
        with pytest.raises(SinklensError, match="needs a causal model"):
            run(model, prompts)
        return
    result = run(model, prompts, draws=1)
    assert all(np.isfinite(row.value) for row in result.effects)
    shares = {row.condition for row in result.effects if row.metric == "share"}
    assert shares >= {"position0", "position0:half", "position0:no_residual"}
    assert ("drop_edge" in result.settings["left_out"]) == (name == "opt")
    assert result.arrays["position0"].values[-1] == pytest.approx(
        result.find(metric="share", condition="position0", against=None).value, abs=1e-6
    )
    assert len(result.summary) <= 12 and result.plot().data


def test_bad_input(boot_family: Any) -> None:
    model = boot_family("llama")
    with pytest.raises(UsageError, match="at least 6 tokens"):
        run(model, random_prompts(model, n=2, length=5))
    with pytest.raises(UsageError, match="did you mean"):
        run(model, random_prompts(model, n=2, length=8), residual="norm")
    result = run(model, random_prompts(model, n=1, length=12), draws=0)
    assert {row.kind for row in result.effects} == {"measurement", "treatment"}
    assert any("no verdict" in line for line in result.summary)
    result = run(model, random_prompts(model, n=2, length=6), draws=1)
    assert "control positions leave none" in result.settings["left_out"]["early_gap"]


@pytest.mark.heavy
def test_smollm2_agrees_with_plain_hugging_face(plain_smollm2: Any, smollm2_tokenizer: Any) -> None:
    """Rollouts per token, weights of the residual read at the blocks, and the dropped edge."""
    model = sinklens.load(copy.deepcopy(plain_smollm2), tokenizer=smollm2_tokenizer)
    length = 15
    prompts = sinklens.prompts(model, n=2, length=length, bos=True)
    result = run(model, prompts, draws=1)
    (place,) = result.draws["control_positions"]
    clean = rolled_out(plain_smollm2, prompts.tokens, plain_hf.Edit())
    for weighting, suffix in (("norms", ""), ("half", ":half"), ("none", ":no_residual")):
        shares = clean[weighting]
        expected = {f"position0{suffix}": ("share", shares[:, -1, 0])}
        first, middle, last = (shares[:, -1, 5 * n : 5 * n + 5].sum(1) for n in range(3))
        expected[f"first_middle{suffix}"] = "gap", first - middle
        expected[f"last_middle{suffix}"] = "gap", last - middle
        for condition, (metric, values) in expected.items():
            found = values_of(result, metric=metric, condition=condition, against=None)
            np.testing.assert_allclose(found, values, atol=1e-3, err_msg=condition)
    by_depth, profile = (result.arrays[name].values for name in ("position0", "profile"))
    np.testing.assert_allclose(by_depth, clean["norms"][:, :, 0].mean(0), atol=1e-3)
    np.testing.assert_allclose(profile, clean["norms"][:, -1].mean(0), atol=1e-3, rtol=1e-3)

    def drop(layer: int, pattern: Tensor, key: int) -> Tensor:
        edited = pattern.clone()
        edited[:, :, key + 1 :] = plain_hf.drop_edge(pattern[:, :, key + 1 :], key, normalise=True)
        return edited

    for key, kind in ((0, "treatment"), (place, "control")):
        edit = plain_hf.Edit(pattern=lambda layer, pattern, key=key: drop(layer, pattern, key))
        profile = rolled_out(plain_smollm2, prompts.tokens, edit)["norms"][:, -1].copy()
        if key == 0:
            without = profile[:, 1:5].sum(1) - profile[:, 5:10].sum(1)
            named = {"metric": "gap", "condition": "first_middle:edge_dropped"}
            np.testing.assert_allclose(values_of(result, **named), without, atol=1e-3)
            after = plain_hf.compare(plain_smollm2, prompts.tokens, edit)
            for metric in ("loss", "kl"):
                found = values_of(result, metric=metric, kind="treatment")
                np.testing.assert_allclose(found, after[metric].value, rtol=1e-3, atol=1e-3)
        profile[:, [0, place]] = 0
        profile /= profile.sum(1, keepdims=True)
        found = values_of(result, metric="early_gap", kind=kind)
        expected_gap = profile[:, :5].sum(1) - profile[:, 5:10].sum(1)
        np.testing.assert_allclose(found, expected_gap, atol=1e-3)


def rolled_out(plain: Any, tokens: Tensor, edit: plain_hf.Edit) -> dict[str, np.ndarray]:
    """By weight of the residual the last query's shares, `[prompt, layer, key]`."""
    entered: list[np.ndarray] = []
    added: list[np.ndarray] = []
    handles = []
    for layer in plain.model.layers:
        handles.append(
            layer.register_forward_pre_hook(
                lambda module, args: entered.append(np.linalg.norm(args[0].numpy(), axis=-1))
            )
        )
        handles.append(
            layer.self_attn.register_forward_hook(
                lambda module, args, out: added.append(np.linalg.norm(out[0].numpy(), axis=-1))
            )
        )
    patterns = plain_hf.run(plain, tokens, edit).pattern
    for handle in handles:
        handle.remove()
    identity = np.eye(tokens.shape[1])
    found = {}
    for weighting in ("norms", "half", "none"):
        rolled, rows = np.tile(identity, (len(tokens), 1, 1)), []
        for pattern, x, a in zip(patterns, entered, added, strict=True):
            shares = (x / (x + a))[..., None]
            residual = {"norms": shares, "half": 0.5, "none": 0.0}[weighting]
            mixed = (1 - residual) * pattern.mean(1).double().numpy() + residual * identity
            rolled = mixed @ rolled
            rows.append(rolled[:, -1])
        found[weighting] = np.stack(rows, 1)
    return found
