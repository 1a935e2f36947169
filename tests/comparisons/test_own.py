"""Interventions of one's own: the rows of every other experiment, from hooks in any form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

import sinklens
from sinklens.engine import kept
from sinklens.hooks import Intervention, replace_bos_embedding
from sinklens.models.prompts import corpus
from tests.reference.plain_engine import plain_values

Boot = Callable[[str], TransformerBridge]
POINT = "blocks.1.hook_resid_pre"


@pytest.fixture(scope="module")
def prompts(boot_family: Boot) -> sinklens.Prompts:
    return sinklens.prompts(boot_family("llama"), corpus()[:2000], n=8, length=12, bos=True)


def push(x: Tensor, hook: Any, *, position: int = 0) -> Tensor:
    x[:, position] += torch.linspace(-1, 1, 32)
    return x


def push_later(x: Tensor, hook: Any) -> None:
    push(x, hook, position=4)


def compare(boot_family: Boot, prompts: Any, **how: Any) -> sinklens.ExperimentResult:
    how = {"null_models": 0, "progress": False, **how}
    return sinklens.compare_interventions(boot_family("llama"), prompts, **how)


def test_rows_are_those_of_the_plain_computation(
    boot_family: Boot, prompts: sinklens.Prompts
) -> None:
    model = boot_family("llama")
    result = compare(
        boot_family,
        prompts,
        treatment=[(POINT, push)],
        control=[(POINT, push_later)],
        metrics=["loss", "kl"],
    )
    hooks: list[Any] = [[(POINT, push)], [(POINT, push_later)]]
    plain = [Intervention("plain", "residual", 1, one) for one in hooks]
    for metric in ("loss", "kl"):
        clean, *edited = plain_values(model, prompts, [None, *plain])[metric].double().numpy()
        treated, control = (values - clean for values in edited)
        rows = {row.kind: row for row in result.effects if row.metric == metric}
        assert list(rows) == ["treatment", "control", "contrast"]
        for kind, differences in (
            ("treatment", treated),
            ("control", control),
            ("contrast", treated - control),
        ):
            row = rows[kind]
            assert row.effect == pytest.approx(differences.mean(), abs=1e-5)
            interval = stats.ttest_1samp(differences, 0).confidence_interval()
            assert (row.ci_low, row.ci_high) == pytest.approx(tuple(interval), abs=1e-5)
            assert row.condition == "treatment" and row.n_prompts == 8
        assert rows["treatment"].against is None
        assert rows["control"].against == rows["contrast"].against == "given"
        assert rows["contrast"].p_value is not None or metric == "kl"


def test_it_is_the_way_of_every_other_experiment(
    boot_family: Boot, prompts: sinklens.Prompts
) -> None:
    """BOS replacement, written as own interventions, has the rows of `bos_replacement`."""
    model = boot_family("llama")
    shared: dict[str, Any] = {"metrics": ["loss", "kl", "sink_mass"], "null_models": 2}
    known = sinklens.run(
        "bos_replacement", model, prompts, conditions="mean", draws=3, progress=False, **shared
    )
    places = known.draws["control_positions"]
    own = compare(
        boot_family,
        prompts,
        treatment=lambda model: {"mean": replace_bos_embedding(model, "mean")},
        control=lambda model: {
            "later_position": [replace_bos_embedding(model, "mean", position=at) for at in places]
        },
        **shared,
    )
    assert own.effects == known.effects
    assert any(row.against == "random_weights:later_position" for row in own.effects)


def test_several_conditions(boot_family: Boot, prompts: sinklens.Prompts) -> None:
    conditions = {"push": [(POINT, push)], "embed": ("hook_embed", push), "later": push_at(4)}
    without = compare(boot_family, prompts, treatment=conditions, metrics="loss")
    assert [row.condition for row in without.effects] == list(conditions)
    assert {row.kind for row in without.effects} == {"treatment"}
    assert any("none was given" in note for note in without.notes())
    every = compare(
        boot_family, prompts, treatment=conditions, control={"near": push_at(1)}, metrics="loss"
    )
    assert sum(row.kind == "contrast" for row in every.effects) == 3
    assert {row.against for row in every.effects} == {None, "near"}
    some = compare(
        boot_family, prompts, treatment=conditions, control={"push": push_at(1)}, metrics="loss"
    )
    (contrast,) = (row for row in some.effects if row.kind == "contrast")
    assert (contrast.condition, contrast.against) == ("push", "given")
    assert contrast == replace(
        every.find(kind="contrast", condition="push"),
        against="given",
        q_value=contrast.q_value,
    )


def push_at(position: int) -> list[tuple[str, Any]]:
    def at(x: Tensor, hook: Any) -> None:
        push(x, hook, position=position)

    return [(POINT, at)]


def test_draws_are_part_of_the_interval(boot_family: Boot, prompts: sinklens.Prompts) -> None:
    draws = [push_at(position) for position in (2, 3, 5)]
    result = compare(boot_family, prompts, treatment=push_at(0), control=draws, metrics=["loss"])
    control = result.find(kind="control")
    assert control.n_draws == 3
    single = [
        compare(boot_family, prompts, treatment=one, metrics=["loss"]).effects[0].effect
        for one in draws
    ]
    assert control.effect == pytest.approx(np.mean(single), abs=1e-6)


def test_values_by_prompt_on_models_with_random_weights(
    boot_family: Boot, prompts: sinklens.Prompts
) -> None:
    """These run some of the prompts, each with its own values."""
    model = boot_family("llama")
    values = torch.arange(8.0)[:, None].expand(8, 32)
    seen: list[float] = []

    edit = Intervention.from_values(POINT, values, position=0)
    recorded = replace(edit, rebind=lambda index: note(index, edit, seen))
    result = sinklens.compare_interventions(
        model,
        prompts,
        treatment=recorded,
        control=push_at(3),
        metrics="kl",
        null_models=2,
        progress=False,
    )
    assert any(f"{row.against}".startswith("random_weights") for row in result.effects)
    from sinklens.runner.null_models import few_prompts

    chosen = few_prompts(prompts, 0).tolist()
    assert seen[:8] == list(range(8))
    assert seen[8:] == chosen * 2 and chosen != [0, 1]


def note(index: Tensor, edit: Intervention, seen: list[float]) -> Any:
    seen += index.tolist()
    assert edit.rebind is not None
    return edit.rebind(index)


def test_the_result_is_whole(boot_family: Boot, prompts: sinklens.Prompts, tmp_path: Path) -> None:
    def run() -> sinklens.ExperimentResult:
        return compare(
            boot_family, prompts, treatment=push_at(0), control=push_at(4), metrics="loss"
        )

    result = run()
    assert result.experiment == "compare_interventions"
    (sentence,) = result.summary
    assert sentence.startswith("Under treatment: loss ") and "its given control" in sentence
    assert result.plot().data and "given" in result._repr_html_()
    assert result.findings["hook_points"] == {"treatment": {"treatment": [POINT], "given": [POINT]}}
    loaded = sinklens.ExperimentResult.load(result.save(tmp_path / "out"))
    assert loaded.effects == result.effects and loaded.summary == result.summary
    assert loaded.plot().to_json() == result.plot().to_json()
    files = [one.files()["result.json"] for one in (result, run())]
    assert files[0] == files[1]


def test_finished_work_is_never_resumed(
    boot_family: Boot, prompts: sinklens.Prompts, tmp_path: Path
) -> None:
    """What a hook function does may have changed under its name."""
    with pytest.raises(KeyboardInterrupt), kept(tmp_path, ["own"]):
        compare(boot_family, prompts, treatment=push_at(0), metrics="loss")
        raise KeyboardInterrupt
    with kept(tmp_path, ["own"]):
        other = compare(boot_family, prompts, treatment=push_at(3), metrics="loss")
    alone = compare(boot_family, prompts, treatment=push_at(3), metrics="loss")
    assert other.effects == alone.effects


def test_loss_is_left_out_where_there_is_none(
    boot_family: Boot,
) -> None:
    model = boot_family("bert")
    prompts = sinklens.prompts(model, corpus()[:500], n=4, length=8, bos=True)
    result = sinklens.compare_interventions(
        model, prompts, treatment=push_at(0), null_models=0, progress=False
    )
    assert {row.metric for row in result.effects} == {"kl"}
    assert "loss" in result.settings["left_out"]


def test_an_effect_of_nothing_is_said(boot_family: Boot, prompts: sinklens.Prompts) -> None:
    """RMSNorm knows no scale: behind it position 0 is what it was."""
    result = compare(boot_family, prompts, treatment=("blocks.1.ln1.hook_in", halve), metrics="kl")
    assert result.effects[0].effect == pytest.approx(0, abs=1e-6)
    assert result.summary == ["Under treatment: kl does not change beyond rounding error."]


def halve(x: Tensor, hook: Any) -> Tensor:
    return x * 0.5
