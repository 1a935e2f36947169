"""Absolute position: planted logits are read exactly, and figures are those of plain Hugging Face.

The second computation (`tests.reference.plain_logits`) takes hidden states, projections and rotary
embeddings from a plain Hugging Face model, and the figures from their definitions in numpy. It
shares nothing with sinklens.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from typer.testing import CliRunner

import sinklens
from sinklens import SinklensError
from sinklens.cli import app
from sinklens.experiments.position import _edits as position_edits
from sinklens.experiments.position._components import (
    CausalMask,
    Components,
    by_prompt,
    versions_of_products,
)
from sinklens.experiments.position._edits import FORMS, KEYS, PairSets, above_null
from sinklens.experiments.position._fingerprint import centroid_accuracy, variance_ratio
from sinklens.experiments.position._masks import shuffled_orders
from sinklens.experiments.position.absolute_position import AbsolutePositionConfig, plot
from sinklens.models.prompts import Prompts, random_prompts
from sinklens.probes.log_split import LogSplit, SinkReadouts
from sinklens.probes.logits import DiagonalShift, LogitForms, LogitSums, PairBasis, PairSet
from sinklens.results.result import ExperimentResult
from sinklens.zoo.constructed import ConstructedSink, constructed_sink
from tests import families
from tests.reference.plain_logits import Plain

SIZE = 16
QUERY, KEY = np.tril_indices(SIZE)


def run(model: Any, prompts: Prompts, **settings: Any) -> ExperimentResult:
    return sinklens.run("absolute_position", model, prompts, progress=False, **settings)


def read(scores: Any, sets: PairSets, windows: tuple[int, ...] = (SIZE, SIZE)) -> Components:
    """What the probe reads in scores `[prompt, head, query, key]`, the same in every layer."""
    scores = torch.as_tensor(scores, dtype=torch.float64)
    probe = LogitForms(sets.basis(windows, FORMS))
    for _, function in probe.fwd_hooks:
        function(scores.masked_fill(~torch.ones(SIZE, SIZE).tril().bool(), -3e38), hook=None)
    return Components(probe.compute(), FORMS)


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
    assert above_null(key, moved, number)
    assert not above_null(scatter, moved, number)
    assert not above_null(key, read(other + 2 * planted, sets), number)


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


# --- whole runs with a known answer


def test_the_constructed_sink() -> None:
    """Without key 0 its logits are 0; with it, the formulas give the column of the sink head."""
    formulas = ConstructedSink()
    model = constructed_sink(formulas)
    prompts = random_prompts(model, n=4, length=12, bos=True)
    result = run(model, prompts, draws=1, conditions="mean", queries="1:8,1:12", first_tokens=3)
    for label in ("1:8", "1:12"):
        row = result.find(metric="residual_share", condition="without_key0", queries=label)
        assert (row.value, row.ci_low, row.ci_high) == (0.0, 0.0, 0.0)
    assert not [e for e in result.effects if e.metric.startswith("removed_without_key0")]
    assert "there is no component to remove" in " ".join(result.summary)
    slope = result.find(metric="causal_slope", condition="without_key0", kind="measurement")
    assert slope.value == pytest.approx(1.0, abs=1e-6)

    def component(end: int, **edit: Any) -> float:
        # In every head the words of a prompt have one logit, 0; BOS has log of its odds over them.
        columns = []
        for prompt in prompts.tokens.tolist():
            pattern = formulas.run(prompt, **edit).pattern[1]
            i = np.arange(1, end)
            columns.append(np.log(pattern[:, i, 0] / pattern[:, i, i]))
        pairs = [(i, j) for i in range(1, end) for j in range(i + 1)]
        counts = np.bincount([i - j for i, j in pairs])
        total = 0.0
        for p, q in itertools.permutations(range(len(columns)), 2):
            # One pair an offset: its logit less a share 1 / n_d of itself.
            shrink = 1 - 1 / counts[1:end]
            total += float((columns[p] * columns[q] * shrink).sum() / len(pairs))
        return total / (len(columns) * (len(columns) - 1)) / columns[0].shape[0]

    mean = formulas.embedding.mean(0)
    before, after = component(8), component(8, residual={(0, 0): mean})
    row = result.find(metric="removed_all_keys", condition="mean", kind="treatment", queries="1:8")
    assert row.value == pytest.approx(1 - after / before, abs=1e-5)
    row = result.find(metric="component_all_keys", condition="mean", kind="treatment")
    assert (row.baseline, row.value) == pytest.approx((before, after), rel=1e-5)


# --- plain Hugging Face


def jackknife(versions: np.ndarray) -> np.ndarray:
    left_out = versions[1:]
    return np.asarray(versions[0] + (len(left_out) - 1) * (left_out.mean() - left_out))


def check_against_plain(plain: Any, model: Any, tokens: Tensor) -> None:
    """Shares, what replacing BOS by the mean removes, and its control, from the definitions."""
    prompts = Prompts(tokens, bos=True, source="test")
    result = run(model, prompts, draws=1, conditions="mean", queries="1:8,1:12", first_tokens=0)
    second = Plain(plain)
    mean = plain.model.embed_tokens.weight.mean(0)
    clean, edited = second.logits(tokens), second.logits(tokens, {0: mean})
    for keys, without in (("all_keys", ()), ("without_key0", (0,))):
        for label, end in (("1:8", 8), ("1:12", 12)):
            before = second.figure(clean, range(1, end), without)
            component, total = before[:, 0, 1:], before[:, 1, 1:]
            # Some layer's variance over so few prompts is not above 0: no share there.
            shares = np.divide(component, total, out=0 * total, where=total > 1e-9).mean(1)
            row = result.find(
                metric="residual_share", condition=keys, kind="measurement", queries=label
            )
            assert row.value == pytest.approx(shares[0], abs=1e-5)
            low, high = stats.ttest_1samp(jackknife(shares), 0).confidence_interval()
            assert (row.ci_low, row.ci_high) == pytest.approx((low, high), abs=1e-4)
    place = result.settings["draws_made"]["control_positions"][0]
    control = second.logits(tokens, {place: mean})

    def removed(runs: np.ndarray, start: int, without: tuple[int, ...]) -> np.ndarray:
        before = second.figure(clean, range(start, 8), without)[:, 0, 1:].mean(1)
        return np.asarray(
            1 - second.figure(runs, range(start, 8), without)[:, 0, 1:].mean(1) / before
        )

    wanted = {
        "treatment": (removed(edited, 1, (0,)), 0.0),
        "control": (removed(control, place + 1, (0, place)), 0.0),
        "contrast": (
            removed(edited, place + 1, (0, place)),
            removed(control, place + 1, (0, place))[0],
        ),
    }
    for kind, (versions, baseline) in wanted.items():
        row = result.find(metric="removed_without_key0", kind=kind, queries="1:8")
        scale = max(1.0, abs(versions[0]))
        assert row.value == pytest.approx(versions[0], abs=1e-5 * scale), kind
        assert row.baseline == pytest.approx(baseline, abs=1e-5 * max(1.0, abs(baseline))), kind
    index = result.settings["compared"].index("mean")
    curve = result.arrays["curve_after"].values[index, 1]
    # At the last query, with the Toeplitz part of all queries.
    by_query = []
    for logits in (edited,):
        residual = logits.copy()
        for d in range(11):
            rows = np.arange(max(1, d + 1), 12)
            residual[..., rows, rows - d] -= residual[..., rows, rows - d].mean(-1, keepdims=True)
        last = residual[1:, :, :, 11, 1:12]
        by_query = [
            (last[:, p] * last[:, q]).mean()
            for p, q in itertools.permutations(range(len(tokens)), 2)
        ]
    assert float(curve[11]) == pytest.approx(np.mean(by_query), rel=1e-3, abs=1e-5)


def mean_cosine(vectors: Tensor) -> float:
    pairs = itertools.combinations(vectors, 2)
    return float(np.mean([torch.cosine_similarity(a, b, dim=0) for a, b in pairs]))


def check_reading_against_plain(plain: Any, model: Any, tokens: Tensor) -> None:
    """A patch, the mask, heads that read a key and fingerprints, from their definitions."""
    prompts = Prompts(tokens, bos=True, source="test")
    config = AbsolutePositionConfig(
        draws=1,
        conditions=("other_token:residual",),
        queries=("1:8", "1:12"),
        layers=(2 if model.cfg.n_layers > 3 else 0,),
        first_tokens=3,
        progress=False,
    )
    result = sinklens.run("absolute_position", model, prompts, **vars(config))
    (layer,) = config.layers
    drawn, second = result.settings["draws_made"], Plain(plain)
    (place,) = drawn["control_positions"]

    def rows(metric: str, condition: str, queries: str | None) -> dict[str, Any]:
        kinds = ("measurement", "control", "contrast")
        named = {"metric": metric, "condition": condition, "queries": queries}
        return {kind: result.find(kind=kind, **named) for kind in kinds}

    def holds(metric: str, condition: str, queries: str | None, value: Any, control: Any) -> None:
        found = rows(metric, condition, queries)
        assert found["measurement"].value == pytest.approx(value, abs=1e-5), metric
        assert found["control"].value == pytest.approx(control, abs=1e-5), metric
        distance = [found[kind].value - found[kind].baseline for kind in ("measurement", "control")]
        if metric != "sink_reading_heads":  # which is read again at the control's queries
            assert found["contrast"].effect == pytest.approx(distance[0] - distance[1], abs=1e-6)

    # The patch: position 0 of another first token. Other keys change behind the patched layer.
    other = tokens.clone()
    other[:, 0] = torch.tensor(drawn["other_tokens"])
    clean = second.logits(tokens)
    patched = second.logits(tokens, patch=(layer, second.states(other)[layer][:, 0]))
    before, after = (
        second.figure(run, range(1, 8), (0,))[0, 0, layer + 1 :].mean() for run in (clean, patched)
    )
    row = result.find(metric="removed_without_key0", kind="treatment", queries="1:8")
    assert row.value == pytest.approx(1 - after / before, abs=1e-5 * max(1, after / before))

    # The mask: C_i of the mean logits at every offset, and with these in another order.
    window = result.settings["mask_window"]
    for keys, first in (("all_keys", 0), ("without_key0", 1)):
        size = 12 - first
        rows_of = [[(i, i - d) for i in range(1, 12) if i - d >= first] for d in range(size)]
        offsets = np.stack(
            [clean[..., [i for i, _ in at], [j for _, j in at]].mean((1, -1)) for at in rows_of], -1
        )
        (order,) = shuffled_orders(size, [12] * 2, config)
        sums, mixed = (
            np.logaddexp.accumulate(one, -1) for one in (offsets, offsets[..., order[0, 0].numpy()])
        )
        steps = np.log(np.arange(1, size + 1))
        slopes = [
            np.polynomial.polynomial.polyfit(steps, one[1:].reshape(-1, size).T, 1)[1].mean()
            for one in (sums, mixed)
        ]
        holds("causal_slope", keys, "1:12", *slopes)
        costs = [
            (one[1:, :, window - 1 :] - one[1:, :, window - 1, None]).mean()
            for one in (sums, mixed)
        ]
        holds(f"window_kl:{window}", keys, "1:12", *costs)

    # Heads: the weight of a key, and the norm of what it brings in over that of all.
    pattern, values, written = second.reads(tokens)
    reading: dict[str, list[float]] = {"weight": [], "readout": []}
    for key in (0, place):
        weight = pattern[..., key + 1 :, key]
        brought = np.linalg.norm(written(values[..., key, :]), axis=-1)[..., None] * weight
        every = np.linalg.norm(written(pattern @ values), axis=-1)[..., key + 1 :]
        for name, one in (("weight", weight), ("readout", brought / every)):
            reading[name].append(float((one.mean(-1) > 0.3).mean()))
    for name, (at_0, later) in reading.items():
        holds("sink_reading_heads", f"{name}>0.3", None, at_0, later)
    contrast = rows("sink_reading_heads", "weight>0.3", None)["contrast"]
    at_0 = float((pattern[..., place + 1 :, 0].mean(-1) > 0.3).mean())
    assert contrast.effect == pytest.approx(at_0 - reading["weight"][1], abs=1e-5)

    # Fingerprints: every prompt behind each token, at position 0 and at the control's.
    chosen = drawn["first_tokens"]
    layers = np.unique(np.linspace(1, len(plain.model.layers) - 1, 5).round().astype(int))
    half = np.empty(len(tokens), int)
    half[np.lexsort(tokens.numpy().T[::-1])] = np.arange(len(tokens)) % 2
    found: dict[tuple[str, int], list[float]] = {}
    for at in (0, place):
        behind = []
        for token in chosen:
            words = tokens.clone()
            words[:, at] = token
            behind.append(torch.stack(second.states(words))[torch.from_numpy(layers)].double())
        if at == 0:
            last = torch.stack([one[-1] for one in behind])  # token, prompt, position
            row = result.find(metric="position0_cosine", condition="stream")
            assert row.value == pytest.approx(mean_cosine(last[:, 0, 0]), abs=1e-5)
            alike = [mean_cosine(one[:, 11]) for one in last]
            assert row.baseline == pytest.approx(np.mean(alike), abs=1e-5)
            assert row.ci_low is None
        for query in (7, 11):
            stream = np.stack([one[:, :, query].numpy() for one in behind])  # token, layer, prompt
            apart = stream - stream.mean(0)
            ratios, right = [], []
            for layer in range(len(layers)):
                pairs = itertools.permutations(range(len(tokens)), 2)
                between = np.mean(
                    [(apart[:, layer, p] * apart[:, layer, q]).sum() / 2 for p, q in pairs]
                )
                ratios.append(between / stream[:, layer].var(1, ddof=1).sum(-1).mean())
                for p in range(len(tokens)):
                    centroids = stream[:, layer, half != half[p]].mean(1)
                    for m in range(len(chosen)):
                        distances = np.linalg.norm(centroids - stream[m, layer, p], axis=-1)
                        right.append(float(distances.argmin() == m))
            found.setdefault(("between_over_within", query), []).append(float(np.mean(ratios)))
            found.setdefault(("nearest_centroid", query), []).append(float(np.mean(right)))
    for (condition, query), (first_value, later) in found.items():
        holds("fingerprint", condition, f"{query}:{query + 1}", first_value, later)


@pytest.fixture
def everything_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares of any component, also of one that a few prompts do not tell from its null."""
    monkeypatch.setattr(position_edits, "above_null", lambda *_: True)


