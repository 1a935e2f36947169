"""Models unlike the usual decoder: right beside plain Hugging Face, or refused in words."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

import sinklens
from sinklens import SinklensError
from sinklens.engine.evaluate import evaluate
from sinklens.engine.shortcuts import shortcuts
from sinklens.experiments.geometry._fisher import weight_groups
from sinklens.hooks import ablate_heads, drop_edge, patch_position0, replace_bos_embedding
from sinklens.models.agreement import agreement, unwrapped
from sinklens.models.capabilities import check
from sinklens.models.remarks import remarks_on
from sinklens.models.trials import read_sites
from sinklens.probes import LogitGaps, SinkReads, ValueNorms
from sinklens.probes.log_split import SinkReadouts
from tests import families, odd_models
from tests.reference import plain_attention

pytestmark = pytest.mark.slow  # many models or pages

TOKENS = torch.tensor(
    [
        [families.BOS, 5, 9, 17, 30, 12, 44, 8, 21, 33],
        [families.BOS, 7, 7, 40, 22, 9, 31, 15, 6, 50],
    ]
)
OTHER = 20
RUN = {"progress": False, "draws": 0, "null_models": 0}
RUNNING = ["deepseek_v3", "mamba", "hybrid", "gated", "afmoe", "chunked", "gpt1"]


@cache
def plain(name: str) -> PreTrainedModel:
    return getattr(odd_models, name)()


@cache
def bridge(name: str) -> Any:
    return sinklens.load(getattr(odd_models, name)())


def prompts() -> sinklens.Prompts:
    return sinklens.Prompts(TOKENS, bos=True, source="tokens")


def run(experiment: str, name: str, **settings: Any) -> Any:
    return sinklens.run(experiment, bridge(name), prompts(), **{**RUN, **settings})


def plain_loss(name: str, tokens: Tensor) -> Tensor:
    """Loss of the predictions at positions >= 1, by prompt; the targets are those of `TOKENS`."""
    with torch.no_grad():
        logits = plain(name)(tokens, use_cache=False).logits
    losses = cross_entropy(logits[:, 1:-1].transpose(1, 2), TOKENS[:, 2:], reduction="none")
    return losses.mean(1)


@pytest.mark.parametrize("name", RUNNING)
def test_another_token_in_place_of_bos_is_that_token(name: str) -> None:
    """What needs no attention works everywhere, and what cannot be measured says why."""
    with_other = TOKENS.clone()
    with_other[:, 0] = OTHER
    before, after = plain_loss(name, TOKENS), plain_loss(name, with_other)

    def write_other(embedding: Tensor, hook: Any) -> Tensor:
        edited = embedding.clone()
        edited[:, 0] = plain(name).get_input_embeddings().weight[OTHER]
        return edited

    edits = {"other": [("hook_embed", write_other)]}
    found = evaluate(bridge(name), prompts(), edits, ["loss"])
    torch.testing.assert_close(found.baselines[0, 0], before, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.values[0, 0], after, atol=1e-4, rtol=0)


@pytest.mark.parametrize("experiment", ["massive_activations", "spike_sink_decoupling"])
def test_a_hook_that_is_not_there_is_one_sentence(experiment: str) -> None:
    with pytest.raises(SinklensError, match=r"hook_attn_out|hook_resid_post|hook_pattern"):
        run(experiment, "gpt1")


def test_latent_attention_has_other_axes() -> None:
    capabilities = check(bridge("deepseek_v3"))
    assert capabilities.edits == {
        **dict.fromkeys(("embedding", "residual", "pattern", "scores"), True),
        **dict.fromkeys(("z", "key", "value"), False),
    }
    assert "[batch, pos, head, d_head]" in capabilities.obstacles["z"]
    with pytest.raises(SinklensError, match="instead of"):
        run("sink_head_ablation", "deepseek_v3", heads="L0H1", conditions="zero")
    with pytest.raises(SinklensError, match="instead of"):
        run("position0_patching", "deepseek_v3", conditions="zero:key")
    with pytest.raises(SinklensError, match="instead of"):
        evaluate(
            bridge("deepseek_v3"), prompts(), [], [], probes=[ValueNorms(bridge("deepseek_v3"))]
        )


def test_hooks_alone_refuse_latent_attention_too() -> None:
    with pytest.raises(SinklensError, match="instead of"):
        ablate_heads(bridge("deepseek_v3"), [(0, 1)], "zero")
    with pytest.raises(SinklensError, match="instead of"):
        patch_position0(bridge("deepseek_v3"), 0, "zero", part="key")
    assert ablate_heads(bridge("deepseek_v3"), [(0, 1)], "drop_edge").site == "pattern"


def test_an_edge_of_latent_attention_is_that_of_plain_eager_attention(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The pattern can be edited there, and gives what plain Hugging Face gives."""
    heads = [(0, 1), (2, 3)]
    chosen = ",".join(f"L{layer}H{head}" for layer, head in heads)
    result = run("sink_head_ablation", "deepseek_v3", heads=chosen, conditions="drop_edge")
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as source

    def attention(module: Any, query: Any, key: Any, value: Any, mask: Any, **kw: Any) -> Any:
        weights = (query @ key.transpose(2, 3)) * kw["scaling"]
        length = weights.shape[-1]
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        weights = weights.masked_fill(future, -torch.inf).softmax(-1)
        mine = [head for layer, head in heads if layer == module.layer_idx]
        weights = drop_edge(weights, None, heads=mine) if mine else weights
        return (weights @ value).transpose(1, 2).contiguous(), weights

    monkeypatch.setattr(source, "eager_attention_forward", attention)
    (row,) = [e for e in result.effects if (e.metric, e.kind) == ("loss", "treatment")]
    assert row.value == pytest.approx(float(plain_loss("deepseek_v3", TOKENS).mean()), abs=1e-4)


