"""Every experiment on every family: it works, or it refuses and says what would work.

What a row holds is compared with plain Hugging Face where that needs no hooks: replacing BOS by a
token, or position 0's first residual by that of a token, is running other token ids.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from importlib.metadata import version
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers.models.opt import modeling_opt

import sinklens
from sinklens import SinklensError
from sinklens.hooks import drop_edge
from sinklens.models.prompts import corpus
from tests import families

pytestmark = pytest.mark.slow

CAUSAL = [name for name in families.FAMILIES if name != "bert"]
DELEGATED = ["opt", "bert"]
EXPERIMENTS = {
    "sink_profile": {},
    "bos_replacement": {},
    "position0_patching": {},
    "sink_head_ablation": {"heads": "L0H0,L1H3"},
}
LENGTH, N_PROMPTS = 12, 6
# Tokenising the whole shipped corpus takes seconds, one token a character.
TEXT = corpus()[:2000]
Boot = Callable[[str], Any]


def make_prompts(model: Any, *, bos: bool = True, length: int = LENGTH) -> sinklens.Prompts:
    return sinklens.prompts(model, TEXT, n=N_PROMPTS, length=length, bos=bos)


def run(name: str, model: Any, prompts: sinklens.Prompts, **settings: Any) -> Any:
    return sinklens.run(
        name, model, prompts, progress=False, **{"draws": 2, "null_models": 2, **settings}
    )


def plain_loss(model: Any, tokens: Tensor, targets: Tensor) -> Tensor:
    """Loss of the predictions that plain Hugging Face makes at positions >= 1, by prompt."""
    with torch.no_grad():
        logits = model(tokens, use_cache=False).logits
    return loss_of(logits, targets)


def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
    losses = cross_entropy(logits[:, 1:-1].transpose(1, 2), targets[:, 2:], reduction="none")
    return losses.mean(1)


def per_prompt(result: Any, **fields: Any) -> Tensor:
    effect = result.find(**fields)
    return result.per_prompt["value"][result.effects.index(effect)].float()


@pytest.mark.parametrize("name", families.FAMILIES)
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_works_or_refuses(experiment: str, name: str, boot_family: Boot) -> None:
    model = boot_family(name)
    prompts = make_prompts(model)
    if (experiment, name) == ("position0_patching", "bert"):
        with pytest.raises(SinklensError, match="bos_replacement or sink_head_ablation"):
            run(experiment, model, prompts)
        return
    result = run(experiment, model, prompts, **EXPERIMENTS[experiment])
    kinds = {effect.kind for effect in result.effects}
    expected = {"treatment", "control", "contrast", "null"}
    assert kinds == ({"measurement"} if experiment == "sink_profile" else expected)
    for effect in result.effects:
        assert effect.n_prompts == (2 if effect.resampled == "model" else N_PROMPTS)
        for value in (effect.baseline, effect.value, effect.effect, effect.ci_low, effect.ci_high):
            assert value is not None and math.isfinite(value)
        assert effect.effect == pytest.approx(effect.value - effect.baseline, abs=1e-6)
        assert effect.ci_low <= effect.effect <= effect.ci_high
    assert 1 <= len(result.summary) <= 12
    if experiment != "sink_profile":
        metrics = {effect.metric for effect in result.effects}
        assert {"kl", "sink_mass"} <= metrics
        assert ("loss" in metrics) == (name != "bert")
        kl = [e for e in result.effects if (e.metric, e.kind) == ("kl", "treatment")]
        assert kl and all(e.p_value is None for e in kl)
        # The norm before attention divides a new length away, which is then left for no layer.
        acting = [e for e in kl if "rescaled" not in e.condition]
        assert all(e.effect > 1e-5 for e in acting)


@pytest.mark.parametrize("experiment", ["bos_replacement", "sink_head_ablation"])
def test_bert_leaves_the_loss_out(experiment: str, boot_family: Boot) -> None:
    model = boot_family("bert")
    prompts = make_prompts(model)
    result = run(experiment, model, prompts, **EXPERIMENTS[experiment])
    assert "both directions" in result.settings["left_out"]["loss"]
    assert "both directions" in str(result)
    with pytest.raises(SinklensError, match="kl"):
        run(experiment, model, prompts, metrics=["loss"], **EXPERIMENTS[experiment])


@pytest.mark.parametrize("name", families.FAMILIES)
def test_drop_edge_is_refused_where_the_pattern_is_delegated(name: str, boot_family: Boot) -> None:
    model = boot_family(name)
    prompts = make_prompts(model)
    asked = {"heads": "all", "metrics": ["kl"]}
    if name in DELEGATED:
        with pytest.raises(SinklensError) as caught:
            run("sink_head_ablation", model, prompts, conditions=["drop_edge"], **asked)
        message = str(caught.value)
        assert "drop_edge_unnormalised" in message
        assert type(model.original_model).__name__ in message
        assert "hook_pattern" in message and "\n" not in message
        result = run("sink_head_ablation", model, prompts, **asked)
        assert "drop_edge" in result.settings["left_out"]
        assert "drop_edge" not in {effect.condition for effect in result.effects}
        assert "Left out: drop_edge" in str(result)
    else:
        result = run("sink_head_ablation", model, prompts, conditions=["drop_edge"], **asked)
        assert result.settings["left_out"] == {}
        assert result.find(metric="kl", kind="treatment").effect > 1e-4


def test_delegated_pattern_is_really_ignored(boot_family: Boot) -> None:
    """The reason for the refusal: by hand, the edit changes nothing on OPT."""
    model = boot_family("opt")
    tokens = make_prompts(model).tokens

    def edit(pattern: Tensor, hook: Any) -> Tensor:
        return drop_edge(pattern, hook, heads=[0, 1, 2, 3])

    says_so = not version("transformer-lens").startswith("3.")
    with torch.no_grad(), pytest.warns(UserWarning) if says_so else nullcontext():
        edited = model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.attn.hook_pattern", edit)])
    with torch.no_grad():
        assert torch.equal(edited, model(tokens))


@pytest.mark.parametrize("key", [0, 2])
def test_drop_edge_unnormalised_on_opt(
    key: int, boot_family: Boot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through z in sinklens; here in the attention weights of plain Hugging Face."""
    model = boot_family("opt")
    prompts = make_prompts(model)
    heads = {0: [0, 2], 1: [1]}
    result = run(
        "sink_head_ablation",
        model,
        prompts,
        conditions=["drop_edge_unnormalised"],
        heads="L0H0,L0H2,L1H1",
        draws=1,
        seed=_seed_with_control_at(2),
    )
    assert result.draws["control_positions"] == [2]
    eager = modeling_opt.eager_attention_forward

    def dropped(module: Any, query: Any, keys: Any, value: Tensor, *args: Any, **more: Any) -> Any:
        _, weights = eager(module, query, keys, value, *args, **more)
        weights = weights.clone()
        for head in heads[module.layer_idx]:
            weights[:, head, key + 1 :, key] = 0
        return (weights @ value).transpose(1, 2).contiguous(), weights

    monkeypatch.setattr(modeling_opt, "eager_attention_forward", dropped)
    with torch.no_grad():
        logits = families.opt()(prompts.tokens, use_cache=False).logits
    counted = slice(key + 1, -1)
    losses = cross_entropy(
        logits[:, counted].transpose(1, 2), prompts.tokens[:, key + 2 :], reduction="none"
    )
    kind = "treatment" if key == 0 else "control"
    mine = per_prompt(result, metric="loss", kind=kind)
    torch.testing.assert_close(mine, losses.mean(1), atol=1e-5, rtol=0)
    assert abs(result.find(metric="loss", kind=kind).effect) > 1e-4