@pytest.mark.usefixtures("everything_removed")
def test_agrees_with_plain_llama() -> None:
    plain = families.llama()
    model = families.boot("llama")
    check_against_plain(plain, model, alike(model, 5))
    check_reading_against_plain(plain, model, alike(model, 5))


def alike(model: Any, n: int) -> Tensor:
    """Prompts alike but for one token each, so that their logits have something in common."""
    tokens = random_prompts(model, n=1, length=12, bos=True).tokens.repeat(n, 1)
    tokens[range(n), [2, 3, 5, 6, 9][:n]] = torch.tensor([20, 30, 40, 50, 60][:n])
    return tokens


@pytest.mark.usefixtures("everything_removed")
def test_agrees_with_plain_smollm2(plain_smollm2: Any, smollm2_tokenizer: Any) -> None:
    model = sinklens.load(copy.deepcopy(plain_smollm2), tokenizer=smollm2_tokenizer)
    tokens = sinklens.prompts(model, n=8, length=12, bos=True).tokens
    check_against_plain(plain_smollm2, model, tokens)
    check_reading_against_plain(plain_smollm2, model, tokens[:4])


# --- probes on real attention


def test_a_learned_sink_is_part_of_log_z() -> None:
    model = sinklens.load("learned-sink")
    prompts = sinklens.prompts(model, n=2, length=12)
    probe = LogSplit(model)
    with torch.no_grad():
        model.run_with_hooks(prompts.tokens, fwd_hooks=probe.fwd_hooks)
    found = probe.compute()
    assert float(found.error.max()) < 1e-4
    assert found.sink_logit is not None
    layers = model.original_model.model.layers
    written = torch.stack([layer.self_attn.sinks.detach().float() for layer in layers])
    assert torch.allclose(found.sink_logit, written, atol=1e-3)


