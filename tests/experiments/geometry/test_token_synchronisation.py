"""Token synchronisation: states made by hand, rotary positions without BOS, plain Hugging Face."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sinklens
from sinklens import SinklensError
from sinklens.core.errors import UsageError
from sinklens.experiments.geometry._states import collapse_distance, mean_cosine, share
from sinklens.models.prompts import random_prompts
from tests import families
from tests.measuring import values_of, with_prompts
from tests.reference import plain_hf

CONDITIONS = ("drop_edge", "bos_mean", "without_bos")


def run(model: Any, prompts: Any, **settings: Any) -> Any:
    settings = {"null_models": 0, "random_weights": False, "progress": False, **settings}
    return sinklens.run("token_synchronisation", model, prompts, **settings)


def test_states_made_by_hand() -> None:
    """All alike, orthogonal, opposite, all 0."""
    alike = torch.tensor([[[3.0, 4.0, 0.0]] * 4])
    apart = torch.eye(3)[None]
    opposite = torch.tensor([[[1.0, 0], [-5, 0]]])
    states = (alike, apart, opposite, torch.zeros(1, 4, 3))
    assert [float(mean_cosine(one)) for one in states] == pytest.approx([1, 0, -1, 0], abs=1e-6)
    collapses = [share(collapse_distance(one), one.flatten(1).norm(dim=1)) for one in states]
    opposed = (18 / 26) ** 0.5  # both are 3 from their mean of -2
    assert [float(one) for one in collapses] == pytest.approx([0, (2 / 3) ** 0.5, opposed, 0])


def test_the_null_is_that_of_random_states_of_the_same_norms() -> None:
    random = np.random.default_rng(0)
    norms = np.array([30.0, 1, 2, 3, 1, 2])
    drawn = random.standard_normal((20_000, 6, 40))
    drawn *= (norms / np.linalg.norm(drawn, axis=-1))[..., None]
    states = torch.from_numpy(drawn)
    assert float(mean_cosine(states).mean()) == pytest.approx(0, abs=1e-3)
    squares = (collapse_distance(states) ** 2).mean() / (norms**2).sum()
    assert float(squares) == pytest.approx(1 - 1 / 6, abs=1e-3)


def test_dropping_the_edge_is_removing_bos_where_positions_are_relative() -> None:
    result = run(*with_prompts(families.llama()), draws=1)
    found = {
        name: values_of(result, metric="spread", condition=name, kind="treatment")
        for name in CONDITIONS
    }
    np.testing.assert_allclose(found["drop_edge"], found["without_bos"], rtol=1e-4)
    assert np.abs(found["bos_mean"] / found["drop_edge"] - 1).min() > 1e-4
    curve = result.arrays["spread"].values
    assert bool((curve[0] == 0).all()) and bool((curve[1:] > 0).all())


def test_nothing_spreads_without_attention() -> None:
    plain = families.llama()
    with torch.no_grad():
        for layer in plain.model.layers:
            layer.self_attn.o_proj.weight.zero_()
    result = run(*with_prompts(plain), draws=1, metrics=("kl",))
    assert "drop_edge" in result.settings["left_out"]  # an edit of patterns takes no effect
    for name in ("bos_mean", "without_bos"):
        assert result.find(metric="spread", condition=name, kind="treatment").value == 0
    assert result.find(metric="spread", condition="one_word").value == 0
    assert result.find(metric="cosine", condition="bos_mean", kind="treatment").effect == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", families.FAMILIES)
def test_every_family_works_or_says_why(name: str, boot_family: Any) -> None:
    model = boot_family(name)
    result = run(model, random_prompts(model, n=3, length=10, bos=True), draws=1, words=1)
    edits = {row.condition for row in result.effects if row.kind == "treatment"}
    if name in ("opt", "bert"):
        assert "hook_pattern" in result.settings["left_out"]["drop_edge"]
        assert {"bos_mean", "without_bos"} <= edits
    else:
        assert set(CONDITIONS) <= edits
    assert result.findings["sinks"] == ([0, 9] if name == "bert" else [0])
    assert all(np.isfinite(row.value) for row in result.effects)
    assert len(result.summary) <= 12 and result.plot().data


def test_bad_input(boot_family: Any) -> None:
    model = boot_family("llama")
    with pytest.raises(UsageError, match="at least 6 tokens"):
        run(model, random_prompts(model, n=2, length=5))
    with pytest.raises(SinklensError, match="fewer or shorter prompts"):
        run(model, random_prompts(model, n=4, length=8), memory=1000)
    with pytest.raises(UsageError, match="words must be at least 1"):
        run(model, random_prompts(model, n=2, length=8), words=0)
    plain = random_prompts(model, n=2, length=8, bos=False)
    with pytest.raises(SinklensError, match="do not begin with BOS"):
        run(model, plain, conditions=("without_bos",))
    result = run(model, plain, draws=1)
    assert set(result.settings["left_out"]) >= {"bos_mean", "without_bos"}
    one = run(model, random_prompts(model, n=1, length=6, bos=True), draws=1, words=1)
    assert all(np.isfinite(row.value) and row.ci_low is None for row in one.effects)
    none = run(model, random_prompts(model, n=2, length=8, bos=True), draws=0)
    assert {row.kind for row in none.effects} == {"measurement", "treatment"}


@pytest.mark.heavy
def test_smollm2_agrees_with_plain_hugging_face(plain_smollm2: Any, smollm2_tokenizer: Any) -> None:
    """Cosines and collapse at every depth, and the spread with and without the sink's edge."""
    model = sinklens.load(copy.deepcopy(plain_smollm2), tokenizer=smollm2_tokenizer)
    prompts = sinklens.prompts(model, n=2, length=12, bos=True)
    chosen = ("drop_edge", "without_bos")
    result = run(model, prompts, draws=1, words=1, conditions=chosen, metrics=("loss",))
    tokens, position = prompts.tokens, result.findings["changed_position"]
    close = partial(np.testing.assert_allclose, atol=1e-3, rtol=1e-3)

    clean = states(plain_smollm2, tokens)
    for place, part in enumerate((clean, clean[:, :, 1:])):
        cosine, collapse = alike(part)
        close(result.arrays["cosine"].values[:, place], cosine.mean(0))
        close(result.arrays["collapse"].values[:, place], collapse.mean(0))
        name = ("all", "without_sinks")[place]
        close(values_of(result, metric="cosine", condition=name), cosine[:, 1:].mean(1))
        close(values_of(result, metric="collapse", condition=name), collapse[:, 1:].mean(1))

    (words,) = result.draws["changed_tokens"]
    other = tokens.clone()
    other[:, position] = torch.tensor(words)
    assert bool((other != tokens).sum(1).eq(1).all())
    dropped = partial(plain_hf.drop_edge, key=0, normalise=True)

    def edit(layer: int, pattern: Tensor) -> Tensor:
        edited = pattern.clone()
        edited[:, :, 1:] = dropped(pattern[:, :, 1:])
        return edited

    both = {
        "one_word": (clean, states(plain_smollm2, other)),
        "drop_edge": tuple(states(plain_smollm2, t, edit) for t in (tokens, other)),
        "without_bos": tuple(states(plain_smollm2, t[:, 1:]) for t in (tokens, other)),
    }
    for name, (before, after) in both.items():
        first = position + 1 - (name == "without_bos")
        moved = np.linalg.norm(after - before, axis=-1)[:, :, first:]
        relative = (moved / np.linalg.norm(before, axis=-1)[:, :, first:]).mean(-1)
        kind = "measurement" if name == "one_word" else "treatment"
        found = values_of(result, metric="spread", condition=name, kind=kind)
        close(found, relative[:, 1:].mean(1))
        number = result.arrays["spread"].labels("condition").index(name)
        close(result.arrays["spread"].values[:, number], relative.mean(0))
    cosine, _ = alike(both["drop_edge"][0][:, :, 1:])
    found = values_of(result, metric="cosine", condition="drop_edge", kind="treatment")
    close(found, cosine[:, 1:].mean(1))


def alike(part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosine by all pairs and distance from the mean, of `[prompt, site, pos, d_model]`."""
    unit = part / np.linalg.norm(part, axis=-1, keepdims=True)
    first, second = np.triu_indices(part.shape[2], 1)
    pairs = np.einsum("psid,psjd->psij", unit, unit)[:, :, first, second]
    away = part - part.mean(2, keepdims=True)
    return pairs.mean(-1), np.sqrt((away**2).sum((2, 3)) / (part**2).sum((2, 3)))


def states(model: Any, tokens: Tensor, edit: Callable[[int, Tensor], Tensor] | None = None) -> Any:
    """What enters each block and leaves the last, `[prompt, site, pos, d_model]`."""
    seen: list[Tensor] = []
    layers = model.model.layers
    handles = [la.register_forward_pre_hook(lambda m, args: seen.append(args[0])) for la in layers]
    handles.append(layers[-1].register_forward_hook(lambda m, args, out: seen.append(out)))
    given = plain_hf.Edit() if edit is None else plain_hf.Edit(pattern=edit)
    plain_hf.run(model, tokens, given)
    for handle in handles:
        handle.remove()
    return torch.stack(seen, 1).double().numpy()