@pytest.mark.parametrize("name", ["afmoe", "gated"])
def test_gated_heads_are_not_weights_times_values(name: str) -> None:
    model = bridge(name)
    assert check(model).gated == (0, 1, 2)
    for probe in (lambda: SinkReads(model, 1), lambda: SinkReadouts(model)):
        with pytest.raises(SinklensError, match="weights times its values"):
            probe()
    result = run("reference_frame", name)
    assert "weights times its values" in result.settings["left_out"]["shares"]


@pytest.mark.parametrize("name", ["olmo_clipped", "gemma4"])
def test_values_that_are_changed_behind_their_hook_are_not_read(name: str) -> None:
    """OLMo 1 can clamp values, Gemma 4 norms them: sizes in front of that are none of attention."""
    model = bridge(name)
    one = plain_attention.attention(plain(name), TOKENS)[1]
    held = read_sites(model, TOKENS, {"value": ["blocks.1.attn.hook_v"]}).held
    (shown,) = held.values()
    summed = one.values.transpose(1, 2)[:, :, :: one.values.shape[1] // shown.shape[2]]
    assert float((shown.norm(dim=-1) - summed.norm(dim=-1)).abs().max()) > 0.1
    for call in (
        lambda: evaluate(model, prompts(), [], [], probes=[ValueNorms(model)]),
        lambda: patch_position0(model, 0, "zero", part="value"),
        lambda: run("active_dormant", name),
    ):
        with pytest.raises(SinklensError, match="values are clamped, normed or gated behind"):
            call()


def test_edges_are_removed_in_z_only_where_z_is_what_heads_read() -> None:
    with pytest.raises(SinklensError, match="weights times its values"):
        run("sink_head_ablation", "afmoe", heads="all", conditions="drop_edge_unnormalised")
    with pytest.raises(SinklensError) as refused:
        run("sink_head_ablation", "afmoe", heads="all", conditions="drop_edge")
    assert "drop_edge_unnormalised" not in str(refused.value)  # it would not work either
    assert run(
        "sink_head_ablation", "gated", heads="all", conditions="drop_edge_unnormalised"
    ).effects


@pytest.mark.parametrize("name", families.FAMILIES)
def test_heads_of_the_usual_families_write_what_they_read(name: str, boot_family: Any) -> None:
    capabilities = check(boot_family(name))
    assert capabilities.gated == () and not capabilities.unreadable
    assert capabilities.agreement is not None and capabilities.agreement < 1e-4
    assert set(capabilities.other_masks) == {None}


def test_chunks_are_no_window() -> None:
    capabilities = check(bridge("chunked"))
    assert capabilities.other_masks == (odd_models.CHUNK, None, odd_models.CHUNK)
    assert capabilities.visible_keys(odd_models.CHUNK) == [None] * 3
    with pytest.raises(SinklensError, match="prompts of at most 5 tokens"):
        run("sink_profile", "chunked")
    short = sinklens.Prompts(TOKENS[:, : odd_models.CHUNK], bos=True, source="tokens")
    assert sinklens.run("sink_profile", bridge("chunked"), short, **RUN).effects


def test_a_sink_logit_is_left_out_where_the_mask_is_not_known() -> None:
    """Which keys a query sees decides what the sink's logit is set against."""
    result = run("active_dormant", "chunked")
    assert "prompts of at most 5 tokens" in result.settings["left_out"]["sink_logit"]
    assert {"value_drain", "dormant"} <= {row.metric for row in result.effects}
    assert "sink_logit" not in {row.metric for row in result.effects}
    probe = LogitGaps(bridge("chunked"))
    with pytest.raises(SinklensError, match="prompts of at most 5 tokens"):
        evaluate(bridge("chunked"), prompts(), [], [], probes=[probe])


def test_a_bridge_that_is_wrong_is_refused() -> None:
    with pytest.raises(SinklensError, match="other logits for FalconForCausalLM"):
        sinklens.load(odd_models.falcon())
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    model = odd_models.falcon()
    wrong = build_bridge_from_module(model, "FalconForCausalLM", hf_config=model.config)
    (doubt,) = remarks_on(check(wrong))
    assert doubt.startswith("The logits of this bridge differ") and "FalconForCausalLM" in doubt
    assert remarks_on(check(bridge("gated"))) == []


@pytest.mark.parametrize("name", ["deepseek_v3", "gated", "hybrid", "gpt1", "chunked"])
def test_the_plain_model_is_under_the_bridge_to_the_last_bit(name: str) -> None:
    with torch.no_grad(), unwrapped(bridge(name)) as model:
        inside = model(TOKENS, use_cache=False).logits
        assert torch.equal(inside, plain(name)(TOKENS, use_cache=False).logits)
    again = agreement(bridge(name), TOKENS)
    assert again is not None and again < 1e-4
    assert sinklens.origin(bridge(name)).agreement is not None


def test_learned_sinks_in_compatibility_mode_are_refused() -> None:
    model = sinklens.load(odd_models.gpt_oss())
    assert check(model).learned_sinks
    model.enable_compatibility_mode(disable_warnings=True)
    with pytest.raises(SinklensError, match="learned sinks, and compatibility mode"):
        check(model)


def test_an_encoder_decoder_is_refused(tmp_path: Any) -> None:
    with pytest.raises(SinklensError, match="is an encoder-decoder"):
        sinklens.load(odd_models.t5())
    odd_models.t5().save_pretrained(tmp_path)
    with pytest.raises(SinklensError, match="is an encoder-decoder"):
        sinklens.load(tmp_path)


def test_embeddings_of_another_width_are_refused() -> None:
    assert not check(bridge("opt_350m")).edits["embedding"]
    with pytest.raises(SinklensError, match="hook_embed"):
        run("bos_replacement", "opt_350m", conditions="mean")
    for with_ in ("mean", "zero", "gaussian"):
        with pytest.raises(SinklensError, match=r"2 x \d+ x 16 instead of"):
            replace_bos_embedding(bridge("opt_350m"), with_=with_)
    assert run("position0_patching", "opt_350m", conditions="zero").effects


def test_experts_in_float64_are_refused_in_one_line() -> None:
    with pytest.raises(SinklensError) as refused:
        sinklens.load(odd_models.olmoe().double())
    assert "float64" in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("tokenizer", [None, families.tiny_tokenizer()])
def test_a_class_without_a_bridge_is_one_sentence(tokenizer: Any, tmp_path: Any) -> None:
    """TransformerLens lists its 162 classes instead."""
    said = "TransformerLens does not know ModernBertForMaskedLM; use a model of the"
    with pytest.raises(SinklensError, match=said) as refused:
        sinklens.load(odd_models.modernbert(), tokenizer=tokenizer)
    assert len(str(refused.value)) < 250
    if tokenizer is not None:
        odd_models.modernbert().save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        with pytest.raises(SinklensError, match=said):
            sinklens.load(tmp_path)


def test_slices_are_read_where_scores_are_large() -> None:
    """Rounding moves a pattern by as much there as reading it in slices."""
    model = families.llama()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.mul_(100)
    found = shortcuts(sinklens.load(model))
    assert found.slices and found.key0


def test_fisher_traces_leave_out_groups_without_weights() -> None:
    """On Mamba, neither attention nor MLP; in a hybrid, attention has its layers' numbers."""
    groups = {group for group, _ in weight_groups(bridge("mamba"))}
    assert groups == {"embedding", "other"}
    result = run("reference_frame", "hybrid", conditions="frame", fisher=True)
    assert result.arrays["fisher_trace:attention"].labels("layer") == ["1"]
    assert result.arrays["fisher_trace:mlp"].labels("layer") == ["0", "1", "2"]
    assert result.arrays["fisher_trace:attention"].values.min() > 0


def test_an_edit_that_writes_what_is_there_has_a_footnote() -> None:
    """The first layer's position 0 is the same whatever the token: so is the mean over tokens."""
    model = families.llama()
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 3] = 100.0
    prompts = sinklens.Prompts(TOKENS, bos=True, source="tokens")
    settings = {**RUN, "layer": 0, "scale_free": 50.0, "criterion": "scale_free"}
    result = sinklens.run("massive_activations", sinklens.load(model), prompts, **settings)
    note = result.settings["footnotes"]["first_token_mean"]
    assert "writes what is there within rounding error" in note


def check_absolute_position(load: Callable[[], Any]) -> Any:
    model = load()
    return sinklens.run(
        "absolute_position",
        model,
        sinklens.prompts(model, n=4, length=16),
        **RUN,
        first_tokens=0,
        queries=("1:8",),
        conditions="mean",
    )


def test_absolute_position_in_float16() -> None:
    """Weights near the smallest of float16 are rounded by up to log 2; they are left out."""
    assert check_absolute_position(lambda: sinklens.load("rope", dtype="float16")).effects