def test_readouts(boot_family: Any) -> None:
    model = boot_family("llama")
    tokens = random_prompts(model, n=3, length=9, bos=True).tokens
    probe = SinkReadouts(model)
    with torch.no_grad():
        model.run_with_hooks(tokens, fwd_hooks=probe.fwd_hooks)
        _, cache = model.run_with_cache(tokens)
    found = probe.compute()
    for layer, head in itertools.product(range(2), range(4)):
        written = model.original_model.model.layers[layer].self_attn.o_proj.weight.detach()
        w_o = written[:, head * 8 : (head + 1) * 8]
        pattern = cache[f"blocks.{layer}.attn.hook_pattern"][:, head, 1:, 0]
        value = cache[f"blocks.{layer}.attn.hook_v"][:, 0, head // 2]
        z = cache[f"blocks.{layer}.attn.hook_z"][:, 1:, head]
        brought = pattern * (value @ w_o.T).norm(dim=-1)[:, None]
        ratio = (brought / (z @ w_o.T).norm(dim=-1)).mean(1)
        assert torch.allclose(found.readout[:, layer, head], ratio, atol=1e-5)
        assert torch.allclose(found.weight[:, layer, head], pattern.mean(1), atol=1e-6)


# --- families, edges, surfaces

QUICK: dict[str, Any] = {"draws": 1, "first_tokens": 2, "conditions": ("mean", "zero:key")}


def has_nan(result: ExperimentResult) -> bool:
    try:
        json.dumps([vars(effect) for effect in result.effects], allow_nan=False)
    except ValueError:
        return True
    return False


@pytest.mark.usefixtures("everything_removed")  # four prompts tell little from nothing
def test_families(family: Any) -> None:
    name = family.cfg.model_name
    prompts = Prompts(alike(family, 4), bos=True, source="test")
    if name in ("tiny-opt", "tiny-bert"):
        with pytest.raises(SinklensError, match=r"hook_attn_scores|causal"):
            run(family, prompts, **QUICK)
        return
    result = run(family, prompts, **QUICK)
    assert not has_nan(result)
    assert not any(point.has_hooks() for point in family.hook_dict.values())
    checks = result.settings["checks"]
    assert checks["split_error"] < 1e-4
    assert checks["toeplitz_share"] < 1e-6
    assert checks["position0_change"] < 1e-4
    change = checks["shifted_positions"]["change"]
    assert change > 0.1 if name == "tiny-gpt2" else change < 1e-3
    notes = " ".join(result.notes())
    assert ("window and causal mask are the same" in notes) == (
        name not in ("tiny-mistral", "tiny-gemma2")
    )
    assert (
        result.find(
            metric="removed_all_keys", condition="mean", kind="treatment", queries="1:8"
        ).n_prompts
        == 4
    )


@pytest.fixture(scope="module")
def rope() -> Any:
    return sinklens.load("rope")


@pytest.fixture(scope="module")
def prompts(rope: Any) -> Prompts:
    return sinklens.prompts(rope, n=5, length=16)


def test_batches_and_order_do_not_matter(rope: Any, prompts: Prompts) -> None:
    settings = {**QUICK, "conditions": ("mean", "other_token:residual"), "layers": (2,)}
    whole = run(rope, prompts, **settings)
    single = run(rope, prompts, batch_size=1, **settings)
    order = [3, 0, 4, 1, 2]
    moved = run(rope, Prompts(prompts.tokens[order], True, "sotu"), **settings)
    for other in (single, moved):
        for one, two in zip(whole.effects, other.effects, strict=True):
            assert two.value == pytest.approx(one.value, abs=1e-4 * max(1, abs(one.value)))
    values = whole.per_prompt["value"][:, order]
    assert torch.allclose(values, moved.per_prompt["value"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"metrics": "loss"}, "takes no metrics"),
        ({"screen": True}, "nothing to screen"),
        ({"positions": (3,)}, "set queries="),
        ({"queries": "0:8"}, "starts at 1"),
        ({"queries": "1:3"}, "at least 3 queries"),
        ({"queries": "early"}, "no range"),
        ({"queries": ()}, "at least one range"),
        ({"conditions": "meen"}, "did you mean mean"),
        ({"conditions": "rescaled:key"}, "residual stream"),
        ({"layers": (99,)}, "no layer 99"),
        ({"first_tokens": -1}, "0 or more"),
    ],
)
def test_refused_settings(rope: Any, prompts: Prompts, settings: Any, reason: str) -> None:
    with pytest.raises(SinklensError, match=reason):
        run(rope, prompts, **settings)


