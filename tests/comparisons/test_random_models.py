"""Contrasts of KL and of the sink are judged by models with random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import sinklens
from sinklens.core.seeds import seeded
from sinklens.hooks import replace_bos_embedding
from sinklens.models.prompts import Prompts
from sinklens.models.random_weights import random_weights
from sinklens.runner.null_models import few_prompts
from tests.benchmarks.false_findings import rates

MODELS, DRAWS = 4, 3


@pytest.fixture(scope="module")
def model(boot_family: Callable[[str], Any]) -> Any:
    return boot_family("llama")


@pytest.fixture(scope="module")
def prompts(model: Any) -> Prompts:
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(4, int(model.cfg.d_vocab), (6, 20), generator=generator)
    tokens[:, 0] = sinklens.models.bos_token_id(model)
    return Prompts(tokens, bos=True, source="random")


def run(model: Any, prompts: Prompts, **settings: Any) -> sinklens.ExperimentResult:
    return sinklens.run(
        "bos_replacement",
        model,
        prompts,
        conditions=("zero",),
        draws=DRAWS,
        progress=False,
        **{"null_models": MODELS, **settings},
    )


def divergences(model: Any, tokens: Tensor, position: int) -> Tensor:
    """KL(clean || BOS or a later token zeroed), `[prompt, pos]`, by whole forward passes."""
    edit = replace_bos_embedding(model, "zero", position=position)
    with torch.no_grad():
        clean = model(tokens).log_softmax(-1)
        edited = model.run_with_hooks(tokens, fwd_hooks=edit.fwd_hooks).log_softmax(-1)
    rows: Tensor = (clean.exp() * (clean - edited)).sum(-1)
    return rows


def by_draw(model: Any, tokens: Tensor, positions: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """KL at the queries after each position, of BOS zeroed and of the token there."""
    sides = []
    for treated in (True, False):
        rows = [
            divergences(model, tokens, 0 if treated else at)[:, at + 1 :].mean(1)
            for at in positions
        ]
        sides.append(torch.stack(rows).double().numpy())
    return sides[0], sides[1]


def test_the_null_is_the_ratio_in_models_with_random_weights(model: Any, prompts: Prompts) -> None:
    """Ratio, null row and p, from plain forward passes of each model."""
    result = run(model, prompts, metrics=("kl",))
    positions = result.draws["control_positions"]
    own, control = by_draw(model, prompts.tokens, positions)
    ratios = []
    for number in range(MODELS):
        weights = int(seeded(0, "null_model", number).integers(2**31))
        twin, _ = random_weights(model, weights)
        treated, untreated = by_draw(twin, prompts.tokens[few_prompts(prompts, 0)], positions)
        ratios.append(np.log(treated.mean() / untreated.mean()))
    nulls = np.array(ratios)
    row = result.find(metric="kl", against="random_weights:later_position")
    assert (row.kind, row.resampled, row.n_prompts) == ("null", "model", MODELS)
    expected = control.mean() * (np.exp(nulls) - 1)
    assert row.effect == pytest.approx(expected.mean(), rel=1e-3)
    half = stats.t.ppf(0.975, MODELS - 1) * expected.std(ddof=1) / np.sqrt(MODELS)
    assert row.ci_high - row.effect == pytest.approx(half, rel=1e-3)
    # Without draws or prompts that differ, t would be the distance over sqrt(1 + 1/K) spreads.
    distance = np.log(own.mean() / control.mean()) - nulls.mean()
    largest = abs(distance) / (nulls.std(ddof=1) * np.sqrt(1 + 1 / MODELS))
    contrast = result.find(metric="kl", kind="contrast")
    assert contrast.p_value >= 2 * stats.t.sf(largest, 6 * DRAWS)
    assert torch.isnan(result.per_prompt["value"][result.effects.index(row)]).all()


def test_loss_keeps_its_sign_flips_and_no_models_mean_no_test(model: Any, prompts: Prompts) -> None:
    with_models, without = (run(model, prompts, null_models=n) for n in (MODELS, 0))
    losses = [r.find(metric="loss", kind="contrast") for r in (with_models, without)]
    assert losses[0] == losses[1]
    for metric in ("kl", "sink_mass", "sink_rate", "position0_norm"):
        assert with_models.find(metric=metric, kind="null").against.startswith("random_weights")
        assert not [r for r in without.effects if r.metric == metric and r.kind == "null"]
        assert without.find(metric=metric, kind="contrast").p_value is None


def test_a_model_that_cannot_be_made_again_is_said(
    model: Any, prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sinklens.models import random_weights as module

    monkeypatch.setattr(module, "LARGEST", 1)
    result = run(model, prompts)
    assert result.find(metric="kl", kind="contrast").p_value is None
    assert any("not judged by random weights: the model is large" in n for n in result.notes())
    assert "not tested against" in "".join(result.summary)


@pytest.mark.slow
@pytest.mark.parametrize(
    "experiment", ["bos_replacement", pytest.param("position0_patching", marks=pytest.mark.heavy)]
)
def test_few_verdicts_on_random_weights(experiment: str) -> None:
    """A small version of `tests.benchmarks.false_findings`; rows of one model hang together."""
    models = 8
    for (metric, control), (count, _, wrong) in rates("llama", experiment, models).items():
        rows = count / models
        most = rows * stats.binom.ppf(0.999, models, 0.06)
        assert wrong <= most, (metric, control, wrong, count)
