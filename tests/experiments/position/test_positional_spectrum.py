"""Positional spectrum: pure cosines, numpy, scipy and PyWavelets, and plain Hugging Face."""

from __future__ import annotations

import copy
import math
import sys
from typing import Any

import numpy as np
import pytest
import pywt
import torch
from scipy import signal, stats
from torch import Tensor

import sinklens
from sinklens import SinklensError
from sinklens.core.errors import UsageError
from sinklens.experiments.position import _rotary, _signals, _spectra
from sinklens.models.prompts import random_prompts
from tests import families
from tests.measuring import values_of, with_prompts
from tests.reference import plain_hf

LENGTH = 12


def run(model: Any, prompts: Any, **settings: Any) -> Any:
    settings = {"null_models": 0, "progress": False, **settings}
    return sinklens.run("positional_spectrum", model, prompts, **settings)


def form_of(length: int, queries: int = 32, **more: Any) -> Any:
    settings = {"windows": (4,), "near": 2, "wavelets": True, **more}
    return _signals.extraction(length, queries, True, **settings)


# --- Closed forms --------------------------------------------------------------------------------


@pytest.mark.parametrize("cycles", [6, 16, 28])
def test_a_pure_cosine_is_three_bins(cycles: int) -> None:
    """Under a periodic Hann window a cosine has power 1/4, 1, 1/4 in its bin and both beside it."""
    size = 64
    row = (1 + torch.cos(2 * math.pi * cycles * torch.arange(size) / size)).double()[None] / size
    lengths = torch.tensor([size])
    bare = _spectra.without_mean(row, lengths)
    found = _spectra.spectral_measures(_spectra.power(bare, lengths), row.sum(-1))
    band = {6: "low_share", 16: "mid_share", 28: "high_share"}[cycles]
    for name in _spectra.BANDS:
        assert float(found[name]) == pytest.approx(float(name == band), abs=1e-9), name
    assert float(found["selectivity"]) == pytest.approx(2)
    thirds = np.array([1 / 6, 2 / 3, 1 / 6])
    assert float(found["spectral_entropy"]) == pytest.approx(-(thirds * np.log(thirds)).sum())
    # With its mean, which has 1, 1/4 at 0 and 1 (the other side is folded away).
    with_mean = _spectra.spectral_measures(_spectra.power(row, lengths), row.sum(-1))
    parts = np.array([1, 1 / 4, 1 / 16, 1 / 4, 1 / 16])
    assert float(with_mean["selectivity"]) == pytest.approx(1 / (parts.sum() - 1))


def test_a_flat_spectrum_and_one_weight() -> None:
    """A single weight has the same power everywhere; at key 0 the Hann window sees nothing."""
    lengths, one = torch.tensor([32]), torch.zeros(1, 32).double()
    one[0, 9] = 1
    found = _spectra.spectral_measures(_spectra.power(one, lengths), one.sum(-1))
    for name, value in _spectra.flat_measures(32).items():
        assert float(found[name]) == pytest.approx(value), name
    assert float(found["spectral_entropy"]) == pytest.approx(math.log(17))
    first = one.roll(-9, -1)
    for signals in (first, _spectra.without_mean(torch.full((1, 32), 1 / 32).double(), lengths)):
        measures = _spectra.spectral_measures(_spectra.power(signals, lengths), torch.ones(1))
        assert all(bool(value.isnan()) for value in measures.values())
    unseen = _spectra.spectral_measures(_spectra.power(first, lengths, window=False), torch.ones(1))
    assert float(unseen["spectral_entropy"]) == pytest.approx(math.log(17))


def test_a_row_nearly_all_at_key0_has_the_spectrum_of_the_rest() -> None:
    """The Hann window leaves key 0 out, so that what is left is no rounding, however little."""
    form = form_of(24, queries=4)
    rows = torch.rand(1, 1, 4, 24, generator=torch.Generator().manual_seed(2)).double()
    rows *= torch.arange(24) <= torch.tensor(form.queries)[:, None]
    rows[..., 1:] *= 1e-9
    rows[..., 0] = 1 - rows[..., 1:].sum(-1)
    whole = [row[: query + 1].numpy() for row, query in zip(rows[0, 0], form.queries, strict=True)]
    expected = [plain_entropies(row, 32)[1] for row in whole]
    found = _signals.measures_of(rows, form)["spectral_entropy", "row"]
    assert float(found) == pytest.approx(np.mean(expected), rel=1e-6)


