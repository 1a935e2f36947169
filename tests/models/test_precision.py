"""Numbers of models in float64, and experts that tokens are routed to anew."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import sinklens
from sinklens import SinklensError
from sinklens.engine.evaluate import evaluate
from sinklens.models.capabilities import check
from sinklens.models.trials import is_causal
from tests import families, odd_models
from tests.reference import plain_families as reference

pytestmark = pytest.mark.slow

TOKENS = torch.tensor(
    [
        [families.BOS, 5, 9, 17, 30, 12, 44, 8, 21, 33],
        [families.BOS, 7, 7, 40, 22, 9, 31, 15, 6, 50],
    ]
)
RUN = {"progress": False, "draws": 0, "null_models": 0}


def run(experiment: str, model: Any, **settings: Any) -> Any:
    prompts = sinklens.Prompts(TOKENS, bos=True, source="tokens")
    return sinklens.run(experiment, model, prompts, **{**RUN, **settings})


def test_a_float64_model_is_measured_in_float64() -> None:
    """Ten digits, where float32 has seven."""
    plain, model = families.llama().double(), sinklens.load(families.llama().double())
    clean, edited = reference.logits(plain, TOKENS), reference.without_bos(plain, TOKENS)
    result = run("bos_replacement", model, conditions="zero")
    values = {row.metric: row for row in result.effects}
    close = {"rel": 1e-10, "abs": 1e-11}
    assert values["loss"].value == pytest.approx(
        float(reference.loss(edited, TOKENS).mean()), **close
    )
    assert values["kl"].value == pytest.approx(float(reference.kl(clean, edited).mean()), **close)
    with reference._after(plain.get_input_embeddings(), reference.at_zero):
        mass = torch.stack([m.mean() for m in reference.sink_mass(plain, TOKENS).values()]).mean()
        norms = [one[:, 0].norm(dim=-1) for one in reference.streams(plain, TOKENS)]
    assert values["sink_mass"].value == pytest.approx(float(mass), **close)
    largest = float(torch.stack(norms).amax(0).mean())
    assert values["position0_norm"].value == pytest.approx(largest, **close)


def test_a_small_edit_in_float64_is_not_rounding() -> None:
    """KL of an edit by 1e-9 is some 1e-16, which float32 logits cannot hold."""
    model = sinklens.load(families.llama().double())

    def nudge(stream: Tensor, hook: Any) -> Tensor:
        return stream + 1e-9 * torch.linspace(-1, 1, stream.shape[-1], dtype=stream.dtype)

    edits = {"nudge": [("blocks.1.hook_resid_pre", nudge)]}
    found = evaluate(model, sinklens.Prompts(TOKENS, bos=True, source="tokens"), edits, ["kl"])
    with torch.no_grad():
        clean, edited = model(TOKENS), model.run_with_hooks(TOKENS, fwd_hooks=edits["nudge"])
    change = (edited - clean)[:, 1:]
    weights = clean[:, 1:].softmax(-1)
    centred = change - (weights * change).sum(-1, keepdim=True)
    second_order = (weights * centred**2).sum(-1).mean(1) / 2
    assert float(second_order.max()) < 1e-15
    torch.testing.assert_close(found.values[0, 0], second_order, rtol=1e-4, atol=0)


def plain_experts(model: Any, tokens: Tensor) -> list[Tensor]:
    """By layer the two experts of each token, by numbers, in a plain Hugging Face model."""
    found: list[Tensor] = []

    def keep(module: Any, inputs: Any, output: Any) -> None:
        found.append(output[-1].sort(-1).values.view(*tokens.shape, 2))

    routers = [m for m in model.modules() if type(m).__name__.endswith("TopKRouter")]
    handles = [router.register_forward_hook(keep) for router in routers]
    reference.logits(model, tokens)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize(
    "name",
    [
        "olmoe",
        *(pytest.param(n, marks=pytest.mark.architectures) for n in ("gpt_oss", "qwen3_next")),
    ],
)
def test_tokens_that_go_to_other_experts_are_a_row(name: str) -> None:
    plain, model = getattr(odd_models, name)(), sinklens.load(getattr(odd_models, name)())
    clean = plain_experts(plain, TOKENS)
    assert len(clean) == odd_models.LAYERS

    def share(edited: list[Tensor]) -> float:
        other = [(a != b).any(-1) for a, b in zip(clean, edited, strict=True)]
        return float(torch.stack(other).any(0)[:, 1:].double().mean())

    with reference._after(plain.get_input_embeddings(), reference.at_zero):
        wanted = share(plain_experts(plain, TOKENS))
    assert 0 < wanted < 1
    (row,) = [
        row
        for row in run("bos_replacement", model, conditions="zero").effects
        if row.metric == "experts_changed"
    ]
    assert (row.baseline, row.unit) == (0, "share of tokens")
    assert row.value == pytest.approx(wanted, abs=1e-6)
    # Edits of one block share a forward pass; layers below are those of the clean run.
    result = run("position0_patching", model, conditions="zero,other_token", layers=(2,))
    with reference._before(reference.blocks(plain)[2], reference.at_zero):
        wanted = share(plain_experts(plain, TOKENS))
    row = result.find(metric="experts_changed", condition="zero:residual")
    assert row.value == pytest.approx(wanted, abs=1e-6)


def test_models_without_experts_have_no_such_row() -> None:
    model = sinklens.load(families.llama())
    metrics = {row.metric for row in run("bos_replacement", model, conditions="zero").effects}
    assert metrics == {"loss", "kl", "sink_mass", "sink_rate", "position0_norm"}
    with pytest.raises(SinklensError, match="no choice of experts in LlamaForCausalLM"):
        run("bos_replacement", model, metrics="experts_changed")
    with pytest.raises(SinklensError, match="RoutedAnew finds nothing to read in Llama"):
        prompts = sinklens.Prompts(TOKENS, bos=True, source="tokens")
        evaluate(model, prompts, [], ["experts_changed"])


@pytest.mark.parametrize(
    ("step", "ahead", "causal"),
    [(0, True, True), (1, False, True), (1, True, False), (9, False, False)],
)
def test_rounding_in_half_precision_is_no_look_ahead(step: int, ahead: bool, causal: bool) -> None:
    """Logits may differ by some roundings where patterns show no later key."""
    logits = torch.full((2, 5, 7), 8.0, dtype=torch.bfloat16)
    logits[1, 2, 3] += step * 8 * torch.finfo(torch.bfloat16).eps
    pattern = torch.full((2, 3, 5, 5), 0.2) if ahead else torch.full((2, 3, 5, 5), 0.2).tril()
    assert is_causal(logits, [None, pattern]) == causal
    assert is_causal(logits, [None]) == (step == 0)


HIDDEN = ("experts", "hidden_experts")


def test_experts_that_are_not_shown_are_said() -> None:
    """Their choice cannot be compared, so that a result has no row of it."""
    hidden = sinklens.load(odd_models.deepseek_v3())
    assert check(hidden).hidden_experts and not check(hidden).experts
    result = run("bos_replacement", hidden, conditions="zero")
    assert any("does not show which experts" in note for note in result.notes())
    assert "experts_changed" not in {row.metric for row in result.effects}
    assert check(sinklens.load(odd_models.olmoe())).experts
    # The config of Nemotron H counts experts that none of these blocks has.
    assert not any(check(sinklens.load(odd_models.nemotron_h())).__dict__[name] for name in HIDDEN)
