"""Eigenvalues of W_QK: made by hand, by numpy, and from plain Hugging Face weights."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import sinklens
from sinklens import SinklensError
from sinklens.experiments.heads.qk_eigenspectrum import (
    eigen_statistics,
    orthogonal,
    permuted,
    rotated,
)
from sinklens.models.prompts import random_prompts
from tests import families

pytestmark = pytest.mark.slow


def run(model: Any, prompts: Any, **settings: Any) -> Any:
    return sinklens.run("qk_eigenspectrum", model, prompts, **{"progress": False, **settings})


def from_eigenvalues(w: np.ndarray) -> dict[str, float]:
    """The statistics from all eigenvalues of the matrix and of its symmetric part."""
    real, complex_ = np.linalg.eigvalsh((w + w.T) / 2), np.linalg.eigvals(w)
    mean = real.mean()
    return {
        "eigen_mean": mean,
        "eigen_variance": real.var(),
        "eigen_concentration": mean**2 / (real**2).mean(),
        "eigen_variance_full": (complex_**2).mean().real - mean**2,
    }


def test_a_projection_made_by_hand() -> None:
    """W_QK = 4 P on 3 of 12 directions: eigenvalues 4 thrice, and 0; with keys reversed -4."""
    frame = torch.linalg.qr(torch.randn(12, 3, generator=torch.Generator().manual_seed(0)).double())
    factors = (2 * frame.Q)[None, None]
    found = eigen_statistics(factors, factors)
    expected = {"eigen_mean": 1.0, "eigen_variance": 3.0, "eigen_concentration": 0.25}
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value), name
    assert float(found["eigen_variance_full"]) == pytest.approx(3)
    assert float(eigen_statistics(factors, -factors)["eigen_mean"]) == pytest.approx(-1)
    none = eigen_statistics(0 * factors, factors)
    assert all(float(values) == 0 for values in none.values())


def test_traces_are_those_of_the_eigenvalues() -> None:
    random = np.random.default_rng(0)
    queries, keys = (torch.from_numpy(random.standard_normal((2, 3, 10, 4))) for _ in range(2))
    found = eigen_statistics(queries, keys)
    for layer in range(2):
        for head in range(3):
            w = (queries[layer, head] @ keys[layer, head].T).numpy()
            for name, value in from_eigenvalues(w).items():
                assert float(found[name][layer, head]) == pytest.approx(value), name
    for make in (permuted, orthogonal):
        drawn = make(queries, random)
        torch.testing.assert_close(drawn.norm(dim=(-2, -1)), queries.norm(dim=(-2, -1)))
    entries = permuted(queries, random).flatten(2).sort(-1).values
    torch.testing.assert_close(entries, queries.flatten(2).sort(-1).values)
    turned = rotated(keys, torch.ones(2, 2).double(), torch.zeros(2, 2).double())
    torch.testing.assert_close(turned, keys)


@pytest.mark.parametrize("name", families.FAMILIES)
def test_every_family_works(name: str, boot_family: Any) -> None:
    model = boot_family(name)
    result = run(model, random_prompts(model, n=3, length=8), draws=2)
    rotary = name in ("llama", "neox", "gemma2", "mistral")
    assert ("eigen_concentration_rotary" in result.arrays) == rotary
    assert len(result.summary) == 4 + rotary and result.plot().data
    assert all(np.isfinite(row.value) for row in result.effects)


def test_every_plane_is_turned_where_sines_come_once_for_both_entries(boot_family: Any) -> None:
    """GPT-OSS, which has one cosine a plane, beside Llama, which has two."""
    for model in (sinklens.load("learned-sink"), boot_family("llama")):
        result = run(model, random_prompts(model, n=2, length=8), draws=0)
        plain, turned = (
            result.arrays[f"eigen_concentration{end}"].values for end in ("", "_rotary")
        )
        assert bool((plain != turned).all())


def test_normalised_queries_are_refused_and_one_prompt_will_do(boot_family: Any) -> None:
    model = sinklens.load("qknorm")
    with pytest.raises(SinklensError, match="normalised in each head"):
        run(model, sinklens.prompts(model, n=2, length=8))
    model = boot_family("llama")
    with pytest.raises(SinklensError, match="takes no metrics"):
        run(model, random_prompts(model, n=2, length=8), metrics="loss")
    result = run(model, random_prompts(model, n=1, length=8), draws=0)
    assert {row.kind for row in result.effects} == {"measurement"}


@pytest.mark.heavy
def test_smollm2_agrees_with_plain_hugging_face(plain_smollm2: Any, smollm2_tokenizer: Any) -> None:
    """Eigenvalues of a few heads by numpy, rotary positions by their matrices, and rho by scipy."""
    model = sinklens.load(copy.deepcopy(plain_smollm2), tokenizer=smollm2_tokenizer)
    length = 16
    prompts = sinklens.prompts(model, n=2, length=length, bos=True)
    result = run(model, prompts, draws=1)
    config = plain_smollm2.config
    size, heads = config.head_dim, config.num_attention_heads
    with torch.no_grad():
        patterns = plain_smollm2(prompts.tokens, use_cache=False, output_attentions=True).attentions
    mass = torch.stack([a[:, :, 1:, 0].mean((0, 2)) for a in patterns])
    np.testing.assert_allclose(result.arrays["sink_mass"].values, mass, atol=1e-4)
    frequencies = config.rope_parameters["rope_theta"] ** (-np.arange(0, size, 2) / size)
    averaged = np.zeros((size, size))
    for offset in range(length):
        c, s = (np.diag(f(offset * frequencies)) for f in (np.cos, np.sin))
        averaged += np.block([[c, -s], [s, c]]) / length  # rotary matrix of half-split planes
    for layer, head in ((0, 0), (7, 5), (18, 8)):
        attention = plain_smollm2.model.layers[layer].self_attn
        shared = head // (heads // config.num_key_value_heads)
        q, k = (
            p.weight.detach().double().numpy()[h * size : (h + 1) * size]
            for p, h in ((attention.q_proj, head), (attention.k_proj, shared))
        )
        expected = from_eigenvalues(q.T @ k)
        # A query at offset j after its key: q . R_{-j} k.
        turned = from_eigenvalues(q.T @ averaged.T @ k)
        expected["eigen_concentration_rotary"] = turned["eigen_concentration"]
        for name, value in expected.items():
            found = float(result.arrays[name].values[layer, head])
            assert found == pytest.approx(value, rel=1e-3, abs=1e-6), (name, layer, head)
    for name in ("eigen_mean", "eigen_variance", "eigen_concentration"):
        rho = stats.spearmanr(result.arrays[name].values.flatten(), mass.flatten()).statistic
        row = result.find(metric="rank_correlation", condition=name, against=None)
        assert (
            row.value == pytest.approx(rho, abs=1e-3) and row.n_prompts == config.num_hidden_layers
        )
        assert row.ci_low is not None and row.resampled == "layer"