def test_wavelets_of_constants_and_ramps_have_no_details() -> None:
    """db2 has two vanishing moments; what is left at the edges comes from the extension."""
    ramp = torch.arange(64).double()[None]
    details = _spectra.coefficients(ramp, 1)[1]
    np.testing.assert_allclose(details[..., 1:-1], 0, atol=1e-12)
    even = torch.full((1, 1, 64), 1 / 64).double()
    shares, raw = _spectra.wavelet_entropies(even, torch.tensor([64]), 3)
    assert float(shares[0, 0]) == pytest.approx(
        _spectra.even_wavelet_entropies([64], 3)[0]
    )  # the approximation of a constant is one
    assert bool(shares[0, 1:].isnan().all()) and bool((raw[0, 1:].abs() < 1e-20).all())
    assert [_spectra.levels(n) for n in (5, 6, 11, 12, 95, 96, 191)] == [0, 1, 1, 2, 4, 5, 5]
    for length in (6, 33, 191):
        assert _spectra.levels(length) == pywt.dwt_max_level(length, "db2")
        level = _spectra.levels(length)
        vector = np.random.default_rng(0).random(length)
        back = pywt.waverec(_spectra.coefficients(torch.from_numpy(vector), level), "db2")
        np.testing.assert_allclose(back[:length], vector, rtol=1e-13)  # rounding, no result


