"""Plugins that cannot be imported are named and left out; everything else works."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import sinklens
from sinklens.cli import app
from sinklens.runner import plugins, registry

WORKS = """
from sinklens import ExperimentConfig, experiment
from sinklens.runner.run import Run

@experiment(paper="2410.10781", question="Does a plugin work?")
def plugin_that_works(run: Run[ExperimentConfig]) -> None:
    pass
"""
HALF = WORKS.replace("plugin_that_works", "half_a_plugin") + "import a_module_that_is_nowhere"
TAKEN = WORKS.replace("plugin_that_works", "sink_profile")
FILES = {"works": WORKS, "half": HALF, "stops": "raise SystemExit(3)", "taken": TAKEN}
BROKEN = {"half": "a_module_that_is_nowhere", "stops": "SystemExit", "taken": "sink_profile"}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with one plugin that works and three that do not."""
    for name, source in FILES.items():
        monkeypatch.delitem(sys.modules, f"plugin_{name}", raising=False)
        (tmp_path / f"plugin_{name}.py").write_text(source)
    folder = tmp_path / "strange_plugins-1.5.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: strange-plugins\nVersion: 1.5\n")
    entries = "".join(f"{name} = plugin_{name}\n" for name in FILES)
    (folder / "entry_points.txt").write_text(f"[{plugins.GROUP}]\n{entries}")
    registry.all_experiments()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_experiments", dict(registry._experiments))
    monkeypatch.setattr(plugins, "_left_out", {})


@pytest.mark.usefixtures("installed")
def test_broken_plugins_are_named_and_left_out() -> None:
    with pytest.warns(UserWarning, match="is left out") as caught:
        found = registry.all_experiments()
    said = [str(warning.message) for warning in caught]
    assert len(said) == len(BROKEN)
    for name, reason in BROKEN.items():
        (line,) = (line for line in said if f"plugin_{name}" in line)
        assert reason in line and "strange-plugins 1.5" in line and "\n" not in line
    assert "plugin_that_works" in found and "half_a_plugin" not in found
    assert found["sink_profile"].function.__module__.startswith("sinklens.")
    registry.all_experiments()  # and not again


@pytest.mark.usefixtures("installed")
@pytest.mark.filterwarnings("ignore:the plugin:UserWarning")
def test_every_other_command_works() -> None:
    listed = CliRunner().invoke(app, ["list"])
    assert listed.exit_code == 0, listed.output
    assert "plugin_that_works" in listed.stdout and "bos_replacement" in listed.stdout
    for name, reason in BROKEN.items():
        assert any(
            f"plugin_{name}" in line and reason in line for line in listed.stderr.split("\n")
        )
    assert CliRunner().invoke(app, ["models"]).exit_code == 0
    with pytest.raises(sinklens.SinklensError, match="left out: the plugin half"):
        registry.get("half_a_plugin")
    done = CliRunner().invoke(app, ["run", "half_a_plugin", "rope", "--quiet"])
    assert done.exit_code == 2 and "a_module_that_is_nowhere" in done.stderr
