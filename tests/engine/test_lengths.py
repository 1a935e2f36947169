"""Prompts of unequal lengths: the numbers of each prompt run alone, also without the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import sinklens
from sinklens import Prompts
from sinklens.hooks.bos import replace_bos_embedding
from sinklens.hooks.heads import ablate_heads
from sinklens.hooks.intervention import Intervention
from sinklens.hooks.position0 import patch_position0
from sinklens.probes import PositionValues, SinkScores
from sinklens.runner import registry
from tests import families
from tests.reference.plain_engine import plain_values

LENGTHS = (9, 5, 12, 9, 7, 5)
METRICS = ("loss", "kl", "sink_mass", "sink_rate", "position0_norm", "logit_diff")
CLOSE = 1e-5
CAUSAL = [name for name in families.FAMILIES if name != "bert"]
TAKES_THEM = ("bos_replacement", "position0_patching", "sink_head_ablation", "sink_profile")


@pytest.fixture(
    params=[
        pytest.param(name, marks=[] if name in ("llama", "gpt2") else pytest.mark.heavy)
        for name in CAUSAL
    ]
)
def causal(request: pytest.FixtureRequest, boot_family: Callable[[str], Any]) -> Any:
    return boot_family(request.param)


def unequal() -> Prompts:
    random = np.random.default_rng(3)
    rows = [[families.BOS, *random.integers(4, 64, n - 1)] for n in LENGTHS]
    filled = [[*row, *[-1] * (max(LENGTHS) - len(row))] for row in rows]
    answers = torch.from_numpy(random.integers(4, 64, (len(rows), 2)))
    return Prompts(torch.tensor(filled), True, "random", answers)


def last_logit(logits: Any, tokens: Any, *, positions: Any, **_: Any) -> Any:
    """A metric of a user's own."""
    return logits[:, -1].float().logsumexp(-1) + 0 * len(positions)


def interventions(model: Any, prompts: Prompts) -> list[Intervention]:
    others = torch.randn(len(prompts), 32, generator=torch.Generator().manual_seed(0))
    made = [
        replace_bos_embedding(model, "mean"),
        replace_bos_embedding(model, "gaussian", position=2),
        patch_position0(model, 1, "zero"),
        patch_position0(model, 1, "other_token", values=others),  # another value for each prompt
        ablate_heads(model, [(0, 1), (1, 2)], "zero"),
    ]
    if model.cfg.architecture != "OPTForCausalLM":
        made.append(ablate_heads(model, [(1, 0)], "drop_edge"))
    return made


def alone(made: Intervention, number: int) -> Intervention:
    """An intervention as one prompt alone needs it."""
    return replace(made.for_prompts(torch.tensor([number])), rebind=None)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [None, 2])
def test_unequal_lengths_are_what_each_prompt_gives_alone(
    causal: Any, batch_size: int | None
) -> None:
    prompts = unequal()
    edits = interventions(causal, prompts)
    metrics = [*METRICS, last_logit]
    found = sinklens.evaluate(causal, prompts, edits, metrics, batch_size=batch_size)
    assert found.shortcuts["prefix"]
    for number, one in enumerate(prompts):
        own = [alone(edit, number) for edit in edits]
        single = sinklens.evaluate(causal, one, own, metrics)
        for name in ("values", "baselines"):
            mine, theirs = (getattr(each, name) for each in (found, single))
            torch.testing.assert_close(mine[..., number], theirs[..., 0], atol=CLOSE, rtol=CLOSE)
        torch.testing.assert_close(found.clean[:, number], single.clean[:, 0], atol=CLOSE, rtol=0)


def test_unequal_lengths_are_what_plain_forwards_give(causal: Any) -> None:
    """One whole forward a prompt and intervention, without the engine."""
    prompts = unequal()
    edits = interventions(causal, prompts)
    found = sinklens.evaluate(causal, prompts, edits, ["loss", "kl"])
    for number, one in enumerate(prompts):
        plain = plain_values(causal, one, [alone(edit, number) for edit in edits])
        for axis, name in enumerate(("loss", "kl")):
            torch.testing.assert_close(
                found.values[:, axis, number], plain[name][:, 0], atol=CLOSE, rtol=CLOSE
            )


def test_probes_keep_the_order_and_the_shortest_length(causal: Any) -> None:
    prompts = unequal()
    probes = [SinkScores(causal), PositionValues(causal, ["residual"], [1], 3)]
    scores, values = sinklens.evaluate(causal, prompts, [], [], probes=probes).probes
    assert scores.scores.shape == (len(LENGTHS), causal.cfg.n_layers, 4, min(LENGTHS))
    for number, one in enumerate(prompts):
        probes = [SinkScores(causal), PositionValues(causal, ["residual"], [1], 3)]
        alone_scores, alone_values = sinklens.evaluate(causal, one, [], [], probes=probes).probes
        for mine, theirs in (
            (scores.mass, alone_scores.mass),
            (scores.scores, alone_scores.scores),
        ):
            theirs = theirs[0, ..., : min(LENGTHS)]
            torch.testing.assert_close(mine[number], theirs, atol=CLOSE, rtol=0)
        key = ("residual", 1)
        torch.testing.assert_close(values[key][number], alone_values[key][0], atol=CLOSE, rtol=0)


