"""A leading `~` is the home folder, wherever a path is taken."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import sinklens
from sinklens import Diagnosis, ExperimentResult
from sinklens.cli import app
from sinklens.core.errors import UsageError
from sinklens.core.paths import path_of
from sinklens.models import shipped
from sinklens.models.prompts import random_prompts
from sinklens.sweep.driver import read_sweep
from tests import families


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder; the current one is another, in which nothing may appear."""
    folder, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(folder))
    monkeypatch.chdir(elsewhere)
    return folder


def test_results_pages_and_models_are_found_at_home(home: Path) -> None:
    model: Any = families.boot("llama")
    prompts = random_prompts(model, n=2, length=8)
    result = sinklens.run("sink_profile", model, prompts, progress=False, out="~/kept")
    result.save("~/saved")
    Diagnosis({"sink_profile": result}, []).save("~/diagnosis")
    assert ExperimentResult.load("~/saved").effects == result.effects
    assert len(sinklens.load_sweep("~/saved")) == len(result.effects)
    assert set(Diagnosis.load("~/diagnosis").results) == {"sink_profile"}
    with shipped.folder("backcopy-1") as folder:
        shutil.copytree(folder, home / "model")
    assert sinklens.load("~/model").cfg.n_layers == 1
    assert {one.name for one in home.iterdir()} >= {"saved", "diagnosis", "model"}
    assert not list(Path().iterdir())


def test_the_command_line_finds_them_too(home: Path) -> None:
    ran = CliRunner().invoke(
        app,
        ["run", "sink_profile", "backcopy-1", "--n=2", "--length=8", "--quiet", "--out=~/results"],
    )
    assert ran.exit_code == 0, ran.output
    assert (home / "results" / "result.json").is_file() and not list(Path().iterdir())


def test_models_of_a_sweep_are_found_at_home(home: Path) -> None:
    for name in ("a1", "a2"):
        (home / name).mkdir()
        (home / name / "config.json").write_text("{}")
    spec: dict[str, Any] = {"models": ["~/a*"], "experiments": ["sink_profile"]}
    found = {Path(task.checkpoint.source).name for task in read_sweep(spec).tasks}
    assert found == {"a1", "a2"}
    with pytest.raises(UsageError, match="there is no file or folder"):
        read_sweep({**spec, "models": ["~nobody-of-this-name/x"]})


def test_a_name_of_nobody_is_a_name() -> None:
    assert path_of("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")
    assert path_of(Path("a/~b")) == Path("a/~b")
