"""The figures are those of plain Hugging Face.

The second computation (`tests.reference.plain_logits`) takes hidden states, projections and rotary
embeddings from a plain Hugging Face model, and the figures from their definitions in numpy. It
shares nothing with sinklens.
"""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import sinklens
from sinklens.experiments.position._mask import shuffled_orders
from sinklens.experiments.position.absolute_position import AbsolutePositionConfig
from sinklens.models.prompts import Prompts
from tests import families
from tests.experiments.position.helpers import alike, run
from tests.reference.plain_logits import Plain

pytestmark = pytest.mark.slow


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
    place = result.draws["control_positions"][0]
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
    index = result.arrays["curve_after"].labels("edit").index("mean")
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
    drawn, second = result.draws, Plain(plain)
    (place,) = drawn["control_positions"]

    def rows(metric: str, condition: str, queries: str | None) -> dict[str, Any]:
        named = {"metric": metric, "condition": condition, "queries": queries}
        beside = "null" if metric in ("causal_slope", "window_kl") else "control"
        kinds = {"measurement": "measurement", "control": beside, "contrast": "contrast"}
        return {name: result.find(kind=kind, **named) for name, kind in kinds.items()}

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
    window = result.findings["mask_window"]
    for keys, first in (("all_keys", 0), ("without_key0", 1)):
        size = 12 - first
        rows_of = [[(i, i - d) for i in range(1, 12) if i - d >= first] for d in range(size)]
        offsets = np.stack(
            [clean[..., [i for i, _ in at], [j for _, j in at]].mean((1, -1)) for at in rows_of], -1
        )
        (order,) = shuffled_orders(size, [12] * 2, config.draws, config.seed)
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
        holds("window_kl", keys, "1:12", *costs)

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


@pytest.mark.usefixtures("everything_removed")
def test_agrees_with_plain_llama() -> None:
    plain = families.llama()
    model = families.boot("llama")
    check_against_plain(plain, model, alike(model, 5))
    check_reading_against_plain(plain, model, alike(model, 5))


@pytest.mark.heavy
@pytest.mark.usefixtures("everything_removed")
def test_agrees_with_plain_smollm2(plain_smollm2: Any, smollm2_tokenizer: Any) -> None:
    model = sinklens.load(copy.deepcopy(plain_smollm2), tokenizer=smollm2_tokenizer)
    tokens = sinklens.prompts(model, n=8, length=12, bos=True).tokens
    check_against_plain(plain_smollm2, model, tokens)
    check_reading_against_plain(plain_smollm2, model, tokens[:4])
