"""Models that have attention in some layers or in none, beside plain Hugging Face hooks."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import sinklens
from sinklens import SinklensError
from sinklens.core.errors import UsageError
from sinklens.hooks import ablate_heads, patch_position0
from sinklens.models.capabilities import check
from sinklens.probes import KeyMass, PositionValues, SinkScores
from tests import odd_models
from tests.families import BOS, N_HEADS
from tests.reference import plain_families as reference

pytestmark = pytest.mark.slow

TOKENS = torch.tensor(
    [[BOS, 5, 9, 17, 30, 12, 44, 8, 21, 33], [BOS, 7, 7, 40, 22, 9, 31, 15, 6, 50]]
)
RUN = {"progress": False, "draws": 0, "null_models": 0}
ATTENTION = {
    "hybrid": (1,),
    "qwen3_next": (1,),
    "granite_4": (1,),
    "jamba": (1,),
    "bamba": (1,),
    "olmo_hybrid": (1,),
    "lfm2": (1,),
    "falcon_h1": (0, 1, 2),
    "mamba": (),
    "nemotron_h": (),
    "rwkv": (),
}
QUICK = ("qwen3_next", "mamba")


def tried(names: Iterable[str]) -> pytest.MarkDecorator:
    """Parametrise by models, of which some are tried by default."""
    asked = pytest.mark.architectures
    return pytest.mark.parametrize(
        "name", [name if name in QUICK else pytest.param(name, marks=asked) for name in names]
    )


every = tried(ATTENTION)
some = tried(name for name, layers in ATTENTION.items() if layers)
none = tried(name for name, layers in ATTENTION.items() if not layers)


@cache
def plain(name: str) -> PreTrainedModel:
    return getattr(odd_models, name)()


@cache
def bridge(name: str) -> Any:
    return sinklens.load(getattr(odd_models, name)())


def run(experiment: str, name: str, **settings: Any) -> Any:
    prompts = sinklens.Prompts(TOKENS, bos=True, source="tokens")
    return sinklens.run(experiment, bridge(name), prompts, **{**RUN, **settings})


def row(result: Any, metric: str, **which: Any) -> Any:
    return result.find(metric=metric, kind="treatment", **which)


def has_values(result: Any, clean: torch.Tensor, edited: torch.Tensor, **which: Any) -> None:
    """Loss and KL of a row are those of plain logits."""
    loss = row(result, "loss", **which)
    assert loss.value == pytest.approx(float(reference.loss(edited, TOKENS).mean()), abs=1e-4)
    assert loss.baseline == pytest.approx(float(reference.loss(clean, TOKENS).mean()), abs=1e-4)
    wanted = float(reference.kl(clean, edited).mean())
    assert row(result, "kl", **which).value == pytest.approx(wanted, rel=1e-3, abs=1e-5)


@every
def test_layers_with_attention_are_found(name: str) -> None:
    assert check(bridge(name)).attention == ATTENTION[name]


@every
def test_bos_and_the_stream_are_those_of_plain_hooks(name: str) -> None:
    clean = reference.logits(plain(name), TOKENS)
    replaced = run("bos_replacement", name, conditions="zero")
    has_values(replaced, clean, reference.without_bos(plain(name), TOKENS))
    patched = run("position0_patching", name, conditions="zero:residual")
    for layer in range(odd_models.LAYERS):
        edited = reference.without_stream(plain(name), TOKENS, layer)
        has_values(patched, clean, edited, layer=layer)


@some
def test_sinks_are_those_of_the_layers_with_attention(name: str) -> None:
    wanted = reference.sink_mass(plain(name), TOKENS)
    assert tuple(wanted) == ATTENTION[name]
    by_head = torch.stack([mass.mean(0) for mass in wanted.values()])
    result = run("sink_profile", name)
    mass = result.arrays["sink_mass"]
    torch.testing.assert_close(mass.values, by_head, atol=1e-5, rtol=0)
    assert mass.labels("layer") == [str(layer) for layer in ATTENTION[name]]
    position0 = result.find(metric="sink_mass", condition="position0")
    assert position0.value == pytest.approx(float(by_head.mean()), abs=1e-5)
    layer, head = divmod(int(by_head.argmax()), N_HEADS)
    assert any(f"L{ATTENTION[name][layer]}H{head}" in line for line in result.summary)
    said = any("only these have attention: 1." in note for note in result.settings["notes"])
    assert said == (ATTENTION[name] == (1,))
    shown = sinklens.diagnose(bridge(name), TOKENS, draws=0, null_models=0, progress=False)
    assert ("1 layers with attention x 4 heads" in str(shown)) == (ATTENTION[name] == (1,))


@some
def test_sink_mass_under_an_edit_is_read_where_there_is_attention(name: str) -> None:
    with reference._after(plain(name).get_input_embeddings(), reference.at_zero):
        edited = reference.sink_mass(plain(name), TOKENS)
    wanted = torch.stack([mass.mean() for mass in edited.values()]).mean()
    result = run("bos_replacement", name, conditions="zero", metrics="sink_mass")
    assert row(result, "sink_mass").value == pytest.approx(float(wanted), abs=1e-5)
    patched = run("position0_patching", name, conditions="zero:residual", metrics="sink_mass")
    reached = {one.layer for one in patched.effects}
    assert reached == set(range(ATTENTION[name][-1] + 1))
    with reference._before(reference.blocks(plain(name))[1], reference.at_zero):
        edited = reference.sink_mass(plain(name), TOKENS)
    wanted = torch.stack([m.mean() for layer, m in edited.items() if layer >= 1]).mean()
    assert row(patched, "sink_mass", layer=1).value == pytest.approx(float(wanted), abs=1e-5)


@some
def test_heads_are_ablated_where_they_are(name: str) -> None:
    clean = reference.logits(plain(name), TOKENS)
    edited = reference.without_heads(plain(name), TOKENS, {1: [1, 2]}, N_HEADS)
    result = run("sink_head_ablation", name, heads="L1H1,L1H2", conditions="zero")
    has_values(result, clean, edited)
    everything = run("sink_head_ablation", name, heads="all", conditions="zero")
    heads = [f"L{layer}H{head}" for layer in ATTENTION[name] for head in range(N_HEADS)]
    assert everything.draws["heads"] == heads


@some
def test_heads_are_scored_and_removed_where_they_are(name: str) -> None:
    layers = list(map(str, ATTENTION[name]))
    settings = {"conditions": "output_norm", "removed": (0.5,), "random_weights": False}
    result = run("active_dormant", name, **settings)
    scores = result.arrays["scores"]
    assert scores.labels("layer") == layers
    if len(layers) > 1:
        return
    norms = scores.values[scores.labels("score").index("output_norm"), 0]
    gone = norms.argsort()[:2].tolist()
    edited = reference.without_heads(plain(name), TOKENS, {1: gone}, N_HEADS)
    has_values(result, reference.logits(plain(name), TOKENS), edited)


@some
def test_patterns_and_weights_of_the_layers_with_attention_are_read(name: str) -> None:
    layers = list(map(str, ATTENTION[name]))
    wanted = torch.stack(
        [mass.mean(0) for mass in reference.sink_mass(plain(name), TOKENS).values()]
    )
    tried = ["input_dependence", "qk_eigenspectrum"]
    if not check(bridge(name)).gated:
        tried.append("bias_constancy")
    for experiment in tried:
        own = {"burn_in": 2} if experiment == "bias_constancy" else {}
        try:
            result = run(experiment, name, **own)
        except SinklensError as error:
            assert "queries and keys are normalised" in str(error), error
            continue
        mass = result.arrays["sink_mass"]
        torch.testing.assert_close(mass.values.float(), wanted, atol=1e-5, rtol=0)
        assert mass.labels("layer") == layers


@every
def test_the_largest_entry_is_that_of_plain_streams(name: str) -> None:
    if name == "falcon_h1":  # Mamba writes beside attention
        with pytest.raises(SinklensError, match="something writes beside them"):
            run("massive_activations", name, scale_free=4.0)
        return
    result = run("massive_activations", name, scale_free=4.0)
    sizes = [stream.abs().flatten(1) for stream in reference.streams(plain(name), TOKENS)]
    largest = torch.stack([size.amax(1).mean() for size in sizes])
    found = result.arrays["top_magnitude"].values
    between_blocks = found.reshape(len(found), -1)[::2, 0]
    torch.testing.assert_close(between_blocks, largest, atol=1e-4, rtol=1e-5)


@none
def test_what_reads_patterns_is_refused_in_one_sentence(name: str) -> None:
    for experiment in (
        "sink_profile",
        "sink_head_ablation",
        "reference_frame",
        "spike_sink_decoupling",
        "absolute_position",
        "sink_emergence",
        "active_dormant",
        "qk_eigenspectrum",
        "input_dependence",
        "bias_constancy",
    ):
        with pytest.raises(SinklensError, match=f"{experiment} needs a model with attention"):
            run(experiment, name)
    for call in (
        lambda: sinklens.diagnose(bridge(name), TOKENS, progress=False),
        lambda: sinklens.sink_scores(bridge(name), TOKENS),
        lambda: sinklens.attention_view(bridge(name), TOKENS[:1]),
        lambda: ablate_heads(bridge(name), [(0, 0)], "drop_edge"),
    ):
        with pytest.raises(SinklensError, match=r"attention|hook_pattern"):
            call()
    result = run("bos_replacement", name, conditions="mean")
    assert "hook_pattern" in result.settings["left_out"]["sink_mass"]


def test_single_hooks_and_probes_name_the_layers_of_a_hybrid() -> None:
    model = bridge("qwen3_next")
    assert KeyMass(model, [0]).layers == SinkScores(model).layers == [1]
    assert PositionValues(model, ["residual", "key"], range(3)).layers == [
        ("residual", 0),
        ("residual", 1),
        ("residual", 2),
        ("key", 1),
    ]
    for call in (
        lambda: ablate_heads(model, [(0, 1)], "drop_edge"),
        lambda: ablate_heads(model, [(0, 1)], "zero"),
        lambda: patch_position0(model, 2, "zero", part="key"),
    ):
        with pytest.raises(SinklensError, match="layers 0 and 2 of 3 have no attention"):
            call()
    with pytest.raises(UsageError, match="labels from L1H0 to L1H3"):
        run("sink_head_ablation", "qwen3_next", heads="L0H0")
    with pytest.raises(SinklensError, match="acts in layers with attention, which are 1"):
        run("position0_patching", "qwen3_next", conditions="zero:key", layers=(0, 2))
    keys = run("position0_patching", "qwen3_next", conditions="zero:key")
    assert {one.layer for one in keys.effects} == {1}
