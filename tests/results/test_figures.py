"""Figures as data, those of a function of the result among them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
import torch

import sinklens
from sinklens import ExperimentConfig
from sinklens.models.prompts import corpus
from sinklens.results.estimates import Measure, Sample, Share
from sinklens.results.figures import Heatmap
from sinklens.results.record import Record
from sinklens.runner import registry
from sinklens.runner.run import Run

Boot = Callable[[str], Any]


def chosen_heatmap(result: Record) -> Heatmap:
    (name,) = result.arrays
    return Heatmap(name, f"{len(result.effects)} rows", "share")


def plotly_bars(result: Record) -> go.Figure:
    names = [row.condition for row in result.effects]
    return go.Figure(go.Bar(x=names, y=[row.value for row in result.effects]))


def run_own(
    figure: Any, boot_family: Boot, monkeypatch: pytest.MonkeyPatch
) -> sinklens.ExperimentResult:
    """An experiment of the user's own, forgotten after the test."""
    monkeypatch.setattr(registry, "_experiments", dict(registry.all_experiments()))

    @registry.experiment(
        paper="none (0000.00000)",
        question="What is drawn?",
        measures={"height": Measure("m")},
        figure=figure,
    )
    def drawn_by_hand(run: Run[ExperimentConfig]) -> None:
        run.add("height", "hill", Sample(torch.arange(float(len(run.prompts)))))
        run.add("height", "wall", Share(len(run.prompts), len(run.prompts)))
        run.keep("grid", torch.tensor([[0.25, 0.5], [0.75, 1.0]]), "layer head")

    model = boot_family("llama")
    prompts = sinklens.prompts(model, corpus()[:500], n=4, length=6)
    return sinklens.run("drawn_by_hand", model, prompts, progress=False)


def drawn_elsewhere(folder: Path) -> go.Figure:
    """A saved figure, drawn in a process that does not know the experiment."""
    program = (
        "import sys, sinklens\n"
        f"result = sinklens.ExperimentResult.load({str(folder)!r})\n"
        "print(result.plot().to_json())\n"
        "known = ('tests', 'sinklens.experiments.')\n"
        "assert not any(name.startswith(known) for name in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return go.Figure(json.loads(done.stdout))


@pytest.mark.slow
def test_a_function_gives_a_declaration(
    boot_family: Boot, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    result = run_own(chosen_heatmap, boot_family, monkeypatch)
    assert result.figure["kind"] == "Heatmap" and result.figure["array"] == "grid"
    drawn = drawn_elsewhere(result.save(tmp_path / "out"))
    assert drawn.layout.title.text.startswith("<b>2 rows<") and drawn.data[0].type == "heatmap"


@pytest.mark.slow
def test_a_function_gives_a_plotly_figure(
    boot_family: Boot, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    result = run_own(plotly_bars, boot_family, monkeypatch)
    assert result.figure["kind"] == "Plotly"
    drawn = drawn_elsewhere(result.save(tmp_path / "out"))
    assert list(drawn.data[0].x) == ["hill", "wall"] and list(drawn.data[0].y) == [1.5, 1.0]


def test_anything_else_leaves_the_result_with_a_note(
    boot_family: Boot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The work is done by then."""
    result = run_own(lambda result: "a drawing", boot_family, monkeypatch)
    (note,) = (note for note in result.notes() if "figure" in note)
    assert re.search("drawn_by_hand .* returned a str.*Heatmap", note) and "\n" not in note
    assert result.figure["kind"] == "Effects" and result.plot() is not None
    assert len(result.effects) == 2


def test_values_by_prompt_are_kept_only_where_prompts_were_resampled(
    boot_family: Boot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A share of as many tokens as there are prompts is still no value of prompts."""
    values = run_own(plotly_bars, boot_family, monkeypatch).per_prompt["value"].numpy()
    np.testing.assert_array_equal(values[0], np.arange(4.0))
    assert np.isnan(values[1]).all()
