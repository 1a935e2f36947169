"""The components and the mask: planted logits are read exactly, and intervals cover."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from sinklens.experiments.position._components import Components, by_prompt
from sinklens.experiments.position._pairs import KEYS, PairSets
from sinklens.experiments.position._removed import above_null
from sinklens.functional.causal_mask import CausalMask
from sinklens.functional.leave_one_out import versions_of_products
from sinklens.functional.logit_forms import FORMS, DiagonalShift, PairBasis, PairSet
from sinklens.functional.similarity import centroid_accuracy, variance_ratio
from sinklens.probes.logits import LogitForms, LogitSums

SIZE = 16
QUERY, KEY = np.tril_indices(SIZE)


def read(scores: Any, sets: PairSets, windows: tuple[int, ...] = (SIZE, SIZE)) -> Components:
    """What the probe reads in scores `[prompt, head, query, key]`, the same in every layer."""
    scores = torch.as_tensor(scores, dtype=torch.float64)
    probe = LogitForms(sets.basis(windows, FORMS))
    for _, function in probe.fwd_hooks:
        function(scores.masked_fill(~torch.ones(SIZE, SIZE).tril().bool(), -3e38), hook=None)
    return Components(probe.compute())


@pytest.fixture(scope="module")
def sets() -> PairSets:
    return PairSets([(1, 8), (1, SIZE)], [2])


def of_pairs(values: Any) -> np.ndarray:
    """A square of scores of a function of query and key, for three prompts and one head."""
    i, j = np.indices((SIZE, SIZE))
    return np.broadcast_to(values(i, j), (3, 1, SIZE, SIZE)).copy()


# --- closed forms


def test_toeplitz_logits_have_no_component(sets: PairSets) -> None:
    """Any function of the offset, however wild, and whatever differs between prompts in it."""
    rng = np.random.default_rng(0)
    values = 5 * rng.standard_normal(SIZE) + rng.standard_normal((3, SIZE))
    i, j = np.indices((SIZE, SIZE))
    found = read(values[:, np.abs(i - j)][:, None], sets)
    for label, keys, place in itertools.product(sets.labels, KEYS, (0, 2)):
        number = sets.number(label, keys, place)
        for form in ("component", "visible", "linear"):
            assert float(found.shares(number, form).abs().max()) < 1e-6
        assert float(found.by_layer(number, "total").min()) > 0.01
    assert float(found.curve.abs().max()) < 1e-6


@pytest.mark.parametrize("key", [0, 3])
def test_a_planted_key_has_its_component(sets: PairSets, key: int) -> None:
    """A bonus b for one key: at each of its offsets 1 of n_d pairs, so b^2 (1 - 1 / n_d)."""
    bonus = 1.7
    found = read(of_pairs(lambda i, j: 0.3 * (i - j) + bonus * (j == key)), sets)
    for label, end in (("1:8", 8), (f"1:{SIZE}", SIZE)):
        for keys, first in (("all_keys", 0), ("without_key0", 1)):
            pairs = [(i, j) for i in range(1, end) for j in range(first, i + 1)]
            counts = np.bincount([i - j for i, j in pairs])
            offsets = [i - j for i, j in pairs if j == key]
            expected = sum(bonus**2 * (1 - 1 / counts[d]) for d in offsets) / len(pairs)
            component = found.by_layer(sets.number(label, keys))[0, 0]
            assert float(component) == pytest.approx(expected, rel=1e-6, abs=1e-9)
            if end == SIZE:  # the curve, averaged over pairs, is the component
                curve = found.curve[0, :, first].numpy()
                weights = [sum(query == i for query, _ in pairs) for i in range(SIZE)]
                assert curve @ weights / len(pairs) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_linear_and_row_constant_logits(sets: PairSets) -> None:
    """All of i + j is linear; what depends on the query alone is invisible to the softmax."""
    number = sets.number(f"1:{SIZE}", "without_key0")
    linear = read(of_pairs(lambda i, j: 0.2 * (i + j)), sets)
    component = float(linear.by_layer(number)[0, 0])
    pairs = [(i, j) for i in range(1, SIZE) for j in range(1, i + 1)]
    sums = np.array([i + j for i, j in pairs]) * 0.2
    expected = ((sums - sums.mean()) ** 2).mean()  # on a triangle every offset has the same mean
    assert component == pytest.approx(expected, rel=1e-6)
    assert float(linear.by_layer(number, "linear")[0, 0]) == pytest.approx(expected, rel=1e-6)
    rows = read(of_pairs(lambda i, j: np.sin(i) + 0 * j), sets)
    assert float(rows.by_layer(number)[0, 0]) > 0.05
    for one in range(len(sets.labels) * 4):
        assert float(rows.by_layer(one, "visible")[0, 0]) < 1e-12


def test_noise_of_single_prompts_does_not_count() -> None:
    """Over 400 sets of prompts the mean is the planted component, although noise is 25 times it."""
    rng = np.random.default_rng(1)
    sets = PairSets([(1, 8)], [])
    number = sets.number("1:8", "without_key0")
    planted = of_pairs(lambda i, j: 0.4 * (j == 3))[0]
    expected = float(read(of_pairs(lambda i, j: 0.4 * (j == 3)), sets).by_layer(number)[0, 0])
    scores = planted + rng.standard_normal((6, 400, SIZE, SIZE))
    found = read(scores, sets).by_head["component"][0, :, number].numpy()
    assert expected < 0.04
    assert abs(found.mean() - expected) < 4 * found.std() / math.sqrt(len(found))


def test_what_is_above_its_null() -> None:
    """A planted key is; noise is not, nor is a key planted in the moved logits as well."""
    rng = np.random.default_rng(8)
    sets = PairSets([(1, 8)], [])
    number = sets.number("1:8", "without_key0")
    noise, other = rng.standard_normal((2, 12, 2, SIZE, SIZE))
    planted = of_pairs(lambda i, j: 2.0 * (j == 3))[0]
    scatter, moved, key = (read(one, sets) for one in (noise, other, noise + planted))
    planted_twice = read(other + 2 * planted, sets)
    for component, null, above in (
        (key, moved, True),
        (scatter, moved, False),
        (key, planted_twice, False),
    ):
        assert above_null(component.component(number), null.component(number)) == above


def test_a_window_hides_its_keys() -> None:
    sets = PairSets([(1, SIZE)], [])
    basis = sets.basis((4,), ("component",))[0]
    seen = {(int(i), int(j)) for i, j in zip(basis.query, basis.key, strict=True)}
    inside = basis.inside[sets.number(f"1:{SIZE}", "all_keys")]
    counted = {
        (int(i), int(j))
        for i, j, is_in in zip(basis.query, basis.key, inside, strict=True)
        if is_in
    }
    assert counted == {(i, j) for i, j in seen if i >= 1 and i - j < 4}
    scores = of_pairs(lambda i, j: np.where(i - j < 4, 0.5 * (j == 6), -3e38))
    component = float(read(scores, sets, (4, 4)).by_layer(0)[0, 0])
    counts = np.bincount([i - j for i, j in counted])
    expected = sum(0.25 * (1 - 1 / counts[d]) for d in range(4)) / len(counted)
    assert component == pytest.approx(expected, rel=1e-6)


def test_uniform_attention_has_slope_1() -> None:
    flat = CausalMask(torch.zeros(3, 2, 1, SIZE), [SIZE, 4], None)
    assert flat.slope()[:, 0].numpy() == pytest.approx(1.0)
    keys = np.minimum(np.arange(1, SIZE + 1), 4)
    assert flat.log_z[0, 1, 0].numpy() == pytest.approx(np.log(keys))
    logs = np.log(np.arange(1, SIZE + 1))
    assert float(flat.window_kl(4)[0, 0, 0]) == pytest.approx(float((logs[3:] - logs[3]).mean()))
    assert float(flat.window_kl(4)[0, 1, 0]) == pytest.approx(0.0)
    assert float(flat.variance()[0, 0, 0]) == pytest.approx(float(logs[QUERY].var()))
    # Least squares, both models.
    y, ones = -logs[QUERY], np.ones(len(QUERY))
    left = [
        ((y - x @ np.linalg.lstsq(x, y, rcond=None)[0]) ** 2).sum()
        for x in (
            np.stack([ones, QUERY - KEY], 1),
            np.stack([ones, QUERY - KEY, QUERY, KEY], 1),
        )
    ]
    r2 = (left[0] - left[1]) / ((y - y.mean()) ** 2).sum()
    assert float(flat.extra_r2()[0, 0, 0]) == pytest.approx(r2)


def test_flat_logits_give_a_learned_sink_as_much_as_a_key() -> None:
    """log Z is log(i + 2) then, and log(i + 1) without a sink."""
    offsets = torch.randn(1, 2, 3, 9, generator=torch.Generator().manual_seed(4))
    for sink, more in ((torch.full((2, 3), 5.0), 2), (None, 1)):
        flat = CausalMask(offsets, [9, 9], sink).flat()
        expected = (torch.arange(9).double() + more).log()
        torch.testing.assert_close(flat.log_z, expected.expand(flat.log_z.shape))


def test_the_mask_costs_what_the_divergence_says() -> None:
    """KL(A_win || A) from the distributions themselves, with a learned sink in log Z."""
    g = torch.from_numpy(np.random.default_rng(2).standard_normal(SIZE))
    one = CausalMask(g.expand(3, 1, 1, -1), [SIZE], torch.tensor([[0.7]]))
    divergences = []
    for i in range(3, SIZE):
        odds = np.exp(g[: i + 1].numpy())
        whole = odds / (odds.sum() + math.exp(0.7))
        window = odds[:4] / (odds[:4].sum() + math.exp(0.7))
        # The sink's own probability belongs to both distributions.
        window, whole = np.append(window, 1 - window.sum()), np.append(whole[:4], 0)
        whole[-1] = math.exp(0.7) / (odds.sum() + math.exp(0.7))
        divergences.append((window * np.log(window / whole)).sum())
    assert float(one.window_kl(4)[0, 0, 0]) == pytest.approx(np.mean(divergences))


def test_moving_logits_along_diagonals() -> None:
    """The null keeps every diagonal's values, and column 0 where it is told to."""
    basis = PairBasis([PairSet(1, SIZE)], ("component",), SIZE)
    logits = torch.from_numpy(np.random.default_rng(3).standard_normal((2, 1, len(QUERY))))
    for first_key in (0, 1):
        shift = DiagonalShift(torch.tensor([9, 0, 5]), first_key)
        moved = shift.moved(logits, basis, 1)
        assert torch.equal(moved[0], logits[0])  # prompt 1 moves by 0
        assert not torch.equal(moved[1], logits[1])
        for offset in range(SIZE):
            there = (basis.query - basis.key == offset) & (basis.key >= first_key)
            there &= basis.query >= 1
            assert torch.equal(moved[1, 0, there].sort()[0], logits[1, 0, there].sort()[0])
        assert torch.equal(moved[1, 0, 0], logits[1, 0, 0])
        if first_key:
            assert torch.equal(moved[1, 0, basis.key == 0], logits[1, 0, basis.key == 0])


