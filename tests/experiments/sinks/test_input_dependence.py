"""Input dependence: patterns that no prompt changes, hand-made ones, and plain Hugging Face."""

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
from sinklens.experiments.sinks._patterns import distance, overlap
from sinklens.hooks.matching import derangement
from sinklens.models.prompts import random_prompts
from tests import families
from tests.measuring import values_of, with_prompts
from tests.reference import plain_hf

LAYERS, HEADS = families.N_LAYERS, families.N_HEADS


def run(model: Any, prompts: Any, **settings: Any) -> Any:
    settings = {"null_models": 0, "random_weights": False, "progress": False, **settings}
    return sinklens.run("input_dependence", model, prompts, **settings)


def test_hand_made_patterns() -> None:
    one = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [0, 0, 1]])
    other = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0.25, 0.5, 0.25]])
    assert float(overlap(one, other)) == pytest.approx((0.5 + 0.25) / 2)
    assert float(distance(one, other)) == pytest.approx(0.5 + 2 * 0.25**2 * 1 + 0.25 + 0.5)
    assert float(overlap(one, one)) == 1 and float(distance(one, one)) == 0


def test_patterns_that_no_prompt_changes() -> None:
    """All tokens hold the same large entry, so that queries and keys depend on position alone."""
    plain = families.llama()
    with torch.no_grad():
        plain.model.embed_tokens.weight[:, 3] = 1e4
    model, prompts = with_prompts(plain)
    result = run(model, prompts, draws=2)
    for kind in ("measurement", "null"):
        row = result.find(metric="overlap", condition="all", kind=kind)
        assert row.value == pytest.approx(1, abs=0.01) and row.baseline < 0.9
        row = result.find(metric="explained", condition="all", kind=kind)
        assert row.value == pytest.approx(1, abs=0.01)
    effects = {
        row.condition: row.effect
        for row in result.effects
        if (row.metric, row.kind) == ("kl", "treatment")
    }
    assert 0 <= effects["mean:all"] < 0.01 * effects["uniform:all"]


def test_uniform_attention_is_its_own_mean() -> None:
    """Nothing is to be explained, and writing what is there is no error."""
    model, prompts = with_prompts(families.uniform_llama())
    result = run(model, prompts, draws=1)
    row = result.find(metric="overlap", condition="all", against=None)
    assert row.value == pytest.approx(1) and row.baseline == pytest.approx(1)
    for name, moved in (("mean:all", False), ("uniform:all", False), ("sink_only:all", True)):
        found = result.find(metric="loss", condition=name, kind="treatment").effect
        assert (abs(found) > 1e-3) == moved, name
    assert all(np.isfinite(row.value) for row in result.effects)


@pytest.mark.slow
@pytest.mark.parametrize("name", families.FAMILIES)
def test_every_family_works_or_says_why(name: str, boot_family: Any) -> None:
    model = boot_family(name)
    result = run(model, random_prompts(model, n=3, length=8), draws=1)
    assert result.find(metric="overlap", condition="all", against=None).n_prompts == 3
    edits = {row.condition for row in result.effects if row.kind == "treatment"}
    if name in ("opt", "bert"):
        assert not edits and "hook_pattern" in result.settings["left_out"]["mean:all"]
    else:
        assert {"mean:all", "sink_only:all", "uniform:all"} <= edits
    assert len(result.summary) <= 12 and result.plot().data


def test_bad_input(boot_family: Any) -> None:
    model = boot_family("llama")
    with pytest.raises(UsageError, match="at least 2 prompts"):
        run(model, random_prompts(model, n=1, length=8))
    with pytest.raises(UsageError, match="at least 3 tokens"):
        run(model, random_prompts(model, n=2, length=2))
    with pytest.raises(UsageError, match="did you mean mean:all"):
        run(model, random_prompts(model, n=2, length=8), conditions=("mean:al",))
    with pytest.raises(SinklensError, match="fewer or shorter prompts"):
        run(model, random_prompts(model, n=4, length=8), memory=1000)
    result = run(model, random_prompts(model, n=2, length=8), draws=0)
    assert {row.kind for row in result.effects} == {"measurement", "treatment"}


@pytest.mark.heavy
def test_smollm2_agrees_with_plain_hugging_face(plain_smollm2: Any, smollm2_tokenizer: Any) -> None:
    model = sinklens.load(copy.deepcopy(plain_smollm2), tokenizer=smollm2_tokenizer)
    prompts = sinklens.prompts(model, n=3, length=20, bos=True)
    tokens = prompts.tokens
    names = ("mean:sink", "sink_only:all", "uniform:others")
    result = run(model, prompts, draws=1, conditions=names)
    patterns = torch.stack(plain_hf.run(plain_smollm2, tokens, plain_hf.Edit()).pattern, 1)
    mean = (patterns.sum(0) - patterns) / 2
    uniform = torch.ones(20, 20).tril() / torch.arange(1, 21)[:, None]
    order = derangement(tokens, 0, 0)
    common = torch.minimum(patterns, mean)[..., 1:, :].sum(-1).mean(-1)
    np.testing.assert_allclose(result.arrays["overlap"].values, common.mean(0), atol=1e-3)
    sink = patterns[..., 1:, 0].mean((0, 3)) > 0.3
    for group, chosen in (("all", sink | True), ("sink", sink), ("others", ~sink)):
        found = values_of(result, metric="overlap", condition=group, against=None)
        np.testing.assert_allclose(found, common[:, chosen].mean(1), atol=1e-3)
        for against, other in ((None, mean), ("another_prompt", patterns[order])):
            left, whole = (
                ((patterns - b) ** 2)[..., 1:, :].sum((-2, -1))[:, chosen].sum(1)
                for b in (other, uniform)
            )
            found = [
                row
                for row in result.effects
                if (row.metric, row.condition, row.against) == ("explained", group, against)
                and row.kind != "contrast"
            ]
            (row,) = found
            values = result.per_prompt["value"][result.effects.index(row)].numpy()
            np.testing.assert_allclose(values, 1 - left / whole, atol=1e-3)
    first = torch.zeros(20, 20)
    first[:, 0] = 1
    written = {
        ("mean:sink", None): (sink, mean),
        ("sink_only:all", None): (sink | True, first.expand_as(mean)),
        ("uniform:others", None): (~sink, uniform.expand_as(mean)),
        ("mean:sink", "another_prompt"): (sink, patterns[order]),
    }
    for (name, against), (chosen, values) in written.items():
        edit = plain_hf.Edit(pattern=replacing(chosen, values))
        expected = plain_hf.compare(plain_smollm2, tokens, edit)
        kind = "control" if against else "treatment"
        for metric in ("loss", "kl"):
            found = values_of(result, metric=metric, condition=name, kind=kind, against=against)
            np.testing.assert_allclose(found, expected[metric].value, atol=1e-3, rtol=1e-3)


def replacing(chosen: Tensor, values: Tensor) -> Any:
    """Writes patterns `[prompt, layer, head, query, key]` of chosen heads, but for query 0."""

    def edit(layer: int, pattern: Tensor) -> Tensor:
        edited, heads = pattern.clone(), chosen[layer]
        edited[:, heads, 1:] = values[:, layer][:, heads, 1:]
        return edited

    return edit