def test_refused_inputs(rope: Any, prompts: Prompts) -> None:
    with pytest.raises(SinklensError, match="at least 3"):
        run(rope, Prompts(prompts.tokens[:2], True, "test"))
    with pytest.raises(SinklensError, match="no range of queries is left"):
        run(rope, Prompts(prompts.tokens[:, :3], True, "test"))
    with pytest.raises(SinklensError, match="replaces BOS"):
        run(rope, prompts.without_first(), conditions="mean")
    with pytest.raises(SinklensError, match="at least two layers"):
        model = sinklens.load("backcopy-1")
        run(model, sinklens.prompts(model, n=3, length=8))


def test_no_share_of_nothing(rope: Any, prompts: Prompts) -> None:
    """Over five prompts, attention to later keys is not above the null: no share of that."""
    result = run(rope, prompts, draws=1, first_tokens=0, conditions="mean")
    row = result.find(metric="component_without_key0", kind="treatment", queries="1:8")
    values = result.per_prompt["baseline"][result.effects.index(row)].numpy()
    assert stats.ttest_1samp(values, 0).confidence_interval().low < 0 < row.baseline
    assert not [e for e in result.effects if e.metric == "removed_without_key0"]
    assert any("removed_without_key0" in what for what in result.settings["left_out"])
    line = next(line for line in result.summary if line.startswith("Replacing BOS by mean"))
    assert "no component to remove at 1:8 (not above its null); with key 0" in line
    assert any("removed here with key 0, since" in line for line in result.summary)
    assert any("uniform attention, 0%" in line for line in result.summary)