def by_prompt(result: sinklens.ExperimentResult) -> dict[tuple[Any, ...], np.ndarray]:
    """Values and baselines of rows that depend on no control."""
    value, baseline = (result.per_prompt[side].numpy() for side in ("value", "baseline"))
    return {
        (row.metric, row.condition, row.layer, row.head): np.stack([value[i], baseline[i]])
        for i, row in enumerate(result.effects)
        if row.kind in ("treatment", "measurement")
    }


OWN = {
    "position0_patching": {"conditions": ("zero", "other_token", "other_token:key")},
    "sink_head_ablation": {
        "heads": ("L0H0", "L1H1"),
        "conditions": ("zero", "drop_edge_unnormalised"),
    },
    "sink_profile": {"conditions": ("natural", "no_bos")},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TAKES_THEM)
def test_rows_of_an_experiment_are_those_of_each_prompt_alone(causal: Any, name: str) -> None:
    settings = {"draws": 1, "null_models": 0, "progress": False, **OWN.get(name, {})}
    if name == "sink_head_ablation" and causal.cfg.architecture == "OPTForCausalLM":
        settings["conditions"] = ("zero",)
    prompts = unequal()
    together = by_prompt(sinklens.run(name, causal, prompts, **settings))
    compared = 0
    for number, one in enumerate(prompts):
        for key, values in by_prompt(sinklens.run(name, causal, one, **settings)).items():
            if key not in together:  # a window that is shorter than the longest prompt alone
                assert ":" in key[1]
                continue
            close = CLOSE * max(1.0, float(np.abs(values).max()))
            np.testing.assert_allclose(together[key][:, number], values[:, 0], atol=close)
            compared += 1
    assert compared >= len(prompts) * len(together) // 2


@pytest.mark.slow
def test_a_bidirectional_model_takes_them(boot_family: Callable[[str], Any]) -> None:
    model, prompts = boot_family("bert"), unequal()
    edits = [replace_bos_embedding(model, "mean"), ablate_heads(model, [(1, 2)], "zero")]
    found = sinklens.evaluate(model, prompts, edits, ["kl", "sink_mass"])
    for number, one in enumerate(prompts):
        single = sinklens.evaluate(model, one, edits, ["kl", "sink_mass"])
        torch.testing.assert_close(
            found.values[..., number], single.values[..., 0], atol=CLOSE, rtol=CLOSE, equal_nan=True
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", list(registry.all_experiments()))
def test_every_experiment_takes_unequal_lengths_or_says_so(
    name: str, boot_family: Callable[[str], Any]
) -> None:
    """And where it takes them, no row depends on the order of prompts."""
    model, prompts = boot_family("llama"), unequal()
    settings: dict[str, Any] = {"draws": 2, "null_models": 2, "progress": False}
    settings |= registry.get(name).smallest
    if name not in TAKES_THEM:
        with pytest.raises(sinklens.SinklensError) as caught:
            sinklens.run(name, model, prompts, **settings)
        message = str(caught.value)
        assert "prompts of one length; these are 6 prompts of 5 to 12 tokens" in message
        assert "\n" not in message
        return
    result = sinklens.run(name, model, prompts, **settings)
    assert "6 prompts of 5 to 12 tokens with BOS" in result.notes()[0]
    assert any("ran together, without padding" in note for note in result.notes())
    order = [4, 2, 0, 5, 1, 3]
    moved = sinklens.run(name, model, prompts[order], **settings)
    mine, theirs = (each.per_prompt["value"].numpy() for each in (result, moved))
    for number, row in enumerate(result.effects):
        if row.resampled != "prompt" or "random" in row.condition or "repeated" in row.condition:
            continue
        np.testing.assert_allclose(mine[number][order], theirs[number], atol=2e-5, err_msg=str(row))


def test_what_needs_one_length_says_so(boot_family: Callable[[str], Any]) -> None:
    model, prompts = boot_family("llama"), unequal()
    how: dict[str, Any] = {"draws": 1, "null_models": 0, "progress": False}
    with pytest.raises(sinklens.SinklensError, match="resample writes values of every position"):
        sinklens.run("sink_head_ablation", model, prompts, conditions=["resample"], **how)
    with pytest.raises(sinklens.SinklensError, match="screen needs prompts of one length"):
        sinklens.run("position0_patching", model, prompts, screen=True, top=1, **how)
    with pytest.raises(sinklens.SinklensError, match="there is no position 5"):
        sinklens.evaluate(model, prompts, [], ["loss"], positions=[5])


@pytest.mark.slow
def test_diagnosis(boot_family: Callable[[str], Any]) -> None:
    page = sinklens.diagnose(
        boot_family("llama"), unequal(), draws=1, null_models=0, progress=False
    )
    assert "6 prompts of 5 to 12 tokens with BOS" in page.findings[0]
    assert not [line for line in page.findings if "Not run" in line]
