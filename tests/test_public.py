"""What stands at the top of the package, and what `--version`, `-h`, `list` and `show` print."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from typer.testing import CliRunner

import sinklens
from sinklens.cli import app
from sinklens.runner import registry
from sinklens.runner.config import fit
from sinklens.runner.manual import _value, documented

ROOM = 6  # a second, on a busy machine
EXPERIMENTS = list(registry.all_experiments())


def printed(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "zoo.card('rope')",
        "zoo.recipes.RECIPES",
        "models.shipped.names()",
        "hooks.replace_bos_embedding",
        "metrics.resolve_metrics",
        "results.wording",
        "stats.effects.EffectSize",
        "functional.graphs",
    ],
)
def test_submodules_need_no_import_of_their_own(name: str) -> None:
    """In a fresh Python, where no other test has imported them."""
    code = f"import sinklens; sinklens.{name}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_name_that_is_nowhere_is_an_attribute_error() -> None:
    for package in (sinklens, sinklens.zoo, sinklens.models):
        for name in ("nothing", "_private", "__wrapped__"):
            assert not hasattr(package, name)


def test_the_version_is_said() -> None:
    assert sinklens.__version__ == version("sinklens")
    assert printed("--version") == f"sinklens {sinklens.__version__}\n"


def test_short_help() -> None:
    assert "diagnose" in printed("-h") and printed("-h") == printed("--help")
    assert "--n-prompts" in printed("run", "-h")


def test_a_card_prints_as_a_card() -> None:
    for name in sinklens.zoo.names():
        card = sinklens.zoo.card(name)
        page = str(card)
        assert page.startswith(f"# {name}\n") and "| quantity | value |" in page
        assert repr(card) == page and json.loads(json.dumps(card)) == card
        loss = card["weights"][0]["figures"]["held-out loss"]["value"]
        assert f"| held-out loss | {loss:.3f} |" in page


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_all_that_can_be_asked_of_an_experiment_is_printed(name: str) -> None:
    declared, page = registry.get(name), printed("list", name)
    config = declared.config()
    usual = declared.default_conditions(config)
    assert declared.question in page and declared.paper in page
    words = page.replace(",", " ").split()
    for condition in declared.conditions:
        star = "*" if condition in usual else ""
        assert condition.replace("*", "<text>") + star in words
    own = [field.name for field in fields(config)][len(fields(sinklens.ExperimentConfig)) :]
    for setting in [*own, "draws", "batch_size", "memory"]:
        assert f"  {setting}={_value(getattr(config, setting))}" in page
        assert documented(declared.config)[setting].split()[0] in page
    assert ("screen=" in page) == bool(declared.metrics)
    if name == "bos_replacement":  # the numbers that a run counts
        model = sinklens.load("rope")
        prompts = sinklens.prompts(model, n=4, length=32)
        counted = sinklens.run(name, model, prompts, progress=False).provenance
        said = f"Cost: {counted['forwards']} forward passes and "
        assert f"{said}{counted['forwards_with_random_weights']} of two prompts" in page
    assert re.search(r"Cost: \d+ forward passes", page)


@pytest.mark.slow
def test_help_behind_a_name_is_about_that_experiment() -> None:
    for arguments in (["run", "bos_replacement", "--help"], ["run", "--help", "bos_replacement"]):
        page = printed(*arguments)
        assert page.startswith(printed("list", "bos_replacement")) and "--n-prompts" in page
    done = CliRunner().invoke(app, ["run", "bos_replacment", "-h"])
    assert done.exit_code == 2 and "did you mean bos_replacement" in done.stderr


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_what_is_printed_can_be_typed(name: str) -> None:
    """Every default, as it is printed, is that default on the command line."""
    config = registry.get(name).config()
    hints = get_type_hints(type(config))
    for field in fields(config):
        value: Any = getattr(config, field.name)
        assert fit(field.name, _value(value), hints[field.name]) == value, field.name


def test_settings_that_are_given_twice_are_refused() -> None:
    setting = ["--set", "conditions=zero", "--set", "conditions=mean"]
    done = CliRunner().invoke(app, ["run", "bos_replacement", "rope", "--quiet", *setting])
    assert done.exit_code == 2 and "conditions=zero,mean" in done.stderr


def test_a_checkpoint_is_chosen_on_the_command_line(tmp_path: Path) -> None:
    size = ["--n-prompts", 2, "--length", 8, "--quiet", "--out", tmp_path / "out"]
    printed("run", "sink_profile", "rope", "--step", 32, "--model-seed", 0, *size)
    known = sinklens.ExperimentResult.load(tmp_path / "out").provenance
    model = sinklens.load("rope", step=32, seed=0)
    assert known["model"]["weights"] == sinklens.models.weights_hash(model)
    assert (known["model"]["step"], known["model"]["seed"]) == (32, 0)
    done = CliRunner().invoke(app, ["check", "rope", "--step", "33"])
    assert done.exit_code == 2 and "no checkpoint of step 33" in done.stderr


@pytest.mark.slow
def test_a_dry_run_says_what_the_run_takes(tmp_path: Path) -> None:
    size = ["rope", "--n-prompts", 3, "--length", 12]
    out = tmp_path / "out"
    (line,) = printed("run", "sink_profile", *size, "--dry-run", "--out", out).splitlines()
    assert line.startswith("sink_profile on rope, 3 prompts of 12 tokens: 4 forwards")
    assert not out.exists()
    *parts, together = printed("diagnose", *size, "--dry-run").splitlines()
    card = sinklens.diagnose("rope", sinklens.prompts(sinklens.load("rope"), n=3, length=12))
    assert [line.split()[0] for line in parts] == list(card.results)
    known = [result.provenance for result in card.results.values()]
    counted = sum(one["forwards"] + one["forwards_with_random_weights"] for one in known)
    assert together.startswith(f"together: {counted} forwards; about ")
    done = CliRunner().invoke(app, ["run", "sink_profile", "nowhere/at-all", "--dry-run"])
    assert done.exit_code == 1 and len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_something_is_shown_while_loading() -> None:
    """In a terminal: within a second what is loaded, then a bar with a name up to its end."""
    command = [sys.executable, "-m", "sinklens", "run", "sink_profile", "rope"]
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    began = time.perf_counter()
    shown, first = "", None
    with subprocess.Popen([*command, "--n", "4", "--length", "8"], stdout=slave, stderr=slave):
        os.close(slave)
        with contextlib.suppress(OSError):  # as a terminal ends
            while part := os.read(master, 4096):
                first = first or time.perf_counter() - began
                shown += part.decode()
    os.close(master)
    assert first is not None and first < ROOM
    assert shown.index("loading sinklens for rope") < shown.index("loading rope")
    assert shown.index("loading rope") < shown.index("cutting prompts")
    assert shown.index("sink_profile: ") < shown.index("sink_profile on rope, 4 prompts of 8")
