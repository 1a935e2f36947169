"""Every architecture: the page of limits is what is found, and numbers are those of plain code."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import sinklens
from sinklens.models.capabilities import check
from tests import families, limits
from tests.architectures.models import ARCHITECTURES
from tests.limits import TOKENS
from tests.reference import plain_families as reference

QUICK = ("Llama 3", "Mamba")
every = pytest.mark.parametrize(
    "name",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.architectures)
        for name in ARCHITECTURES
    ],
)
RUN = {"progress": False, "draws": 0, "null_models": 0}
LAYER, HEADS = 1, (1, 2)


@cache
def plain(name: str) -> Any:
    return ARCHITECTURES[name]()


@cache
def bridge(name: str) -> Any:
    return sinklens.load(ARCHITECTURES[name](), tokenizer=families.tiny_tokenizer())


def works(name: str, experiment: str) -> bool:
    return limits.on_page(name)[experiment][0] != "refused"


def run(experiment: str, name: str, *, bos: bool = True, **settings: Any) -> Any:
    prompts = sinklens.Prompts(TOKENS if bos else TOKENS[:, 1:], bos=bos, source="tokens")
    return sinklens.run(experiment, bridge(name), prompts, **{**RUN, **settings})


def compare(result: Any, clean: Tensor, edited: Tensor, tokens: Tensor) -> None:
    """The treatment's loss, where there is one, and KL."""
    rows = {row.metric: row for row in result.effects if row.kind == "treatment"}
    kl = float(reference.kl(clean, edited).mean())
    assert rows["kl"].value == pytest.approx(kl, rel=1e-3, abs=1e-4)
    if "loss" in rows:
        before, after = (float(reference.loss(x, tokens).mean()) for x in (clean, edited))
        assert rows["loss"].value == pytest.approx(after, abs=1e-4)
        assert rows["loss"].baseline == pytest.approx(before, abs=1e-4)


def embedding(model: Any) -> Any:
    """What puts the embeddings out: Bloom and BERT norm them."""
    if hasattr(model, "bert"):
        return model.bert.embeddings
    return getattr(getattr(model, "transformer", None), "word_embeddings_layernorm", None)


@pytest.mark.parametrize(
    "name",
    [
        name if name == "Mamba" else pytest.param(name, marks=pytest.mark.architectures)
        for name in ARCHITECTURES
    ],
)
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
        compare(run("bos_replacement", name, conditions="zero"), clean, edited, TOKENS)


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
def test_sink_mass_is_that_of_plain_code(name: str) -> None:
    if works(name, "sink_profile"):
        wanted = reference.sink_mass(plain(name), TOKENS)
        assert tuple(wanted) == check(bridge(name)).attention
        by_head = torch.stack([mass.mean(0) for mass in wanted.values()])
        found = run("sink_profile", name).arrays["sink_mass"].values
        torch.testing.assert_close(found, by_head, atol=1e-5, rtol=0)


@every
def test_heads_ablated_are_those_of_plain_code(name: str) -> None:
    if works(name, "sink_head_ablation") and check(bridge(name)).edits["z"]:
        layer, n_heads = check(bridge(name)).attention[-1], check(bridge(name)).n_heads
        clean = reference.logits(plain(name), TOKENS)
        edited = reference.without_heads(plain(name), TOKENS, layer, HEADS, n_heads)
        labels = ",".join(f"L{layer}H{head}" for head in HEADS)
        compare(
            run("sink_head_ablation", name, heads=labels, conditions="zero"), clean, edited, TOKENS
        )
