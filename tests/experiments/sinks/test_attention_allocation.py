"""Attention allocation: rows made by hand, uniform attention, a mute sink, plain Hugging Face."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import sinklens
from sinklens.core.errors import UsageError
from sinklens.experiments.sinks._allocation import (
    effective_keys,
    kinds_of_keys,
    kinds_of_rows,
    remove_and_rescale,
    remove_mass,
)
from sinklens.models.prompts import random_prompts
from tests import families
from tests.measuring import values_of, with_prompts
from tests.reference import plain_hf

PARKED, DIAGONAL, SPREAD = range(3)
PAIRS = ("parked:spread", "diagonal:spread", "parked:diagonal")
REMOVALS = ("parked", "diagonal", "spread", "parked:renormalised", *PAIRS)


def run(model: Any, prompts: Any, **settings: Any) -> Any:
    settings = {"null_models": 0, "random_weights": False, "progress": False, **settings}
    return sinklens.run("attention_allocation", model, prompts, **settings)


def test_rows_made_by_hand() -> None:
    """One row of each kind; masses are removed in proportion, and no more than the other has."""
    pattern = torch.zeros(1, 1, 4, 4)
    pattern[0, 0] = torch.tensor(
        [[1.0, 0, 0, 0], [0.75, 0.25, 0, 0], [0.5, 0.5, 0, 0], [0.125, 0.375, 0.25, 0.25]]
    )
    masks = kinds_of_keys(4, (0,))
    assert (pattern * masks[:, None, None]).sum(-1)[:, 0, 0].tolist() == [
        [0, 0.75, 0.5, 0.125],
        [0, 0.25, 0, 0.25],
        [0, 0, 0.5, 0.625],
    ]
    edit = partial(remove_mass, pattern, None, masks=masks)
    parked = edit(kind=PARKED, beside=SPREAD)[0, 0]
    assert parked.tolist() == [
        [1, 0, 0, 0],
        [0.75, 0.25, 0, 0],
        [0, 0.5, 0, 0],
        [0, 0.375, 0.25, 0.25],
    ]
    spread = edit(kind=SPREAD, beside=PARKED)[0, 0]
    assert spread[2].tolist() == [0.5, 0, 0, 0]
    torch.testing.assert_close(spread[3], torch.tensor([0.125, 0.3, 0.2, 0.25]))
    assert edit(kind=DIAGONAL)[0, 0].diagonal().tolist() == [1, 0, 0, 0]
    moved = remove_and_rescale(pattern, None, masks=masks, kind=PARKED)[0, 0]
    torch.testing.assert_close(moved.sum(-1), torch.ones(4))
    torch.testing.assert_close(moved[3], torch.tensor([0, 3, 2, 2]) / 7)
    both_ends = kinds_of_keys(4, (0, 3))
    assert not both_ends[:, [0, 3]].any() and both_ends[PARKED, 1].tolist() == [1, 0, 0, 1]


def test_effective_numbers_and_kinds_made_by_hand() -> None:
    rows = torch.tensor([[0.25] * 4, [1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0.1, 0.1, 0, 0], [0.0] * 4])
    for number in effective_keys(rows):
        torch.testing.assert_close(number[:4], torch.tensor([4.0, 1, 2, 2]))
        assert bool(torch.isfinite(number).all())
    entropy, squares = effective_keys(torch.tensor([[0.5, 0.25, 0.25]]))
    assert float(entropy) == pytest.approx(2**1.5) and float(squares) == pytest.approx(8 / 3)
    # parked, diagonal, spread, first key, learned sink; then the share of keys that count.
    mass = torch.tensor([[0.6, 0.4, 0, 0.6, 0], [0.4, 0.3, 0.3, 0.4, 0], [0.2, 0.2, 0, 0.2, 0.6]])
    kinds = kinds_of_rows(mass[None, None], torch.tensor([[[0.1, 0.5, 0.9]]]))[0, 0]
    assert kinds.tolist() == [[1, 0, 0, 1], [0, 1, 0, 1], [1, 0, 0, 1]]
    assert kinds_of_rows(mass[None, None, 1:2], torch.tensor([[[0.6]]]))[0, 0, 0, 2] == 1


def test_uniform_attention_is_its_own_null() -> None:
    """Masses are harmonic numbers, all keys count, all rows are spread, permuted rows the same."""
    result = run(*with_prompts(families.uniform_llama()), draws=2, conditions=("parked",))
    keys = np.arange(2, 11)
    expected = {"parked": (1 / keys).mean(), "diagonal": (1 / keys).mean()}
    expected["spread"] = 1 - sum(expected.values())
    for name, value in expected.items():
        for kind in ("measurement", "null"):
            row = result.find(metric="mass", condition=name, kind=kind)
            assert row.value == pytest.approx(value, abs=1e-6)
            assert row.baseline == pytest.approx(value, abs=1e-6)
    for name in ("entropy", "squares"):
        row = result.find(metric="effective_keys", condition=name)
        assert row.value == pytest.approx(keys.mean(), rel=1e-5) == row.baseline
    assert result.find(metric="rows", condition="spread", kind="measurement").value == 1
    assert result.find(metric="first_share").value == pytest.approx((1 / np.arange(1, 11)).mean())
    (said,) = (line for line in result.summary if line.startswith("Values that a null has"))
    assert "uniform attention (mass parked, " in said and "row-permuted null (" in said


def test_removing_what_is_parked_on_a_mute_sink_costs_nothing() -> None:
    """BOS embedded as 0 stays 0 without biases, so that its values are 0; other keys have some."""
    plain = families.llama()
    tokenizer = families.tiny_tokenizer()
    with torch.no_grad():
        plain.model.embed_tokens.weight[tokenizer.bos_token_id] = 0
    result = run(*with_prompts(plain), draws=1)
    effects = {
        (row.condition, row.kind): abs(row.effect) for row in result.effects if row.metric == "kl"
    }
    for name in ("parked", "parked:spread", "parked:diagonal"):
        assert effects[name, "treatment"] < 1e-9
    for name in ("spread", "diagonal", "parked:renormalised", "diagonal:spread"):
        assert effects[name, "treatment"] > 1e-5
    assert effects["parked:spread", "control"] > 1e-5
    for name in ("parked:spread", "parked:diagonal", "diagonal:spread"):
        sides = [
            result.find(metric="removed", condition=name, kind=kind).value
            for kind in ("treatment", "control")
        ]
        assert sides[0] == pytest.approx(sides[1], rel=0.15) and sides[0] > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", families.FAMILIES)
def test_every_family_works_or_says_why(name: str, boot_family: Any) -> None:
    model = boot_family(name)
    result = run(model, random_prompts(model, n=3, length=10), draws=1)
    masses = {
        row.condition: row.value
        for row in result.effects
        if (row.metric, row.against) == ("mass", None)
    }
    assert sum(masses[kind] for kind in ("parked", "diagonal", "spread")) == pytest.approx(1)
    rows = {
        row.condition: row.value
        for row in result.effects
        if (row.metric, row.against) == ("rows", None)
    }
    assert rows["parked"] + rows["focused"] + rows["spread"] == pytest.approx(1)
    edits = {row.condition for row in result.effects if row.kind == "treatment"}
    assert ("first_key" in masses) == (name == "bert")
    assert result.findings["sinks"] == ([0, 9] if name == "bert" else [0])
    if name in ("opt", "bert"):
        assert not edits and "hook_pattern" in result.settings["left_out"]["parked"]
    else:
        assert {"parked", "diagonal:spread", "parked:renormalised"} <= edits
    assert len(result.summary) <= 12 and result.plot().data


def test_a_learned_sink_is_one_of_the_places(boot_family: Any) -> None:
    model = sinklens.load("learned-sink")
    prompts = sinklens.prompts(model, n=2, length=12)
    result = run(model, prompts, draws=1, conditions=("parked",))
    rows = {
        row.condition: row for row in result.effects if (row.metric, row.against) == ("mass", None)
    }
    assert sum(row.value for row in rows.values()) == pytest.approx(1)
    assert sum(row.baseline for row in rows.values()) == pytest.approx(1)
    assert rows["learned_sink"].baseline == pytest.approx((1 / np.arange(3, 14)).mean())


def test_bad_input(boot_family: Any) -> None:
    model = boot_family("llama")
    with pytest.raises(UsageError, match="at least 4 tokens"):
        run(model, random_prompts(model, n=2, length=3))
    with pytest.raises(UsageError, match="did you mean parked:spread"):
        run(model, random_prompts(model, n=2, length=8), conditions=("parked:sprea",))
    one = run(model, random_prompts(model, n=1, length=4), draws=1)
    assert all(np.isfinite(row.value) and row.ci_low is None for row in one.effects)
    none = run(model, random_prompts(model, n=2, length=8), draws=0)
    assert {row.kind for row in none.effects} == {"measurement", "treatment"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("length", "names"), [(12, PAIRS[:1]), pytest.param(20, REMOVALS, marks=pytest.mark.heavy)]
)
def test_smollm2_agrees_with_plain_hugging_face(
    length: int, names: tuple[str, ...], plain_smollm2: Any, smollm2_tokenizer: Any
) -> None:
    """Masses and effective numbers by head and by query, kinds of rows, and removals."""
    model = sinklens.load(copy.deepcopy(plain_smollm2), tokenizer=smollm2_tokenizer)
    prompts = sinklens.prompts(model, n=2, length=length, bos=True)
    tokens = prompts.tokens
    result = run(model, prompts, draws=1, conditions=names)
    with torch.no_grad():
        attentions = plain_smollm2(tokens, use_cache=False, output_attentions=True).attentions
    a = torch.stack(attentions, 1).double().numpy()[..., 1:, :]  # prompt layer head query key
    parked = a[..., 0]
    diagonal = np.stack([a[..., i, i + 1] for i in range(length - 1)], -1)
    spread = a.sum(-1) - parked - diagonal
    number = np.exp(stats.entropy(a, axis=-1))
    close = partial(np.testing.assert_allclose, atol=1e-3, rtol=1e-3)
    for place, expected in enumerate((parked, diagonal, spread)):
        close(result.arrays["mass"].values[..., place], expected.mean((0, 3)))
        close(result.arrays["mass_by_query"].values[1:, place], expected.mean((0, 1, 2)))
        name = ("parked", "diagonal", "spread")[place]
        found = values_of(result, metric="mass", condition=name, kind="measurement")
        close(found, expected.mean((1, 2, 3)))
    close(result.arrays["effective_keys"].values, number.mean((0, 3)))
    close(result.arrays["keys_by_query"].values[1:], number.mean((0, 1, 2)))
    squares = values_of(result, metric="effective_keys", condition="squares")
    close(squares, (1 / (a**2).sum(-1)).mean((1, 2, 3)))
    share = number / np.arange(2, length + 1)
    kinds = {
        "parked": parked > 0.5,
        "focused": (parked <= 0.5) & (share <= 0.5),
        "spread": (parked <= 0.5) & (share > 0.5),
        "parked_above_0.3": parked > 0.3,
    }
    for name, is_so in kinds.items():
        found = values_of(result, metric="rows", condition=name, kind="measurement")
        close(found, is_so.mean((1, 2, 3)))
    first = np.stack([x.numpy()[..., 0] for x in attentions], 1).mean((1, 2, 3))
    close(values_of(result, metric="first_share"), first)
    for name in names:
        kind, _, beside = name.partition(":")
        sides = {"treatment": (kind, beside), "control": (beside, kind)}
        for side, (removed, other) in sides.items():
            if side == "treatment" or name in PAIRS:
                edit = plain_hf.Edit(pattern=without(removed, other))
                expected = plain_hf.compare(plain_smollm2, tokens, edit)
                for metric in ("loss", "kl"):
                    close(
                        values_of(result, metric=metric, condition=name, kind=side),
                        expected[metric].value,
                    )


def without(kind: str, other: str) -> Any:
    """Written with loops over queries: the mass of a kind removed, or the lesser of two."""

    def edit(layer: int, pattern: Tensor) -> Tensor:
        edited = pattern.clone()
        for query in range(1, pattern.shape[-1]):
            keys = {"parked": [0], "diagonal": [query], "spread": list(range(1, query))}
            row = pattern[:, :, query]
            mass = row[..., keys[kind]].sum(-1, keepdim=True)
            taken = mass
            if other in keys:
                taken = torch.minimum(mass, row[..., keys[other]].sum(-1, keepdim=True))
            factor = torch.where(mass > 0, 1 - taken / mass, 0.0)
            edited[:, :, query, keys[kind]] = row[..., keys[kind]] * factor
            if other == "renormalised":
                edited[:, :, query] /= edited[:, :, query].sum(-1, keepdim=True)
        return edited

    return edit
