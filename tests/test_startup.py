"""What starts fast: nothing heavy is imported before it is needed."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
import time
from importlib import import_module

import pytest

pytestmark = pytest.mark.slow

HELP_SECONDS = 0.5
ROOM = 6  # a busy machine


def loaded_by(code: str) -> set[str]:
    """The modules that a fresh Python has after running `code`."""
    script = (
        "import contextlib, io, sys\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        f"    {code}\n"
        "print('\\n'.join(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def command(*arguments: str) -> str:
    """Code that runs the command line as `sinklens ...` does."""
    return (
        f"sys.argv = ['sinklens', *{list(arguments)!r}]\n"
        "    from sinklens.cli import main\n"
        "    with contextlib.suppress(SystemExit): main()"
    )


def test_import() -> None:
    modules = loaded_by("import sinklens")
    assert "sinklens" in modules
    assert not modules & {"torch", "transformer_lens", "transformers", "numpy", "pandas", "plotly"}


def test_a_name_is_imported_on_first_use() -> None:
    assert "torch" in loaded_by("import sinklens; sinklens.Prompts")
    assert "transformer_lens" not in loaded_by("import sinklens; sinklens.Prompts")


@pytest.mark.parametrize("package", ["sinklens.models", "sinklens.models.shipped", "sinklens.zoo"])
def test_a_package_costs_nothing(package: str) -> None:
    modules = loaded_by(f"import {package}")
    assert package in modules
    assert not modules & {"torch", "transformer_lens", "transformers", "numpy"}


def test_the_zoo_is_there_without_an_import_of_its_own() -> None:
    modules = loaded_by("import sinklens; sinklens.zoo.card('rope')")
    assert "sinklens.zoo" in modules and "torch" not in modules


@pytest.mark.parametrize("name", ["sinklens", "sinklens.models", "sinklens.zoo"])
def test_no_module_takes_the_place_of_a_name(name: str) -> None:
    package = import_module(name)
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    names = {name for name, home in package._HOMES.items() if name != home}
    assert len(names) > 3 and not modules & names


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["diagnose", "--help"]])
def test_help(arguments: list[str]) -> None:
    modules = loaded_by(command(*arguments))
    assert "sinklens.cli" in modules
    assert not modules & {"torch", "transformer_lens", "transformers"}


@pytest.mark.parametrize("name", ["list", "models"])
def test_listing(name: str) -> None:
    modules = loaded_by(command(name))
    assert "sinklens.cli" in modules
    assert not modules & {"transformer_lens", "transformers"}
    assert "torch" not in modules or name == "list"


def test_list_names_the_experiments() -> None:
    done = run_cli("list")
    for name in ("bos_replacement", "position0_patching", "sink_head_ablation", "sink_profile"):
        assert name in done.stdout


def test_experiments_do_not_import_transformer_lens() -> None:
    code = "from sinklens.runner.registry import all_experiments; all_experiments()"
    modules = loaded_by(code)
    assert "sinklens.experiments.sinks.position0_patching" in modules
    assert "transformer_lens" not in modules


def test_help_answers_at_once() -> None:
    """The one bar on time: 0.5 s, the best of three, with room for a busy machine."""
    best = min(_seconds() for _ in range(3))
    assert best < ROOM * HELP_SECONDS


def _seconds() -> float:
    began = time.perf_counter()
    assert "diagnose" in run_cli("--help").stdout
    return time.perf_counter() - began


def run_cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "from sinklens.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done
