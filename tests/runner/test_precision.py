"""`precision=quick`: a first answer, with what it leaves out said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from transformer_lens.model_bridge import TransformerBridge
from typer.testing import CliRunner

import sinklens
from sinklens import diagnosis
from sinklens.cli import app
from sinklens.runner import precision

Boot = Callable[[str], TransformerBridge]


def small(model: TransformerBridge) -> sinklens.Prompts:
    return sinklens.models.prompts.random_prompts(model, n=3, length=12, bos=True)


def test_a_quick_run_has_fewer_draws_and_says_so(boot_family: Boot) -> None:
    model = boot_family("llama")
    quick = {"precision": "quick", "conditions": ("mean",), "progress": False}
    result = sinklens.run("bos_replacement", model, small(model), **quick)
    assert (result.settings["draws"], result.settings["null_models"]) == (3, 0)
    assert result.provenance["forwards_with_random_weights"] == 0
    (said,) = [note for note in result.notes() if note.startswith("A quick run: 3 draws, and no")]
    assert "precision=full" in said
    contrast = result.find(metric="kl", condition="mean", kind="contrast")
    assert contrast.p_value is None and contrast.ci_low is not None


def test_what_a_call_says_holds(boot_family: Boot) -> None:
    model = boot_family("llama")
    settings: dict[str, Any] = {"draws": 2, "null_models": 2, "conditions": ("mean",)}
    result = sinklens.run(
        "bos_replacement", model, small(model), precision="quick", progress=False, **settings
    )
    assert (result.settings["draws"], result.settings["null_models"]) == (2, 2)
    assert any(note.startswith("A quick run: 2 draws. precision") for note in result.notes())


@pytest.mark.slow
def test_default_prompts(boot_family: Boot) -> None:
    model = boot_family("llama")
    run: dict[str, Any] = {"conditions": ("mean",), "draws": 0, "metrics": "loss"}
    quick = sinklens.run("bos_replacement", "rope", precision="quick", progress=False, **run)
    assert quick.provenance["prompts"]["n"] == 8
    assert diagnosis.default_prompts(model, {}) == 16
    assert diagnosis.default_prompts(model, {"precision": "quick"}) == 8


@pytest.mark.slow
def test_large_models_get_a_quick_diagnosis(monkeypatch: pytest.MonkeyPatch) -> None:
    rope = sinklens.load("rope")
    weights = sum(weight.numel() for weight in rope.original_model.parameters())
    assert precision.by_size(rope) == "full"
    monkeypatch.setattr(precision, "LARGE", weights - 1)
    assert precision.by_size(rope) == "quick"
    battery = diagnosis._battery(rope, {})
    assert battery["position0_patching"]["layers"] == [0, 2, 5]
    assert all(own["precision"] == "quick" for own in battery.values())
    assert "draws" not in battery["bos_replacement"]  # the precision says how many


def test_an_unknown_precision_is_refused_before_any_work() -> None:
    for command in (["run", "bos_replacement"], ["diagnose"]):
        done = CliRunner().invoke(app, [*command, "--precision", "quik"])
        assert done.exit_code == 2
        assert "unknown precision 'quik'" in done.output and "quick" in done.output
    done = CliRunner().invoke(app, ["run", "bos_replacement", "--set", "precision=quick"])
    assert done.exit_code == 2 and "use --precision instead of --set" in done.output
