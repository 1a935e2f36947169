"""Real weights: sinklens against the independent implementation in `tests/reference`.

Both sides get SmolLM2-135M-Instruct from the same GGUF file, sinklens by way of its own conversion
and TransformerLens, the reference in plain Hugging Face. What is random is read from the result and
handed to the reference.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sinklens
from sinklens.hooks import replace_bos_embedding
from sinklens.hooks.matching import derangement
from sinklens.models.prompts import corpus, random_prompts, repeated_prompts
from tests.reference import plain_hf

pytestmark = pytest.mark.slow

N_PROMPTS, LENGTH = 4, 64
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def smollm2(smollm2_gguf: Path) -> Any:
    return sinklens.load(smollm2_gguf)


@pytest.fixture(scope="module")
def prompts(smollm2: Any) -> sinklens.Prompts:
    return sinklens.prompts(smollm2, n=N_PROMPTS, length=LENGTH)


def _check(
    result: sinklens.ExperimentResult, condition: str, kind: str, paired: dict[str, Any]
) -> None:
    """Every metric of one condition, prompt by prompt."""
    compared = 0
    for number, effect in enumerate(result.effects):
        if (effect.condition, effect.kind) == (condition, kind):
            expected = paired[effect.metric]
            for name, theirs in (("value", expected.value), ("baseline", expected.baseline)):
                _close(result.per_prompt[name][number], theirs, effect.metric)
            compared += 1
    assert compared >= 3


def _close(mine: Tensor, theirs: Tensor, metric: str) -> None:
    # The norm is some 25,000; for it the tolerance is relative.
    scale = theirs.abs().clamp_min(1) if metric == "position0_norm" else torch.ones(())
    assert float(((mine - theirs).abs() / scale).max()) < TOLERANCE, metric


def _mean_over(draws: list[dict[str, Any]]) -> dict[str, Any]:
    """The reference averaged over draws, within each prompt."""
    return {
        metric: plain_hf.Paired(
            torch.stack([draw[metric].baseline for draw in draws]).mean(0),
            torch.stack([draw[metric].value for draw in draws]).mean(0),
        )
        for metric in draws[0]
    }


def test_the_weights_and_the_prompts_are_the_same(
    smollm2: Any, prompts: sinklens.Prompts, plain_smollm2: Any, smollm2_tokenizer: Any
) -> None:
    theirs = plain_hf.prompts(
        smollm2_tokenizer,
        corpus(),
        N_PROMPTS,
        LENGTH,
        plain_smollm2.config.bos_token_id,
        spread=True,
    )
    assert torch.equal(prompts.tokens, theirs)
    with torch.no_grad():
        mine = smollm2(prompts.tokens)
        expected = plain_smollm2(theirs).logits
    torch.testing.assert_close(mine, expected, atol=TOLERANCE, rtol=0)


def test_sink_profile(smollm2: Any, prompts: sinklens.Prompts, plain_smollm2: Any) -> None:
    result = sinklens.run("sink_profile", smollm2, prompts, seed=3)
    size = {"n": N_PROMPTS, "length": LENGTH, "seed": 3}
    inputs = {
        "": prompts.tokens,
        ":no_bos": prompts.tokens[:, 1:],
        ":random": random_prompts(smollm2, **size).tokens,
        ":repeated": repeated_prompts(smollm2, **size).tokens,
    }
    for suffix, tokens in inputs.items():
        theirs = plain_hf.sink_profile(plain_smollm2, tokens)
        length = tokens.shape[1]
        nulls = {"gu": 0.0, "strict": 0.0, "sink_mass": plain_hf.uniform(length, 1)}
        for condition, key in (("gu", "gu"), ("strict", "strict"), ("position0", "sink_mass")):
            row = result.find(condition=f"{condition}{suffix}")
            number = result.effects.index(row)
            _close(result.per_prompt["value"][number], theirs[key], key)
            assert row.baseline == pytest.approx(nulls[key], abs=1e-9)
    natural = plain_hf.sink_profile(plain_smollm2, prompts.tokens)
    mass = result.arrays["sink_mass"].values
    torch.testing.assert_close(mass, natural["head_mass"].mean(0), atol=TOLERANCE, rtol=0)
    scores = result.arrays["sink_score"].values
    torch.testing.assert_close(scores, natural["head_scores"].mean(0), atol=TOLERANCE, rtol=0)
    found = result.arrays["later_sink_share"].values >= 0.25
    assert torch.equal(found, plain_hf.later_sinks(natural["head_scores"]))
    some = plain_hf.some_later_sink(natural["head_scores"]).float().mean(0)
    torch.testing.assert_close(result.arrays["some_later_sink_share"].values, some)
    _check_later_tokens(result, natural["head_scores"], prompts.tokens)
    _check_norms_said(result, plain_smollm2, prompts.tokens)
    direct = sinklens.sink_scores(smollm2, prompts.tokens)
    expected = natural["head_scores"][..., 0].mean(0)
    torch.testing.assert_close(direct, expected, atol=TOLERANCE, rtol=0)


def _check_later_tokens(result: Any, scores: torch.Tensor, tokens: torch.Tensor) -> None:
    """The keys that are sinks, one by one, by the token that holds them."""
    keys: dict[int, int] = {}
    for prompt, *_, key in (scores > 0.3).nonzero().tolist():
        if 1 <= key <= tokens.shape[1] // 2:
            token = int(tokens[prompt, key])
            keys[token] = keys.get(token, 0) + 1
    found = result.findings["later_sinks"]
    assert found["keys"] == sum(keys.values())
    most = sorted(keys.values(), reverse=True)[:5]
    assert [one["keys"] for one in found["tokens"]] == most
    some = int((result.arrays["some_later_sink_share"].values >= 0.25).sum())
    (line,) = (line for line in result.summary if line.startswith("Later sinks"))
    assert f"{some} one at whichever key" in line
    if most:
        assert f"of {found['keys']} such keys over heads and prompts {most[0]} hold" in line


def _check_norms_said(result: Any, plain: Any, tokens: torch.Tensor) -> None:
    """The largest norm is named as the largest, not where its ratio to the others peaks."""
    with torch.no_grad():
        states = plain(tokens, output_hidden_states=True).hidden_states[:-1]
    norms = torch.stack([state[:, 0].norm(dim=-1).mean() for state in states])
    (line,) = (line for line in result.summary if line.startswith("The residual norm"))
    layer = int(norms.argmax())
    assert f"is largest entering layer {layer} ({float(norms[layer]):.3g})" in line


def test_bos_replacement(smollm2: Any, prompts: sinklens.Prompts, plain_smollm2: Any) -> None:
    result = sinklens.run(
        "bos_replacement",
        smollm2,
        prompts,
        draws=2,
        seed=1,
        null_models=0,
        conditions=["mean", "zero", "random_token", "gaussian"],
    )
    drawn = result.draws
    directions = [
        replace_bos_embedding(smollm2, "gaussian", seed=1, draw=draw)
        .fwd_hooks[0][1]
        .keywords["direction"]
        .float()  # type: ignore[attr-defined]
        for draw in range(2)
    ]
    written: dict[str, list[Any]] = {
        "mean": ["mean"],
        "zero": ["zero"],
        "random_token": drawn["tokens"],
        "gaussian": directions,
    }
    for condition, values in written.items():
        at = [plain_hf.bos_replacement(plain_smollm2, prompts.tokens, value) for value in values]
        _check(result, condition, "treatment", _mean_over(at))
    for condition, values in {"zero": ["zero"] * 2, "random_token": drawn["tokens"]}.items():
        draws = [
            plain_hf.bos_replacement(plain_smollm2, prompts.tokens, value, position)
            for value, position in zip(values, drawn["control_positions"], strict=True)
        ]
        _check(result, condition, "control", _mean_over(draws))


@pytest.mark.heavy
def test_sink_head_ablation(smollm2: Any, prompts: sinklens.Prompts, plain_smollm2: Any) -> None:
    result = sinklens.run("sink_head_ablation", smollm2, prompts, draws=1, seed=2, null_models=0)
    heads = plain_hf.sink_heads(plain_smollm2, prompts.tokens)
    drawn = result.draws
    assert drawn["heads"] == [f"L{layer}H{head}" for layer, head in heads]
    order = derangement(prompts.tokens, 2, 0)
    assert sorted(order.tolist()) == list(range(N_PROMPTS))
    assert all(place != other for place, other in enumerate(order.tolist()))
    for condition in ("zero", "mean", "resample", "drop_edge", "drop_edge_unnormalised"):
        theirs = plain_hf.sink_head_ablation(
            plain_smollm2, prompts.tokens, heads, condition, permutation=order
        )
        _check(result, condition, "treatment", theirs)
    # There are more sinks than other heads, so that the control is that of as many in each layer.
    (control,), (position,) = drawn["control_heads"]["mean:matched"], drawn["control_positions"]
    (treated,) = drawn["treated_heads"]["mean:matched"]
    for kind, labels in (("control", control), ("treatment", treated)):
        parsed = [tuple(map(int, label[1:].split("H"))) for label in labels]
        assert set(parsed) <= set(heads) if kind == "treatment" else not set(parsed) & set(heads)
        theirs = plain_hf.sink_head_ablation(plain_smollm2, prompts.tokens, parsed, "mean")
        _check(result, "mean:matched", kind, theirs)
    theirs = plain_hf.sink_head_ablation(
        plain_smollm2, prompts.tokens, heads, "drop_edge", key=position
    )
    _check(result, "drop_edge", "control", theirs)