def test_without_bos_patches_are_left(rope: Any, prompts: Prompts) -> None:
    result = run(rope, prompts.without_first(), draws=1, first_tokens=0, layers=(1,))
    conditions = {what for what in result.settings["left_out"] if " at " not in what}
    assert conditions == {"mean", "zero", "random_token", "gaussian"}
    # Five prompts without BOS: nothing above the null to take a share of, so what is left in nats.
    assert "Patching position 0: there is nothing to remove" in " ".join(result.summary)
    kinds = {e.kind for e in result.effects if e.metric == "component_without_key0"}
    assert kinds == {"treatment", "control", "contrast"}
    assert result.settings["compared"] == [
        f"other_token:{p}@L1" for p in ("residual", "key", "value")
    ]
    result.plot()


def test_short_prompts_and_no_draws(rope: Any, prompts: Prompts) -> None:
    short = Prompts(prompts.tokens[:, :4], True, "test")
    result = run(rope, short, draws=0, first_tokens=2)
    assert result.settings["ranges"] == ["1:4"]
    kinds = {e.kind for e in result.effects if not e.condition.endswith(":moved")}
    assert kinds == {"measurement", "treatment"}
    assert "draws is 0" in " ".join(result.notes())
    assert not has_nan(run(rope, short, draws=2, first_tokens=2))