def _seed_with_control_at(position: int) -> int:
    from sinklens.hooks.matching import control_positions

    return next(seed for seed in range(100) if control_positions(LENGTH, 1, seed) == [position])


@pytest.mark.parametrize("name", CAUSAL)
def test_bos_replaced_by_a_token_is_another_prompt(name: str, boot_family: Boot) -> None:
    model = boot_family(name)
    prompts = make_prompts(model)
    result = run("bos_replacement", model, prompts, conditions=["token:q"], draws=0)
    other = prompts.tokens.clone()
    other[:, 0] = model.tokenizer.convert_tokens_to_ids("q")
    plain = families.FAMILIES[name]()
    expected = plain_loss(plain, other, prompts.tokens)
    assert (expected - plain_loss(plain, prompts.tokens, prompts.tokens)).abs().max() > 1e-3
    mine = per_prompt(result, metric="loss", kind="treatment")
    torch.testing.assert_close(mine, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", CAUSAL)
def test_other_token_at_layer_0_is_another_prompt(name: str, boot_family: Boot) -> None:
    model = boot_family(name)
    prompts = make_prompts(model)
    result = run(
        "position0_patching", model, prompts, conditions=["other_token"], layers=[0], draws=0
    )
    other = prompts.tokens.clone()
    other[:, 0] = torch.tensor(result.draws["other_tokens"])
    assert bool((other[:, 0] != prompts.tokens[:, 0]).all())
    expected = plain_loss(families.FAMILIES[name](), other, prompts.tokens)
    mine = per_prompt(result, metric="loss", kind="treatment")
    torch.testing.assert_close(mine, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("part", ["residual", "key"])
@pytest.mark.parametrize("condition", ["other_token", "mean_token", "zero"])
def test_position0_with_a_control_at_1(condition: str, part: str, boot_family: Boot) -> None:
    """The first later position is a control like any other (drawn in 1 .. T/4)."""
    model = boot_family("llama")
    result = run(
        "position0_patching",
        model,
        make_prompts(model),
        conditions=[condition],
        part=part,
        draws=1,
        seed=_seed_with_control_at(1),
    )
    assert result.draws["control_positions"] == [1]
    kinds = {effect.kind for effect in result.effects}
    assert kinds == {"treatment", "control", "contrast", "null"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_that_position0_has_already_is_no_failure(dtype: torch.dtype) -> None:
    """Of one token repeated all positions are alike; in half precision norms can be by rounding."""
    model = sinklens.load(families.llama().to(dtype))
    prompts = sinklens.Prompts(torch.tensor([[9] * 8] * 2), bos=False, source="tokens")
    result = run("position0_patching", model, prompts, conditions=["rescaled"], draws=0)
    assert max(abs(row.effect) for row in result.effects if row.metric == "kl") < 1e-3
    assert "entering layer 0, 1: within" in result.settings["footnotes"]["rescaled:residual"]


@pytest.mark.parametrize("part", ["key", "value"])
@pytest.mark.parametrize("name", CAUSAL)
def test_position0_parts(name: str, part: str, boot_family: Boot) -> None:
    model = boot_family(name)
    result = run("position0_patching", model, make_prompts(model), part=part)
    conditions = {effect.condition for effect in result.effects}
    assert conditions == {f"{c}:{part}" for c in ("other_token", "mean_token", "zero")}
    assert {effect.layer for effect in result.effects} == set(range(model.cfg.n_layers))
    assert all(math.isfinite(effect.effect) for effect in result.effects)


@pytest.mark.parametrize("name", families.FAMILIES)
def test_check(name: str, boot_family: Boot) -> None:
    found = sinklens.check(boot_family(name))
    ignored = {"pattern", "scores"} if name in DELEGATED else set()
    assert {site for site, works in found.edits.items() if not works} == ignored
    assert {"embedding", "residual", "z", "pattern", "key", "value"} <= found.edits.keys()
    assert found.causal == (name != "bert")
    assert found.bos and not found.learned_sinks
    full = (None, None)
    assert found.windows == {"gemma2": (4, None, 4), "mistral": (4, 4)}.get(name, full)
    grouped = name in ("llama", "gemma2", "mistral")
    assert (found.n_heads, found.n_key_value_heads) == (4, 2 if grouped else 4)
    assert found.n_layers == len(found.windows)


@pytest.mark.parametrize("name", families.FAMILIES)
def test_bos_replacement_needs_bos(name: str, boot_family: Boot) -> None:
    model = boot_family(name)
    with pytest.raises(SinklensError, match="position0_patching"):
        run("bos_replacement", model, make_prompts(model, bos=False))


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("gemma2", {"": [0, 1, 2], ":full": [1], ":window": [0, 2]}),
        ("mistral", {"": [0, 1], ":window": [0, 1]}),
    ],
)
def test_windows_have_their_own_rows(
    name: str, kinds: dict[str, list[int]], boot_family: Boot
) -> None:
    model = boot_family(name)
    prompts = make_prompts(model)
    result = run("sink_profile", model, prompts, conditions=["natural"])
    rows = {e.condition: e for e in result.effects if e.metric == "sink_mass"}
    assert set(rows) == {f"position0{suffix}" for suffix in kinds}
    rates = {e.condition for e in result.effects if e.metric == "sink_rate"}
    assert rates == {f"{preset}{suffix}" for preset in ("gu", "strict") for suffix in kinds}
    with torch.no_grad():
        attentions = families.FAMILIES[name]()(
            prompts.tokens, use_cache=False, output_attentions=True
        ).attentions
    # Uniform attention over the keys that query i sees; none of them is key 0 beyond the window.
    everything = [1 / (i + 1) for i in range(1, LENGTH)]
    null = {
        layer: sum(everything if window is None else everything[: window - 1]) / (LENGTH - 1)
        for layer, window in enumerate(sinklens.check(model).windows)
    }
    for suffix, layers in kinds.items():
        row = rows[f"position0{suffix}"]
        mass = torch.stack([attentions[layer][:, :, 1:, 0].mean() for layer in layers]).mean()
        assert row.value == pytest.approx(float(mass), abs=1e-6)
        assert row.baseline == pytest.approx(
            sum(null[layer] for layer in layers) / len(layers), abs=1e-6
        )


@pytest.mark.parametrize("name", ["gemma2", "mistral"])
def test_a_window_as_long_as_the_prompt_is_none(name: str, boot_family: Boot) -> None:
    model = boot_family(name)
    prompts = make_prompts(model, length=families.WINDOW)
    result = run("sink_profile", model, prompts, conditions=["natural"])
    assert {effect.condition for effect in result.effects} == {"gu", "strict", "position0"}


def _without_bos(name: str) -> Any:
    """A Hugging Face model whose config knows no BOS."""
    model = families.FAMILIES[name]()
    model.config.bos_token_id = None
    return model


@pytest.mark.parametrize("name", ["llama", "gpt2", "neox"])
def test_no_bos_is_refused(name: str) -> None:
    tokenizer = families.tiny_tokenizer(bos=False)
    model = sinklens.load(_without_bos(name), tokenizer=tokenizer)
    assert not sinklens.check(model).bos
    with pytest.raises(SinklensError, match="bos=False"):
        make_prompts(model, bos=True)
    with pytest.raises(SinklensError, match="bos=False"):
        sinklens.Prompts.from_strings(model, ["ab", "cd"], bos=True)
    with pytest.raises(SinklensError, match="bos=False"):
        sinklens.random_prompts(model, n=2, length=8, bos=True)
    prompts = sinklens.prompts(model, TEXT, n=N_PROMPTS, length=LENGTH)
    assert not prompts.bos
    assert not set(prompts.tokens.flatten().tolist()) & {families.BOS, families.EOS, families.PAD}
    with pytest.raises(SinklensError, match="position0_patching"):
        run("bos_replacement", model, prompts)
    assert run("position0_patching", model, prompts, conditions=["zero"]).effects
    assert run("position0_patching", model, prompts, part="key", draws=0).effects


def test_no_bos_is_refused_on_a_bridge_booted_elsewhere() -> None:
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    model = _without_bos("llama")
    bridge = build_bridge_from_module(
        model,
        type(model).__name__,
        hf_config=model.config,
        tokenizer=families.tiny_tokenizer(bos=False),
        model_name="tiny-llama",
    )
    assert not sinklens.check(bridge).bos
    with pytest.raises(SinklensError, match="bos=False"):
        make_prompts(bridge, bos=True)


@pytest.mark.parametrize("loaded", [True, False], ids=["load", "bridge"])
def test_bos_of_the_config_counts(loaded: bool) -> None:
    """A tokenizer without BOS beside a config with one: TransformerLens would write EOS."""
    tokenizer = families.tiny_tokenizer(bos=False)
    model = (
        sinklens.load(families.llama(), tokenizer=tokenizer)
        if loaded
        else families.boot("llama", tokenizer=tokenizer)
    )
    prompts = make_prompts(model, bos=True)
    assert set(prompts.tokens[:, 0].tolist()) == {families.BOS}


def test_default_bos_is_the_models_own(boot_family: Boot) -> None:
    assert sinklens.prompts(boot_family("llama"), TEXT, n=2, length=8).bos
    assert not sinklens.prompts(boot_family("neox"), TEXT, n=2, length=8).bos
