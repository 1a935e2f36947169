"""Experiments as a notebook declares them: again, without sentences, with mistakes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import sinklens
from sinklens import ExperimentConfig
from sinklens.core.errors import UsageError
from sinklens.hooks import ablate_heads
from sinklens.models.prompts import corpus
from sinklens.results.estimates import Measure, Sample
from sinklens.runner import registry
from sinklens.runner.compare import Comparison
from sinklens.runner.run import Run

Boot = Callable[[str], Any]
CELL = """
@sinklens.experiment(paper="none", question="Is it?", measures={"height": Measure("m")}, **how)
def hills(run: Run[sinklens.ExperimentConfig]) -> None:
    run.add("height", "hill", Sample(torch.full((len(run.prompts),), height)))
"""


@pytest.fixture(autouse=True)
def forgotten_afterwards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_experiments", dict(registry.all_experiments()))
    yield


def run_cell(boot_family: Boot, height: float, module: str, **how: Any) -> Any:
    """Run a cell that declares an experiment, and the experiment."""
    names = {"sinklens": sinklens, "Measure": Measure, "Run": Run, "Sample": Sample, "torch": torch}
    exec(CELL, {**names, "height": height, "how": how, "__name__": module})
    model = boot_family("llama")
    prompts = sinklens.prompts(model, corpus()[:500], n=4, length=6)
    return sinklens.run("hills", model, prompts, progress=False)


@pytest.mark.parametrize("module", ["__main__", "my_module"])
def test_a_cell_that_runs_again_replaces_its_experiment(module: str, boot_family: Boot) -> None:
    for height in (1.0, 2.0):
        assert run_cell(boot_family, height, module).effects[0].value == height
    with pytest.raises(UsageError, match=f"hills already, in {module}"):
        run_cell(boot_family, 3.0, "another_module")


@pytest.mark.slow
def test_a_script_may_be_imported_and_run_again() -> None:
    program = (
        "import importlib, sys, types, sinklens, torch\n"
        "from sinklens.results.estimates import Measure, Sample\n"
        "from sinklens.runner.run import Run\n"
        f"cell, how, height = {CELL!r}, {{}}, 1.0\n"
        "exec(cell)\nexec(cell)\nprint(hills.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "hills\n", done.stderr


def test_sentences_are_optional(boot_family: Boot) -> None:
    result = run_cell(boot_family, 2.0, "__main__")
    assert result.summary == ["height of hill: 2 m, above 0 (0)."]


def test_effects_are_said_without_sentences_too(boot_family: Boot) -> None:
    model = boot_family("llama")

    @registry.experiment(paper="none", question="Is it?", metrics=("loss",), conditions=("zero",))
    def heads(run: Run[ExperimentConfig]) -> None:
        run.compare(lambda run: [Comparison("zero", [ablate_heads(run.model, [(1, 0)], "zero")])])

    prompts = sinklens.prompts(model, corpus()[:500], n=4, length=6)
    (sentence,) = sinklens.run("heads", model, prompts, progress=False).summary
    assert sentence.startswith("Under zero at L1H0: loss ") and "no control" in sentence


def test_sentences_that_fail_leave_the_result_and_a_note(boot_family: Boot) -> None:
    def broken(result: Any) -> Any:
        raise KeyError("nowhere")

    def half(result: Any) -> Any:
        yield "This much is said."
        raise ZeroDivisionError

    says = (broken, "{height/hill} high.", half, "{height/hill|nothing}")
    result = run_cell(boot_family, 2.0, "__main__", says=says)
    assert result.effects[0].value == 2
    assert result.summary == ["2 m, above 0 (0) high."]
    notes = [note for note in result.notes() if "is not said" in note]
    assert notes == [
        "broken is not said, since it failed: KeyError: 'nowhere'.",
        "half is not said, since it failed: ZeroDivisionError.",
        "\"{height/hill|nothing}\" is not said, since it failed: KeyError: 'nothing'.",
    ]


def test_a_figure_that_fails_leaves_the_result_and_a_note(boot_family: Boot) -> None:
    def broken(result: Any) -> Any:
        raise KeyError("nowhere")

    result = run_cell(boot_family, 2.0, "__main__", figure=broken)
    assert result.plot().data
    assert any("figure" in note and "KeyError: 'nowhere'" in note for note in result.notes())
