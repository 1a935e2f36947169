"""Interrupted work in Python: resumed with the same numbers, reported in few lines."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import sinklens
from sinklens.cli import app
from sinklens.engine.sweep import Sweep
from sinklens.models.prompts import corpus
from sinklens.runner.keeping import Interrupted

Run = Callable[..., sinklens.ExperimentResult]


@pytest.fixture
def ablate(boot_family: Callable[[str], Any]) -> Run:
    model = boot_family("llama")
    prompts = sinklens.prompts(model, corpus()[:2000], n=4, length=12, bos=True)
    settings = {"draws": 2, "null_models": 0, "batch_size": 2, "progress": False}
    return partial(sinklens.run, "bos_replacement", model, prompts, **settings)


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> Groups:
    return Groups(monkeypatch)


class Groups:
    """Counts groups of interventions, and stops before one of them as Ctrl-C does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.stop_at = 0, -1
        original = Sweep.run_group

        def counted(sweep: Any, watches: Any) -> Any:
            if self.count == self.stop_at:
                raise KeyboardInterrupt
            self.count += 1
            return original(sweep, watches)

        monkeypatch.setattr(Sweep, "run_group", counted)

    def restart(self, stop_at: int = -1) -> None:
        self.count, self.stop_at = 0, stop_at


@pytest.mark.slow
@pytest.mark.parametrize("kind", [str, Path])
def test_a_run_with_a_folder_goes_on(
    ablate: Run, groups: Groups, tmp_path: Path, kind: Callable[[Path], str | Path]
) -> None:
    out, expected = tmp_path / "out", ablate()
    every = groups.count
    groups.restart(stop_at=every // 2)
    with pytest.raises(KeyboardInterrupt, match="the same call goes on from"):
        ablate(out=kind(out))
    assert [path.name for path in out.iterdir()] == ["unfinished"]
    groups.restart()
    result = ablate(out=kind(out))
    assert groups.count == every - every // 2 and result == expected
    assert sinklens.ExperimentResult.load(out) == expected
    assert not (out / "unfinished").exists()
    with pytest.raises(sinklens.SinklensError, match="not empty"):
        ablate(out=out)
    assert ablate(out=out, overwrite=True) == expected


@pytest.mark.slow
def test_another_run_does_not_take_over(ablate: Run, groups: Groups, tmp_path: Path) -> None:
    groups.restart(stop_at=3)
    with pytest.raises(KeyboardInterrupt):
        ablate(out=tmp_path)
    groups.restart()
    with pytest.raises(sinklens.SinklensError, match="unfinished run of another"):
        ablate(out=tmp_path, draws=1)
    assert ablate(out=tmp_path, draws=1, overwrite=True) == ablate(draws=1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [str, Path])
def test_a_block_goes_on(
    ablate: Run, groups: Groups, tmp_path: Path, kind: Callable[[Path], str | Path]
) -> None:
    """The first of its runs is whole, the second half done."""
    expected = [ablate(), ablate(seed=1)]
    every = groups.count
    groups.restart(stop_at=every * 3 // 4)
    with pytest.raises(KeyboardInterrupt, match=str(tmp_path)), sinklens.keep(kind(tmp_path)):
        _ = [ablate(), ablate(seed=1)]
    groups.restart()
    with sinklens.keep(kind(tmp_path)):
        results = [ablate(), ablate(seed=1)]
        assert groups.count == every - every * 3 // 4
        results[0].save(tmp_path)
    assert results == expected and sinklens.ExperimentResult.load(tmp_path) == expected[0]
    assert not (tmp_path / "unfinished").exists()


def test_without_a_folder_it_says_how(ablate: Run, groups: Groups) -> None:
    groups.restart(stop_at=1)
    with pytest.raises(Interrupted, match=r"with sinklens\.keep\('folder'\)") as stopped:
        ablate()
    assert len(stopped.value._render_traceback_()) == 1


SCRIPT = """
import signal, sys, time, sinklens

# A process that was started in the background hands on that it ignores Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
model, call = sinklens.load("rope"), sinklens.{name}

def wait(*_):
    print("in a forward pass", flush=True)
    time.sleep(60)

model.original_model.register_forward_pre_hook(wait)
call({arguments}, progress=False)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals differ")
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        pytest.param("run", '"bos_replacement", model', marks=pytest.mark.heavy),
        ("run", '"bos_replacement", model, out=sys.argv[1], overwrite=True'),
        pytest.param("diagnose", "model", marks=pytest.mark.heavy),
    ],
)
def test_ctrl_c_gives_at_most_ten_lines(name: str, arguments: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(name=name, arguments=arguments))
    command = [sys.executable, str(script), str(tmp_path / "out")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None and process.stdout.readline() == "in a forward pass\n"
    process.send_signal(signal.SIGINT)
    try:
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode != 0
    assert len(errors.strip().splitlines()) <= 10, errors
    assert "Interrupted: stopped; " in errors


@pytest.mark.parametrize("setting", ["out=elsewhere", "overwrite=True"])
def test_the_command_has_options_for_it(setting: str) -> None:
    done = CliRunner().invoke(app, ["run", "sink_profile", "rope", "--quiet", "--set", setting])
    assert done.exit_code == 2
    assert f"use --{setting.partition('=')[0]} instead of --set" in done.stderr