def test_sums_from_a_run_before_give_the_same(sets: PairSets) -> None:
    scores = torch.from_numpy(np.random.default_rng(4).standard_normal((4, 2, SIZE, SIZE)))
    shift = DiagonalShift(torch.tensor([1, 2, 3, 4]), 0)
    basis = sets.basis((SIZE,), FORMS)
    whole, sums = LogitForms(basis, shift=shift), LogitSums(basis, shift)
    parts = None
    for probe in (whole, sums):
        for batch in (scores,) if probe is whole else scores.split(1):
            probe.fwd_hooks[0][1](batch, hook=None)
    parts = LogitForms(basis, sums.compute(), shift)
    for batch in scores.split(3):
        parts.fwd_hooks[0][1](batch, hook=None)
    for one, other in zip(whole.compute(), parts.compute(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


# --- intervals


def test_intervals_cover() -> None:
    """Jackknife intervals cover the true square in about 95 %, the obvious products in fewer."""
    rng = np.random.default_rng(5)
    mean = 0.5 * rng.standard_normal(30)
    truth, covered, naive = float(mean @ mean), 0, 0
    draws, n = 500, 16
    for _ in range(draws):
        vectors = mean + rng.standard_normal((n, 30))
        products = torch.from_numpy((vectors * (vectors.sum(0) - vectors)).sum(1))
        versions = versions_of_products(products)
        for values, kind in ((by_prompt(versions), 0), (products.numpy() / (n - 1), 1)):
            assert np.mean(values) == pytest.approx(float(versions[0]))
            low, high = stats.ttest_1samp(values, 0).confidence_interval()
            if kind:
                naive += low <= truth <= high
            else:
                covered += low <= truth <= high
    assert 0.91 <= covered / draws <= 0.985
    assert naive / draws <= 0.80


def test_leaving_out_is_leaving_out() -> None:
    """Every version is the mean over pairs of different prompts that are left."""
    vectors = np.random.default_rng(6).standard_normal((5, 7))
    products = torch.from_numpy((vectors * (vectors.sum(0) - vectors)).sum(1))
    expected = [
        np.mean([vectors[p] @ vectors[q] for p, q in itertools.permutations(kept, 2)])
        for kept in [range(5), *([k for k in range(5) if k != out] for out in range(5))]
    ]
    assert versions_of_products(products).numpy() == pytest.approx(np.array(expected))


# --- the first token


def test_a_planted_fingerprint() -> None:
    """h(m, p) = a_m + b_p: the ratio is var a / var b, and the nearest centroid knows m."""
    rng = np.random.default_rng(7)
    a, b = 3 * rng.standard_normal((4, 1, 1, 5)), rng.standard_normal((1, 6, 1, 5))
    stream = torch.from_numpy(a + b)
    half = torch.tensor([0, 1, 0, 1, 0, 1])
    expected = a[:, 0, 0].var(0, ddof=1).sum() / b[0, :, 0].var(0, ddof=1).sum()
    versions = variance_ratio(stream)
    assert float(versions[0, 0]) == pytest.approx(expected)
    kept = b[0, 1:, 0].var(0, ddof=1).sum()
    assert float(versions[1, 0]) == pytest.approx(a[:, 0, 0].var(0, ddof=1).sum() / kept)
    assert float(centroid_accuracy(stream * torch.tensor([1.0]), half).mean()) > 0.9
    nothing = torch.from_numpy(np.broadcast_to(b, (4, 6, 1, 5)).copy())
    assert float(variance_ratio(nothing).abs().max()) < 1e-12
    assert float(centroid_accuracy(nothing, half).mean()) == pytest.approx(1 / 4)