def test_scaled_signals_are_alike_and_opposite_ones_are_not() -> None:
    row = torch.rand(3, 64, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(
        _spectra.scale_sensitivity(row, 2 * row), torch.zeros(3).double(), atol=1e-12, rtol=0
    )
    half = torch.rand(3, 16, generator=torch.Generator().manual_seed(1)).double()
    there = _spectra.scale_sensitivity(row, half)
    torch.testing.assert_close(_spectra.scale_sensitivity(row, -half), 2 - there)
    smooth = torch.sin(torch.linspace(0, 3, 200)).double()
    near = _spectra.rescaled(smooth.numpy(), 50)
    np.testing.assert_allclose(near, smooth.reshape(50, 4).mean(1), atol=1e-3)


def test_correlations_and_random_logits() -> None:
    random = np.random.default_rng(0)
    first, second = (torch.from_numpy(random.random((4, 9))) for _ in range(2))
    found = _spectra.correlation(first, second)
    for row in range(4):
        assert float(found[row]) == pytest.approx(stats.pearsonr(first[row], second[row])[0])
    assert bool(_spectra.correlation(torch.ones(5).double(), first[0, :5]).isnan())
    visible = torch.ones(1, 5000, dtype=torch.bool)
    logits = torch.from_numpy(1.7 * random.standard_normal((1, 1, 1, 5000)))
    noise = torch.from_numpy(random.standard_normal((1, 1, 1, 5000)))
    drawn = _signals.random_rows(0.8 * logits.softmax(-1), noise, visible)
    assert float(drawn.sum()) == pytest.approx(0.8)
    assert float(drawn.log().std()) == pytest.approx(1.7, rel=0.03)
    seen = torch.arange(10) < 4
    few = _signals.random_rows(seen[None, None, None] / 4.0, noise[..., :10], seen[None])
    torch.testing.assert_close(few, (seen[None, None, None] / 4.0).double())


@pytest.mark.slow
def test_uniform_attention_is_its_own_null() -> None:
    model, prompts = with_prompts(families.uniform_llama(), n=4, length=16)
    result = run(model, prompts, draws=1, windows=(4, 8), conditions=("slow",))
    beside = [row for row in result.effects if row.kind == "measurement" and row.baseline]
    assert len(beside) > 12
    for row in beside:
        if "mean_removed" not in row.condition:
            assert row.effect == pytest.approx(0, abs=1e-5), row
    left = result.settings["left_out"]
    assert "no power" in left["low_share of row:mean_removed"]
    queries = result.find(metric="entropy_correlation", condition="queries", against=None)
    rows = [np.full(query + 1, 1 / (query + 1)) for query in range(7, 16)]
    both = np.array([plain_entropies(row, 16)[:2] for row in rows])
    assert queries.value == pytest.approx(stats.pearsonr(*both.T)[0], abs=1e-3)
    assert "heads whose entropies differ" in left["entropy_correlation of prompts"]


# --- Rotary planes -------------------------------------------------------------------------------


@pytest.mark.slow
def test_planes_are_found_where_they_turn(boot_family: Any) -> None:
    """Halves in Llama, neighbours where a model is rewritten so; frequencies by the formula."""
    model = boot_family("llama")
    prompts = random_prompts(model, n=4, length=LENGTH)
    result = run(model, prompts, draws=1, conditions=("fast",))
    expected = 10_000.0 ** (-np.arange(4) / 4)
    np.testing.assert_allclose(result.findings["frequencies"], expected, rtol=1e-5)
    angle, size = torch.tensor([1.0, 0.1]).double(), 4
    start = torch.randn(3, size, generator=torch.Generator().manual_seed(0)).double()
    at = torch.arange(5).double()[:, None, None]
    for first, second in (([0, 1], [2, 3]), ([0, 2], [1, 3])):
        plane = torch.complex(start[:, first], start[:, second]) * torch.exp(1j * at * angle)
        turned = torch.zeros(5, 3, size).double()
        turned[..., first], turned[..., second] = plane.real, plane.imag
        right = [
            entries
            for entries, frequency in _rotary.layouts(angle, size)
            if _rotary.turns(turned, *entries, frequency)
        ]
        assert right == [(first, second)]
    still = start.expand(5, 3, size)
    assert not _rotary.turns(still, [0, 1], [2, 3], torch.zeros(2).double())


# --- Models --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", families.FAMILIES)
def test_every_family_works_or_says_why(name: str, boot_family: Any) -> None:
    model = boot_family(name)
    prompts = random_prompts(model, n=4, length=LENGTH)
    settings = {"draws": 1, "windows": (4,), "queries": 4, "near": 2, "scales": (0.5,)}
    result = run(model, prompts, **settings)
    assert all(np.isfinite(row.value) for row in result.effects)
    assert 5 <= len(result.summary) <= 12 and result.plot().data
    removed = {row.condition for row in result.effects if row.kind == "treatment"}
    if name in ("llama", "gemma2", "mistral"):
        assert removed == {"fast", "middle", "slow"}
        assert {"loss", "attention_kl"} <= {row.metric for row in result.effects}
    else:
        assert not removed
        reason = result.settings["left_out"]["fast"]
        assert "no rotary positions" in reason
        with pytest.raises(SinklensError, match="no rotary positions"):
            run(model, prompts, conditions=("slow",), **settings)


@pytest.mark.slow
def test_bad_input(boot_family: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = boot_family("llama")
    with pytest.raises(UsageError, match="at least 6 tokens, since a level of db2"):
        run(model, random_prompts(model, n=2, length=5))
    for wrong in ({"windows": (1,)}, {"scales": (1.0,)}, {"queries": 0}, {"near": -1}):
        with pytest.raises(UsageError, match="must be"):
            run(model, random_prompts(model, n=2, length=8), **wrong)
    result = run(model, random_prompts(model, n=1, length=8), draws=0)
    left = result.settings["left_out"]
    assert "at least 4 prompts" in left["entropy_correlation of prompts"]
    assert "leaves 2 of 8" in left["scale_sensitivity at 0.25"]
    assert {row.kind for row in result.effects} <= {"measurement", "treatment"}
    assert all(np.isfinite(row.value) for row in result.effects)
    monkeypatch.setitem(sys.modules, "pywt", None)
    with pytest.raises(SinklensError, match=r"pip install 'sinklens\[wavelets\]'"):
        run(model, random_prompts(model, n=2, length=8))
    without = run(model, random_prompts(model, n=2, length=8), draws=0, wavelets=False)
    assert not any("wavelet" in row.metric for row in without.effects)


# --- Plain code ----------------------------------------------------------------------------------


def plain_entropies(row: np.ndarray, size: int) -> tuple[float, float, np.ndarray]:
    """Positional and spectral entropy and the power of one row, by numpy and scipy."""
    power = np.abs(np.fft.rfft(row * signal.get_window("hann", len(row)), size)) ** 2
    return float(stats.entropy(row)), float(stats.entropy(power)), power


@pytest.mark.heavy
def test_smollm2_agrees_with_plain_code(plain_smollm2: Any, smollm2_tokenizer: Any) -> None:
    """Per head: spectra by numpy and scipy, wavelets by PyWavelets, planes by plain attention."""
    model = sinklens.load(copy.deepcopy(plain_smollm2), tokenizer=smollm2_tokenizer)
    n, length = 4, 24
    prompts = sinklens.prompts(model, n=n, length=length, bos=True)
    result = run(model, prompts, draws=1, windows=(8,), scales=(0.5,))
    tokens = prompts.tokens
    clean = plain_hf.run(plain_smollm2, tokens, plain_hf.Edit())
    patterns = torch.stack(clean.pattern, 1).double().numpy()
    queries = list(range(length // 2 - 1, length))
    level = pywt.dwt_max_level(queries[0] + 1, "db2")
    measured: dict[str, np.ndarray] = {
        name: np.zeros((*patterns.shape[:3], len(queries)))
        for name in ("positional", "spectral", "low", "selectivity", "wavelet", "window")
    }
    for place in np.ndindex(*patterns.shape[:3]):
        for number, query in enumerate(queries):
            row = patterns[place][query, : query + 1]
            positional, spectral, power = plain_entropies(row, 32)
            scale = pywt.wavedec(row, "db2", level=level)[0] ** 2
            last = row[-8:]
            values = {
                "positional": positional,
                "spectral": spectral,
                "low": power[: len(power) // 4].sum() / power.sum(),
                "selectivity": power.max() / (power.sum() - power.max()),
                "wavelet": stats.entropy(scale),
                "window": stats.entropy(last) / np.log(8),
            }
            for name, value in values.items():
                measured[name][(*place, number)] = value
    means = {name: values.mean(-1) for name, values in measured.items()}
    for name, array in (("spectral", "spectral_entropy"), ("low", "low_share")):
        by_head = result.arrays[array].values.numpy()
        np.testing.assert_allclose(by_head, means[name].mean(0), rtol=1e-3, atol=1e-3)
    rows = {
        ("positional_entropy", "row"): means["positional"],
        ("spectral_entropy", "row"): means["spectral"],
        ("low_share", "row"): means["low"],
        ("selectivity", "row"): means["selectivity"],
        ("wavelet_entropy", "scale0"): means["wavelet"],
        ("window_entropy", "last_8"): means["window"],
    }
    for (metric, condition), by_head in rows.items():
        found = values_of(result, metric=metric, condition=condition, against=None)
        np.testing.assert_allclose(found, by_head.mean((1, 2)), rtol=1e-3, atol=1e-3)
    over = [
        [
            stats.pearsonr(means["positional"][:, la, he], means["spectral"][:, la, he])[0]
            for he in range(patterns.shape[2])
        ]
        for la in range(patterns.shape[1])
    ]
    row = result.find(metric="entropy_correlation", condition="prompts", against=None)
    assert row.value == pytest.approx(np.mean(over), abs=1e-3)
    _agrees_on_the_prefix(result, patterns, plain_smollm2, tokens)
    _agrees_on_removed_planes(result, plain_smollm2, tokens, clean)


def _agrees_on_the_prefix(result: Any, patterns: np.ndarray, plain: Any, tokens: Tensor) -> None:
    """The first half of the tokens, run again; coefficients by PyWavelets, rescaled by numpy."""
    length = tokens.shape[1]
    half = plain_hf.run(plain, tokens[:, : length // 2], plain_hf.Edit())
    fewer = torch.stack(half.pattern, 1).double().numpy()
    level = pywt.dwt_max_level(length // 2, "db2")
    changed = np.zeros(fewer.shape[:3])
    for place in np.ndindex(*fewer.shape[:3]):
        sides = []
        for pattern in (patterns[place], fewer[place]):
            size = len(pattern)
            mean = pattern[size // 2 - 1 :].mean(0)
            sides.append(pywt.wavedec(mean, "db2", level=level))
        whole = [
            np.interp(
                (np.arange(len(short)) + 0.5) * len(long) / len(short) - 0.5,
                np.arange(len(long)),
                long,
            )
            for long, short in zip(*sides, strict=True)
        ]
        one, other = np.concatenate(whole), np.concatenate(sides[1])
        changed[place] = 1 - one @ other / (np.linalg.norm(one) * np.linalg.norm(other))
    found = values_of(result, metric="scale_sensitivity", condition="prefix:0.5", against=None)
    np.testing.assert_allclose(found, changed.mean((1, 2)), rtol=1e-3, atol=1e-3)


def _agrees_on_removed_planes(result: Any, plain: Any, tokens: Tensor, clean: Any) -> None:
    """Entries of the fastest third of planes set to 0 behind q and k: their rotation keeps 0."""
    edited = copy.deepcopy(plain)
    size = plain.config.head_dim
    third = np.array_split(np.arange(size // 2), 3)[0]
    gone = torch.tensor([*third, *(third + size // 2)])
    with torch.no_grad():
        for layer in edited.model.layers:
            for weight in (layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight):
                weight.view(-1, size, weight.shape[-1])[:, gone] = 0
    after = plain_hf.run(edited, tokens, plain_hf.Edit())
    losses = [
        torch.nn.functional.cross_entropy(
            side.logits[:, 1:-1].transpose(1, 2), tokens[:, 2:], reduction="none"
        ).mean(1)
        for side in (clean, after)
    ]
    found = values_of(result, metric="loss", condition="fast", kind="treatment")
    np.testing.assert_allclose(found, losses[1], rtol=1e-3, atol=1e-3)
    before, moved = (torch.stack(side.pattern, 1).double()[:, :, :, 11:] for side in (clean, after))
    kl = torch.special.xlogy(before, before) - torch.special.xlogy(before, moved)
    found = values_of(result, metric="attention_kl", condition="fast", kind="treatment")
    np.testing.assert_allclose(found, kl.sum(-1).mean((1, 2, 3)), rtol=1e-3, atol=1e-3)
    mass = values_of(result, metric="sink_mass", condition="fast", kind="treatment")
    np.testing.assert_allclose(mass, after.sink_mass().mean((1, 2)), rtol=1e-3, atol=1e-3)
