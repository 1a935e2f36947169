"""Attention and likelihood: planted dependences, uniform attention, and plain Hugging Face."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import sinklens
from sinklens import SinklensError
from sinklens.core.errors import UsageError
from sinklens.experiments.heads._rank_correlation import permuted_correlations, rank_correlation
from sinklens.experiments.heads._words import Vocabulary
from sinklens.models.prompts import random_prompts
from tests.measuring import values_of

FEW = {"words": 6, "substituted": 1, "permutations": 100}


def run(model: Any, prompts: Any, **settings: Any) -> Any:
    settings = {**FEW, "progress": False, **settings}
    return sinklens.run("attention_likelihood", model, prompts, **settings)


def test_a_planted_dependence_on_likelihood_or_on_frequency() -> None:
    """What depends on frequency alone is gone once that is partialled out; likelihood stays."""
    random = np.random.default_rng(0)
    frequency = random.standard_normal(300)
    likelihood = frequency + 0.5 * random.standard_normal(300)
    of_both = np.column_stack([np.exp(3 * frequency), np.exp(3 * likelihood)])
    raw = rank_correlation(likelihood, of_both)
    assert 0.8 < raw[0] < 0.95 and raw[1] == pytest.approx(1)
    partial = rank_correlation(likelihood, of_both, frequency[:, None])
    assert partial[0] != partial[0] and partial[1] == pytest.approx(1)
    noisy = of_both + 0.0
    noisy[:, 0] = frequency + 0.3 * random.standard_normal(300)
    partial = rank_correlation(likelihood, noisy, frequency[:, None])
    assert abs(partial[0]) < 0.15 < 0.7 < rank_correlation(likelihood, noisy)[0]


def test_rank_correlations_are_those_of_scipy() -> None:
    random = np.random.default_rng(1)
    one, many = random.integers(0, 9, 40).astype(float), random.standard_normal((40, 3))
    covariates = random.standard_normal((40, 2))
    found = rank_correlation(one, many)
    expected = [stats.spearmanr(one, column).statistic for column in many.T]
    np.testing.assert_allclose(found, expected)
    inverse = np.linalg.inv(
        np.corrcoef(stats.rankdata(np.column_stack([one, many[:, 0], covariates]), axis=0).T)
    )
    by_precision = -inverse[0, 1] / np.sqrt(inverse[0, 0] * inverse[1, 1])
    assert rank_correlation(one, many, covariates)[0] == pytest.approx(by_precision)
    assert np.isnan(rank_correlation(one, np.ones((40, 1)))).all()
    groups = np.repeat(np.arange(4), 10)
    permuted = permuted_correlations(one, many, groups, [5, 6, 7, 8], 2000)
    # Within groups each item stands anywhere in its own: the mean is that of group means.
    ranks = stats.rankdata(one)
    means = np.array([ranks[groups == g].mean() for g in groups])
    between = np.array([np.corrcoef(means, stats.rankdata(c))[0, 1] for c in many.T]) * (
        means.std() / ranks.std()
    )
    np.testing.assert_allclose(permuted.mean(0), between, atol=0.02)


@pytest.fixture(scope="module")
def rope() -> Any:
    return sinklens.load("rope")


def test_words_are_words(rope: Any) -> None:
    vocabulary, prompts = Vocabulary(rope), sinklens.prompts(rope, n=4, length=32)
    for tokens in prompts.tokens:
        places = vocabulary.places(tokens)
        assert places and all(0 < place < 31 for place in places)
        for place in places:
            word, after = (rope.tokenizer.decode([int(tokens[place + n])]) for n in (0, 1))
            assert word[0] == " " and word[1:].isalpha() and len(word) > 2
            assert not after[0].isalpha() and tokens.tolist().count(int(tokens[place])) == 1


@pytest.mark.slow
def test_uniform_attention_has_the_rho_of_its_null() -> None:
    """1 / (t + 1) in all layers, of which nothing is left once position is partialled out."""
    model = sinklens.load("rope")
    with torch.no_grad():
        for layer in model.original_model.model.layers:
            for weight in layer.self_attn.q_proj.parameters():
                weight.zero_()
    result = run(model, sinklens.prompts(model, n=4, length=32), draws=1)
    for share in ("self", "context"):
        row = result.find(metric="rho", condition=share, against=None)
        assert row.value == pytest.approx(row.baseline, abs=1e-9) and row.value != 0
        assert "does not vary" in result.settings["left_out"][f"rho of {share}:partial"]
    for row in result.effects:
        if row.metric == "self_attention" and row.kind == "treatment":
            assert row.effect == pytest.approx(0, abs=1e-6)
    assert any("as large a rho without looking" in line for line in result.summary)


@pytest.mark.slow
def test_an_encoder_is_read_with_its_words_masked() -> None:
    model = sinklens.load("encoder")
    prompts = sinklens.prompts(model, n=3, length=32)
    result = run(model, prompts, draws=1)
    assert result.find(metric="rho", condition="self:unmasked", against=None).n_prompts == 3
    uniform = result.find(metric="rho", condition="self", against=None).baseline
    assert uniform == 0  # every word sees as many keys
    likelihood, unmasked, own = [], [], []
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers)]
    for row, places in zip(prompts.tokens, result.draws["words"], strict=True):
        with torch.no_grad():
            logits, cache = model.run_with_cache(row[None], names_filter=names)
        for place in places:
            hidden = row.clone()
            hidden[place] = model.tokenizer.mask_token_id
            with torch.no_grad():
                masked = model(hidden[None])[0, place].log_softmax(-1)
            likelihood.append(float(masked[row[place]]))
            unmasked.append(float(logits[0, place].log_softmax(-1)[row[place]]))
            own.append([float(cache[name][0, :, place, place].mean()) for name in names])
    for condition, values in (("self", likelihood), ("self:unmasked", unmasked)):
        expected = [stats.spearmanr(values, column).statistic for column in np.array(own).T]
        found = result.find(metric="rho", condition=condition, against=None).value
        assert found == pytest.approx(np.mean(expected), abs=1e-3)


def test_bad_input(rope: Any, boot_family: Any) -> None:
    llama, bert = boot_family("llama"), boot_family("bert")
    with pytest.raises(SinklensError, match="whole words; this one has 0"):
        run(llama, random_prompts(llama, n=2, length=8))
    with pytest.raises(SinklensError, match="no mask token"):
        run(bert, random_prompts(bert, n=2, length=8))
    figures = sinklens.Prompts.from_strings(rope, ["1, 2, 3, 4, 5; 6, 7."] * 2)
    with pytest.raises(UsageError, match="prompt 0 has no word to substitute"):
        run(rope, figures)
    with pytest.raises(UsageError, match="too few words for a correlation: 2"):
        run(rope, sinklens.prompts(rope, n=2, length=32), words=1)
    result = run(rope, sinklens.prompts(rope, n=1, length=64), words=16, draws=0)
    assert all(row.ci_low is None for row in result.effects)
    assert {row.kind for row in result.effects} == {"measurement", "treatment", "null", "contrast"}
    assert len(result.summary) <= 12 and result.plot().data


@pytest.mark.heavy
def test_smollm2_agrees_with_plain_hugging_face(plain_smollm2: Any, smollm2_tokenizer: Any) -> None:
    """Likelihoods, attention of each word and layer, rho by scipy, ranks of substitutes."""
    model = sinklens.load(copy.deepcopy(plain_smollm2), tokenizer=smollm2_tokenizer)
    prompts = sinklens.prompts(model, n=3, length=24, bos=True)
    result = run(model, prompts, draws=1, words=4, conditions=("likeliest", "unlikely"))
    with torch.no_grad():
        out = plain_smollm2(prompts.tokens, use_cache=False, output_attentions=True)
    logs = out.logits.log_softmax(-1)
    patterns = torch.stack([a.mean(1) for a in out.attentions], 1)
    places = [(p, at) for p, own in enumerate(result.draws["words"]) for at in own]
    likelihood = [float(logs[p, at - 1, prompts.tokens[p, at]]) for p, at in places]
    own = np.array([patterns[p, :, at, at].tolist() for p, at in places])
    first = np.array([patterns[p, :, at, 0].tolist() for p, at in places])
    for share, values in (("self", own), ("context", 1 - own - first)):
        expected = [stats.spearmanr(likelihood, column).statistic for column in values.T]
        np.testing.assert_allclose(result.arrays[f"rho_{share}"].values, expected, atol=1e-3)
        row = result.find(metric="rho", condition=share, against=None)
        assert row.value == pytest.approx(np.mean(expected), abs=1e-3)
    position = [1 / (at + 1) for _, at in places]
    row = result.find(metric="rho", condition="self", against=None)
    assert row.baseline == pytest.approx(stats.spearmanr(likelihood, position).statistic)
    words = Vocabulary(model).words
    for number, kind in enumerate(("likeliest", "unlikely")):
        changed = prompts.tokens.clone()
        for p, (positions, tokens) in enumerate(
            zip(result.draws["words"], result.draws["substitutes"], strict=True)
        ):
            at, token = positions[0], tokens[number]
            others = words[words != prompts.tokens[p, at]]
            rank = int((logs[p, at - 1, others] > logs[p, at - 1, token]).sum())
            assert rank == 0 if kind == "likeliest" else rank >= 2 * len(others) // 3 - 1
            changed[p, at] = token
        with torch.no_grad():
            after = plain_smollm2(changed, use_cache=False, output_attentions=True).attentions
        at = [positions[0] for positions in result.draws["words"]]
        expected = [
            np.mean([float(a[p, :, place, place].mean()) for a in after])
            for p, place in enumerate(at)
        ]
        found = values_of(result, metric="self_attention", condition=kind, kind="treatment")
        np.testing.assert_allclose(found, expected, atol=1e-3)