def test_a_patch_of_the_last_layer_changes_one_logit_only() -> None:
    """That of its own key: nothing without key 0, and nothing at all where a value is patched."""
    model = families.boot("llama")
    prompts = random_prompts(model, n=4, length=12, bos=True)
    settings = {**QUICK, "layers": (1,), "first_tokens": 0}
    conditions = ("other_token:residual", "other_token:value")
    result = run(model, prompts, **{**settings, "conditions": conditions})
    patched = {(e.metric, e.condition) for e in result.effects if e.layer is not None}
    assert {metric for metric, _ in patched} <= {"removed_all_keys", "component_all_keys"}
    assert {condition for _, condition in patched} == {"other_token:residual"}
    assert not has_nan(result)
    reasons = [why for why in result.settings["left_out"].values() if "no layer behind" in why]
    assert reasons and any(line.startswith("Patching position 0") for line in result.summary)
    value = run(model, prompts, **{**settings, "conditions": conditions[1:]})
    assert any("there is nothing to remove" in line for line in value.summary)


def test_half_precision() -> None:
    model = sinklens.load("rope", dtype="bfloat16")
    result = run(model, sinklens.prompts(model, n=4, length=16), **QUICK)
    assert not has_nan(result)
    checks = result.settings["checks"]
    assert 1e-5 < checks["split_error"] < 0.05
    # Rotary positions are known by differences in any precision.
    assert checks["shifted_positions"]["change"] > 1e-2
    assert any("no absolute position is told" in note for note in result.notes())


