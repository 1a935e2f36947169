"""Outlier dimensions: planted ones are found exactly, and numbers are those of plain Hugging Face.

The second computation reads gains from the parameters, sizes and values from plain forward hooks,
correlates with `scipy.stats.spearmanr`, and ablates in hooks on the plain norms; it shares nothing
with sinklens but what was drawn.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import sinklens
from sinklens import SinklensError
from sinklens.experiments.spikes._norms import norm_hooks, norm_parameters
from sinklens.experiments.spikes.outlier_dimensions import expected_channels, rank_correlations
from sinklens.models.prompts import Prompts, corpus, random_prompts
from sinklens.results.wording import written as in_words
from tests import families
from tests.reference import plain_hf

CHANNEL, WIDTH = 7, families.D_MODEL


def run(model: Any, prompts: Prompts, **settings: Any) -> Any:
    settings = {"null_models": 0, "progress": False, **settings}
    return sinklens.run("outlier_dimensions", model, prompts, **settings)


def norms_of(plain: Any) -> list[Any]:
    """The norms of a plain Llama, in the order of `norm_hooks`."""
    layers = plain.model.layers
    return [n for layer in layers for n in (layer.input_layernorm, layer.post_attention_layernorm)]


def planted() -> Any:
    """A tiny Llama whose embeddings hold the token's number in one channel with its own gain.

    Nothing else writes to the channel, so that it is the same in all places.
    """
    plain = families.llama()
    with torch.no_grad():
        plain.model.embed_tokens.weight[:, CHANNEL] = torch.arange(families.VOCABULARY) + 2000.0
        for layer in plain.model.layers:
            layer.self_attn.o_proj.weight[CHANNEL] = 0
            layer.mlp.down_proj.weight[CHANNEL] = 0
        for norm in norms_of(plain):
            norm.weight[CHANNEL] = -2.0
    return plain


@pytest.mark.slow
@pytest.mark.parametrize("draws", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_a_planted_outlier_is_found_exactly(draws: int) -> None:
    model = sinklens.load(planted(), tokenizer=families.tiny_tokenizer())
    prompts = sinklens.prompts(model, corpus()[:2000], n=4, length=16, bos=True)
    result = run(model, prompts, draws=draws)
    assert result.findings["gain_channels"] == result.findings["size_channels"] == [CHANNEL]
    gain = result.find(metric="gain_outliers")
    tail = 2 * stats.norm.sf(3)
    assert gain.value == 1
    assert gain.baseline == pytest.approx(WIDTH * stats.binom.sf(1, 4, tail))
    # In each of four norms one of 32 channels is beyond, wherever it is.
    assert result.findings["gain_shuffled"] == pytest.approx(
        WIDTH * stats.binom.sf(1, 4, 1 / WIDTH)
    )
    assert result.find(metric="size_outliers").baseline == pytest.approx(WIDTH * tail / 2)
    # Such a channel is found in one of 24 models of Gaussian sizes, and it is large by its choice.
    chance = 1 - (1 - tail / 2) ** WIDTH
    assert "; Gaussian sizes would give " in result.summary[1]
    assert f" (1 or more with probability {chance:.2g})." in result.summary[1]
    size = result.find(metric="size_ratio", condition="size", kind="measurement")
    said = f"by size: {in_words(size.value, ',.3g')} times the median channel (chosen for it"
    assert said in result.summary[2]
    assert "above channels of equal size" in result.summary[2].partition("; by size")[0]
    # The value is the token's number, in all places alike.
    ids = Counter(model.tokenizer(corpus(), add_special_tokens=False, verbose=False)["input_ids"])
    rho = [
        stats.spearmanr(row, [ids[t] for t in row]).statistic
        for row in prompts.tokens[:, 1:].tolist()
    ]
    row = result.find(metric="frequency_correlation", condition="gain", kind="measurement")
    values = result.per_prompt["value"][result.effects.index(row)]
    np.testing.assert_allclose(values, np.abs(rho), atol=1e-6)
    signed = result.arrays["rho_gain"].values
    torch.testing.assert_close(signed, torch.full((3, 1), float(np.mean(rho))), check_dtype=False)
    kinds = {row.kind for row in result.effects}
    assert kinds == {"measurement", "treatment"} | (
        {"control", "null", "contrast"} if draws else set()
    )
    chosen = [c for sets in result.draws["random_channels"].values() for c in sets]
    assert len(chosen) == 2 * draws and all(c != [CHANNEL] and len(c) == 1 for c in chosen)


@pytest.mark.parametrize("name", families.FAMILIES)
def test_parameters_are_those_of_every_family(name: str) -> None:
    """Gain and bias as the norm applies them: Gemma stores the gain less 1, RMSNorm has no bias."""
    model = families.boot(name)
    hooks = norm_hooks(model, ("ln1", "ln2"))
    gain, bias = norm_parameters(model, hooks)
    for number, hook in enumerate(hooks):
        _, layer, norm, _ = hook.split(".")
        own = dict(getattr(model.blocks[int(layer)], norm).named_parameters())
        stored = {key.rsplit(".", 1)[-1]: value.detach().double() for key, value in own.items()}
        weight = stored["weight"] + (1 if name == "gemma2" else 0)
        torch.testing.assert_close(gain[number], weight, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            bias[number], stored.get("bias", torch.zeros_like(weight)), atol=1e-5, rtol=1e-5
        )
        assert bool(bias[number].any()) == ("bias" in stored)


@pytest.mark.slow
@pytest.mark.parametrize("name", families.FAMILIES)
def test_every_family_works(name: str) -> None:
    model = families.boot(name)
    prompts = random_prompts(model, n=3, length=12)
    result = run(model, prompts, deviations=1.0, draws=2)
    kinds = {row.kind for row in result.effects}
    assert kinds == {"measurement", "treatment", "control", "null", "contrast"}
    edits = {row.condition for row in result.effects if row.kind == "treatment"}
    assert {"zero:size", "mean:size"} <= edits
    assert ("loss" in result.settings["left_out"]) == (name == "bert")
    assert len(result.summary) <= 12 and result.plot().data


def test_no_outlier_is_a_finding_and_no_error() -> None:
    model = families.boot("llama")
    prompts = random_prompts(model, n=3, length=12)
    result = run(model, prompts, deviations=6.0)
    assert {row.kind for row in result.effects} == {"measurement"}
    assert set(result.settings["left_out"]) >= {"zero:gain", "mean:size"}
    none = "0 of 32 channels; Gaussian sizes would give 0."  # 32 chances of 1e-9
    assert any(line.endswith(none) for line in result.summary)
    with pytest.raises(SinklensError, match="lower deviations="):
        run(model, prompts, deviations=6.0, conditions=("zero:size",))


def test_without_a_tokenizer_there_is_no_frequency() -> None:
    model = sinklens.load(families.llama())
    model.tokenizer = None
    tokens = torch.randint(4, 64, (3, 12), generator=torch.Generator().manual_seed(0))
    result = run(model, Prompts(tokens, bos=False, source="test"), deviations=1.0, draws=1)
    assert "tokenizer=" in result.settings["left_out"]["frequency_correlation"]
    assert {"size_ratio", "loss"} <= {row.metric for row in result.effects}
    assert result.plot().data


def test_blocks_without_the_norms_are_refused() -> None:
    with pytest.raises(SinklensError, match=r"ln1_pre.*has none.*massive_activations"):
        norm_hooks(families.boot("llama"), ("ln1_pre",))


def test_nulls() -> None:
    assert expected_channels([0.2] * 5, 0.5, 10) == pytest.approx(10 * stats.binom.sf(2, 5, 0.2))
    assert expected_channels([1.0, 0.0], 0.5, 10) == pytest.approx(10)
    random = np.random.default_rng(0)
    values = torch.from_numpy(random.standard_normal((2, 20, 3)))
    counts = torch.from_numpy(random.integers(0, 5, (20, 4000)).astype(float))
    rho = rank_correlations(values, counts)
    expected = stats.spearmanr(values[1, :, 2], counts[:, 7]).statistic
    assert float(rho[7, 1, 2]) == pytest.approx(expected)
    assert float(rho.abs().mean()) == pytest.approx((2 / (np.pi * 19)) ** 0.5, rel=0.02)
    assert not rank_correlations(torch.ones(1, 20, 1), counts).any()


def ablated(plain: Any, tokens: Tensor, channels: list[int], means: list[Tensor]) -> Tensor:
    """Logits with channels of every norm's output replaced, position 0 and later ones apart."""

    def hook_for(mean: Tensor) -> Any:
        def hook(module: Any, arguments: Any, output: Tensor) -> Tensor:
            output = output.clone()
            output[:, 0, channels] = mean[0, channels]
            output[:, 1:, channels] = mean[1, channels]
            return output

        return hook

    pairs = zip(norms_of(plain), means, strict=True)
    handles = [norm.register_forward_hook(hook_for(mean)) for norm, mean in pairs]
    try:
        with torch.no_grad():
            return plain(tokens, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()


def read(plain: Any, tokens: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Logits, the residual stream entering each block and leaving the last, the norms' outputs."""
    streams: list[Tensor] = []
    outputs: list[Tensor] = []
    layers = plain.model.layers
    handles = [
        n.register_forward_hook(lambda m, a, out: outputs.append(out)) for n in norms_of(plain)
    ]
    handles += [x.register_forward_pre_hook(lambda m, a: streams.append(a[0])) for x in layers]
    handles += [layers[-1].register_forward_hook(lambda m, a, out: streams.append(out))]
    try:
        with torch.no_grad():
            logits = plain(tokens, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    return logits, torch.stack(streams, 1), outputs


@pytest.mark.heavy
def test_smollm2_agrees_with_plain_hugging_face(plain_smollm2: Any, smollm2_tokenizer: Any) -> None:
    """Few channels stand out by size, follow frequency, and are needed; none does by gain."""
    model = sinklens.load(copy.deepcopy(plain_smollm2), tokenizer=smollm2_tokenizer)
    prompts = sinklens.prompts(model, n=3, length=24, bos=True)
    tokens = prompts.tokens
    result = run(model, prompts, draws=1)
    logits, streams, outputs = read(plain_smollm2, tokens)
    gains = np.stack([norm.weight.detach().numpy() for norm in norms_of(plain_smollm2)])
    np.testing.assert_allclose(result.arrays["gain"].values, gains, rtol=1e-3)
    z = np.abs(stats.zscore(gains, axis=1, ddof=1))
    gain_channels = ((z > 3).mean(0) >= 0.5).nonzero()[0].tolist()
    size = streams[:, :, 1:].abs().mean(2).numpy()
    median = np.quantile(size, 0.5, axis=-1, method="lower", keepdims=True)
    z = stats.zscore(size.mean(0), axis=1, ddof=1)
    own = ((z > 3).mean(0) >= 0.5).nonzero()[0].tolist()
    assert (result.findings["gain_channels"], result.findings["size_channels"]) == (
        gain_channels,
        own,
    )
    assert gain_channels == [] and {247, 507} <= set(own)
    ids = Counter(smollm2_tokenizer(corpus(), add_special_tokens=False, verbose=False)["input_ids"])
    counts = [[ids[token] for token in row] for row in tokens[:, 1:].tolist()]
    (random,) = result.draws["random_channels"]["size"]
    means = [torch.stack([o[:, 0].mean(0), o[:, 1:].mean((0, 1))]) for o in outputs]
    zeros = [torch.zeros_like(mean) for mean in means]
    for channels, against in ((own, None), (random, "random_channels")):
        rho = [
            [
                [abs(stats.spearmanr(place[1:, c], count).statistic) for c in channels]
                for place in prompt.numpy()
            ]
            for prompt, count in zip(streams, counts, strict=True)
        ]
        expected = {
            ("size_ratio", "size"): (size / median)[..., channels],
            ("frequency_correlation", "size"): np.array(rho),
        }
        expected = {key: values.mean((1, 2)) for key, values in expected.items()}
        for edit, written in (("zero:size", zeros), ("mean:size", means)):
            changed = ablated(plain_smollm2, tokens, channels, written)
            expected["loss", edit] = plain_hf.loss(changed, tokens, 0).numpy()
            expected["kl", edit] = plain_hf.kl(logits, changed, 0).numpy()
        for (metric, condition), values in expected.items():
            rows = [
                number
                for number, row in enumerate(result.effects)
                if (row.metric, row.condition, row.against) == (metric, condition, against)
                and row.kind != "contrast"
            ]
            (number,) = rows
            found = result.per_prompt["value"][number].numpy()
            np.testing.assert_allclose(
                found, values, atol=1e-3, rtol=1e-3, err_msg=f"{metric} {condition} {against}"
            )
    zero = {"condition": "zero:size", "kind": "contrast", "against": "random_channels"}
    assert result.find(metric="loss", **zero).effect > 1
    correlation = {"metric": "frequency_correlation", "condition": "size", "kind": "contrast"}
    for against in ("random_channels", "permuted_counts"):
        assert result.find(**correlation, against=against).effect > 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"deviations": 0.0}, "above 0"),
        ({"share": 1.5}, "at most 1"),
        ({"norms": ("ln3",)}, "ln2"),
        ({"conditions": ("zero:gains",)}, "zero:gain"),
    ],
)
def test_bad_settings(boot_family: Any, settings: Any, message: str) -> None:
    model = boot_family("llama")
    with pytest.raises(SinklensError, match=message):
        run(model, random_prompts(model, n=2, length=8), **settings)


def test_short_prompts_are_refused(boot_family: Any) -> None:
    model = boot_family("llama")
    with pytest.raises(SinklensError, match="at least 4 tokens"):
        run(model, random_prompts(model, n=2, length=3))
