"""Every architecture: the page of limits is what is found, and edits do what plain code does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sinklens.models.capabilities import check
from tests import limits
from tests.architectures.beside import QUICK, attention, bridge, of_every, plain, run, works
from tests.architectures.cells import TOKENS
from tests.reference import plain_families as reference
from tests.reference.plain_attention import edited, without_key0

every = of_every(*QUICK)
LAYER, HEADS = 1, (1, 2)


def compare(result: Any, clean: Tensor, edited: Tensor, tokens: Tensor = TOKENS) -> None:
    """The treatment's loss and KL, those of them that there are."""
    rows = {row.metric: row for row in result.effects if row.kind == "treatment"}
    assert {"loss", "kl"} & rows.keys()
    if "kl" in rows:
        kl = float(reference.kl(clean, edited).mean())
        assert rows["kl"].value == pytest.approx(kl, rel=1e-3, abs=1e-4)
    if "loss" in rows:
        before, after = (float(reference.loss(x, tokens).mean()) for x in (clean, edited))
        assert rows["loss"].value == pytest.approx(after, abs=1e-4)
        assert rows["loss"].baseline == pytest.approx(before, abs=1e-4)


def embedding(model: Any) -> Any:
    """What puts the embeddings out: Bloom, BERT and RoBERTa norm them."""
    for encoder in ("bert", "roberta"):
        if hasattr(model, encoder):
            return getattr(model, encoder).embeddings
    return getattr(getattr(model, "transformer", None), "word_embeddings_layernorm", None)


@of_every("Mamba")
def test_the_page_says_what_is_found(name: str) -> None:
    found = limits.row(name).outcomes
    assert limits.on_page(name) == {
        experiment: (one.word, frozenset(one.reasons)) for experiment, one in found.items()
    }


@every
def test_bos_replaced_is_that_of_plain_code(name: str) -> None:
    if works(name, "bos_replacement"):
        clean = reference.logits(plain(name), TOKENS)
        edited = reference.without_bos(plain(name), TOKENS, embedding(plain(name)))
        compare(run("bos_replacement", name, conditions="zero"), clean, edited)


@every
@pytest.mark.parametrize("bos", [True, False])
def test_the_stream_patched_is_that_of_plain_code(name: str, bos: bool) -> None:
    if works(name, "position0_patching"):
        tokens = TOKENS if bos else TOKENS[:, 1:]
        clean = reference.logits(plain(name), tokens)
        edited = reference.without_stream(plain(name), tokens, LAYER)
        settings = {"conditions": "zero:residual", "layers": (LAYER,), "bos": bos}
        compare(run("position0_patching", name, **settings), clean, edited, tokens)


@every
def test_heads_ablated_are_those_of_plain_code(name: str) -> None:
    if works(name, "sink_head_ablation") and check(bridge(name)).edits["z"]:
        layer, n_heads = check(bridge(name)).attention[-1], check(bridge(name)).n_heads
        clean = reference.logits(plain(name), TOKENS)
        edited = reference.without_heads(plain(name), TOKENS, {layer: HEADS}, n_heads)
        labels = ",".join(f"L{layer}H{head}" for head in HEADS)
        compare(run("sink_head_ablation", name, heads=labels, conditions="zero"), clean, edited)


@every
@pytest.mark.parametrize("condition", ["drop_edge", "drop_edge_unnormalised"])
def test_edges_dropped_are_those_of_plain_code(name: str, condition: str) -> None:
    """Of two heads of the first layer with attention."""
    left_out = " ".join(limits.on_page(name)["sink_head_ablation"][1])
    if not works(name, "sink_head_ablation") or f"{condition}: " in left_out:
        return
    first = check(bridge(name)).attention[0]
    change = without_key0({0: HEADS}, normalised=condition == "drop_edge")
    clean = reference.logits(plain(name), TOKENS)
    with edited(TOKENS, change):
        after = reference.logits(plain(name), TOKENS)
    labels = ",".join(f"L{first}H{head}" for head in HEADS)
    compare(run("sink_head_ablation", name, heads=labels, conditions=condition), clean, after)


@every
def test_a_value_of_zero_is_that_of_plain_code(name: str) -> None:
    """Without the value of key 0 later queries read what they read without its weight."""
    if works(name, "position0_patching") and check(bridge(name)).edits["value"]:
        first = check(bridge(name)).attention[0]
        every_head = range(check(bridge(name)).n_heads)
        clean = reference.logits(plain(name), TOKENS)
        with edited(TOKENS, without_key0({0: every_head}, normalised=False)):
            after = reference.logits(plain(name), TOKENS)
        found = run("position0_patching", name, conditions="zero:value", layers=(first,))
        compare(found, clean, after)


@every
def test_a_key_of_zero_is_that_of_plain_code(name: str) -> None:
    """The score of a key of zeros is 0; MPT adds a bias to it, which is left out here."""
    if name == "MPT" or not (
        works(name, "position0_patching") and check(bridge(name)).edits["key"]
    ):
        return
    first = check(bridge(name)).attention[0]
    one = attention(name)[first]
    zero = torch.zeros(())
    if one.sink.numel():  # GPT-OSS takes the largest of each row away before the softmax
        block: Any = reference.blocks(plain(name))[first]
        zero = (one.sink - block.self_attn.sinks.detach()[:, None, None])[..., 1:, 0]
    scores = one.scores.clone()
    scores[..., 1:, 0] = torch.where(one.seen[1:, 0], zero, scores[..., 1:, 0])
    rows = torch.cat([scores, one.sink], -1).softmax(-1)[..., : TOKENS.shape[1]]
    clean = reference.logits(plain(name), TOKENS)
    with edited(TOKENS, lambda layer, weights: weights if layer else rows):
        after = reference.logits(plain(name), TOKENS)
    compare(run("position0_patching", name, conditions="zero:key", layers=(first,)), clean, after)


@every
def test_sink_mass_is_that_of_plain_code(name: str) -> None:
    if works(name, "sink_profile"):
        wanted = torch.stack(
            [one.weights[:, :, 1:, 0].mean((0, 2)) for one in attention(name).values()]
        )
        found = run("sink_profile", name).arrays["sink_mass"].values
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