def test_broken_weights_are_refused() -> None:
    model = families.boot("llama")
    prompts = random_prompts(model, n=3, length=8, bos=True)
    sinklens.check(model)
    with torch.no_grad():
        model.original_model.model.layers[1].self_attn.q_proj.weight.fill_(math.nan)
    with pytest.raises(SinklensError, match="NaN"):
        run(model, prompts, **QUICK)


@pytest.mark.usefixtures("everything_removed")
def test_the_summary_and_the_figure(rope: Any, prompts: Prompts, tmp_path: Path) -> None:
    result = run(rope, prompts, draws=1, first_tokens=2, queries="1:8,1:16")
    assert len(result.summary) <= 12
    assert any("2606.06160 reports 40%" in line for line in result.summary)
    assert any("null" in line for line in result.summary)
    drawn = plot(result)
    assert [trace.name for trace in drawn.data] == [
        "clean",
        "mean",
        "zero",
        "random_token",
        "gaussian",
    ]
    assert drawn.data[0].x == ("1:2", "2:4", "4:8", "8:16")
    curve = result.arrays["curve"].values[1]
    assert drawn.data[0].y[2] == pytest.approx(float(curve[4:8].mean()))
    result.save(tmp_path / "out")
    again = ExperimentResult.load(tmp_path / "out")
    assert again.effects == result.effects
    assert again.summary == result.summary
    contrasts = {(e.metric, e.condition, e.queries) for e in result.effects if e.kind == "contrast"}
    treated = {(e.metric, e.condition, e.queries) for e in result.effects if e.kind == "treatment"}
    kinds = ("measurement", "null")
    read = {(e.metric, e.condition, e.queries) for e in result.effects if e.kind in kinds}
    assert treated <= contrasts <= treated | read
    assert any("a token at a later position" in line for line in result.summary)
    assert any("offsets shuffled" in line for line in result.summary)
    assert {("removed_all_keys", "mean", "1:8"), ("component_all_keys", "mean", "1:8")} <= contrasts


def test_command_line(tmp_path: Path) -> None:
    command = ["run", "absolute_position", "rope", "--n-prompts", "3", "--length", "10", "--quiet"]
    command += ["--set", "draws=1", "--set", "first_tokens=0", "--set", "conditions=mean"]
    command += ["--set", "queries=1:8", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "result.json").is_file()
    refused = CliRunner().invoke(
        app, ["run", "absolute_position", "encoder", "--n-prompts", "3", "--length", "10"]
    )
    assert refused.exit_code == 1
    assert "causal" in refused.output
