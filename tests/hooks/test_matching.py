"""Where controls edit, and the nulls, against cases counted by hand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sinklens
from sinklens.hooks.matching import control_positions, derangement, matched_heads, matched_in_layers
from sinklens.stats.nulls import (
    gaussian_exceeds,
    gaussian_peak_kurtosis,
    uniform_sink_mass,
    uniform_sink_scores,
)


def test_uniform_attention_by_hand() -> None:
    assert uniform_sink_scores(64)[0] == pytest.approx(0.0741, abs=5e-5)  # H_64 / 64
    assert uniform_sink_scores(3).tolist() == pytest.approx([11 / 18, 5 / 12, 1 / 3])
    assert uniform_sink_mass(3) == pytest.approx((1 / 2 + 1 / 3) / 2)
    # A window of 2: query 2 no longer sees key 0.
    assert uniform_sink_scores(3, window=2)[0] == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert uniform_sink_mass(4, causal=False) == pytest.approx(1 / 4)
    # A learned sink takes as much as a key does.
    assert uniform_sink_mass(3, learned_sink=True) == pytest.approx((1 / 3 + 1 / 4) / 2)
    assert uniform_sink_scores(3, learned_sink=True)[0] == pytest.approx(
        (1 / 2 + 1 / 3 + 1 / 4) / 3
    )


def test_control_positions_leave_a_prediction_to_count() -> None:
    places = control_positions(64, 200, seed=0)
    assert set(places) == set(range(1, 17))
    assert control_positions(4, 3, seed=0) == [1, 1, 1]
    assert control_positions(3, 3, seed=0) == []  # position 2 has no next token
    assert control_positions(64, 3, seed=0, sample=(1, 2)) == [1, 1, 1]
    assert control_positions(64, 3, seed=0, sample=(1,)) == []


def test_control_heads_come_from_the_same_layer_then_the_nearest() -> None:
    others = [(0, 0), (1, 3), (2, 1), (2, 2), (5, 0)]
    for draw in range(20):
        found = matched_heads([(2, 0), (2, 3), (4, 1)], others, seed=0, draw=draw)
        assert Counter(layer for layer, _ in found) == {2: 2, 5: 1}


def test_unmatched_heads_are_matched_in_each_layer() -> None:
    """Sets by hand: layer 0 has two of three, layer 1 one of one, layer 2 no other head."""
    treated = [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0)]
    others = [(0, 3), (0, 4), (1, 1), (1, 2), (3, 0)]
    seen = set()
    for draw in range(20):
        control, own = matched_in_layers(treated, others, seed=0, draw=draw)
        assert Counter(layer for layer, _ in control) == {0: 2, 1: 1}
        assert Counter(layer for layer, _ in own) == {0: 2, 1: 1}
        assert set(own) <= set(treated) and set(control) <= set(others)
        assert len(set(own)) == len(set(control)) == 3
        seen |= {*own, *control}
    assert seen == {*treated[:4], *others[:4]}
    assert matched_in_layers([(0, 0)], [(1, 0)], seed=0, draw=0) == ([], [])


@pytest.mark.slow
@pytest.mark.parametrize("each", [True, False])
def test_a_control_head_is_no_sink_head(each: bool) -> None:
    model = sinklens.load("rope")
    prompts = sinklens.prompts(model, n=4, length=32)
    result = sinklens.run(
        "sink_head_ablation",
        model,
        prompts,
        heads="L2H0,L3H1",
        conditions="zero",
        each=each,
        draws=4,
        progress=False,
    )
    mass = result.arrays["sink_mass"].values
    labels = [label for draw in result.draws["control_heads"]["zero"] for label in draw]
    assert labels
    for label in labels:
        layer, head = map(int, label[1:].split("H"))
        assert mass[layer, head] <= 0.3


def test_a_derangement_follows_the_prompts() -> None:
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 9, (7, 5)))
    partner = derangement(tokens, 0, 0)
    assert sorted(partner.tolist()) == list(range(7))
    assert (partner != torch.arange(7)).all()
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    moved = derangement(tokens[order], 0, 0)
    assert torch.equal(tokens[order][moved], tokens[partner][order])
    assert derangement(tokens[:1], 0, 0).tolist() == [0]


def test_short_prompts_get_a_sentence_instead_of_controls(boot_family: Any) -> None:
    model = boot_family("llama")
    prompts = sinklens.Prompts(torch.tensor([[1, 5, 9], [1, 7, 30]]), bos=True, source="tokens")
    result = sinklens.run("bos_replacement", model, prompts, conditions="mean", progress=False)
    assert {effect.kind for effect in result.effects} == {"treatment"}
    assert any(note.startswith("No control for mean") for note in result.notes())


def test_nulls_of_spikes_are_those_of_gaussian_streams() -> None:
    """Drawn: 400 streams of 24 positions and 64 channels; the vector with the largest entry."""
    random = np.random.default_rng(0)
    sizes = np.abs(random.standard_normal((400, 24, 64)))
    largest = sizes.reshape(400, -1).argmax(1) // 64
    vectors = sizes[np.arange(400), largest]
    kurtosis = 64 * (vectors**4).sum(1) / (vectors**2).sum(1) ** 2
    assert gaussian_peak_kurtosis(24, 64) == pytest.approx(np.median(kurtosis), rel=0.03)
    assert gaussian_peak_kurtosis(24, 64) > 3 * 64 / 66  # what a vector that was not chosen has
    medians = np.median(sizes.reshape(400, -1), axis=1)
    share = (sizes.max((1, 2)) >= 5 * medians).mean()
    assert gaussian_exceeds(24 * 64, 5.0) == pytest.approx(share, abs=0.06)  # 2.5 standard errors
    one = gaussian_exceeds(1, 5.0)
    assert 1 - (1 - one) ** 10 == pytest.approx(gaussian_exceeds(10, 5.0))


@pytest.mark.heavy
def test_heads_of_smollm2_are_matched_in_their_layers(smollm2_gguf: Path) -> None:
    """More heads are sinks than not: those ablated, and others as many in the same layers."""
    model = sinklens.load(smollm2_gguf)
    prompts = sinklens.prompts(model, n=2, length=16, bos=True)
    result = sinklens.run(
        "sink_head_ablation",
        model,
        prompts,
        conditions=("zero",),
        metrics=("loss",),
        draws=3,
        progress=False,
    )
    mass = result.arrays["sink_mass"].values
    sinks = {tuple(head) for head in (mass > 0.3).nonzero().tolist()}
    assert len(sinks) > mass.numel() / 2
    most = {layer: int((mass[layer] > 0.3).sum()) for layer in range(len(mass))}
    drawn = {
        name: [
            [tuple(map(int, label[1:].split("H"))) for label in labels]
            for labels in result.draws[name]["zero:matched"]
        ]
        for name in ("treated_heads", "control_heads")
    }
    for own, control in zip(*drawn.values(), strict=True):
        assert set(own) <= sinks and not set(control) & sinks
        assert len(set(own)) == len(own) and len(set(control)) == len(control)
        layers = Counter(layer for layer, _ in own)
        assert layers == Counter(layer for layer, _ in control)
        heads = mass.shape[1]
        assert layers == {k: min(n, heads - n) for k, n in most.items() if 0 < n < heads}
    whole = [row.kind for row in result.effects if row.condition == "zero"]
    part = [row.kind for row in result.effects if row.condition == "zero:matched"]
    assert whole == ["treatment"] and part == ["treatment", "control", "contrast"]
