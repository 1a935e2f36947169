"""A sweep on this machine: the bytes of single runs, nothing twice; what fails stops nothing."""

from __future__ import annotations

import errno
import json
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import sinklens
from sinklens.cli import app
from sinklens.core.errors import SinklensError
from sinklens.core.locks import locked
from sinklens.models import random_weights
from sinklens.sweep import folder as sweep_folder
from sinklens.sweep import worker
from sinklens.sweep.driver import SweepReport, read_sweep, run_sweep
from sinklens.sweep.status import sweep_status
from sinklens.sweep.worker import BEFORE, ELSEWHERE, FAILED, FINISHED
from tests import families
from tests.sweep.proof import contents, times


def counts(report: SweepReport) -> dict[str, int]:
    return {state: n for state, n in report.counts.items() if n}


@pytest.fixture(scope="module")
def swept(tiny_models: Path) -> Path:
    """The folder of a sweep that has ended; leave it as it is."""
    report = run_sweep(tiny_models / "spec.toml", tiny_models / "whole", progress=False)
    assert counts(report) == {FINISHED: 8} and report.is_done
    return tiny_models / "whole"


@pytest.fixture
def copy(swept: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(swept, tmp_path / "copy"))


def test_results_are_those_of_single_runs(tiny_models: Path, swept: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    model = sinklens.load(tiny_models / "models" / "llama")
    prompts = sinklens.prompts(model, tiny_models / "text.txt", n=2, length=8)
    settings = {"conditions": "mean", "draws": 1, "null_models": 0, "progress": False}
    sinklens.run("bos_replacement", model, prompts, seed=1, out=tmp_path / "one", **settings)
    torch.set_num_threads(before)
    (same,) = swept.glob("tasks/models-llama-bos_replacement-1-*/")
    for file in ("result.json", "values.safetensors"):
        assert (same / file).read_bytes() == (tmp_path / "one" / file).read_bytes()
    assert sinklens.ExperimentResult.load(same).experiment == "bos_replacement"


@pytest.mark.heavy
def test_a_model_is_loaded_once_for_all_of_its_tasks(
    tiny_models: Path, swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[Any] = []
    monkeypatch.setattr(worker, "load", lambda *a, **k: loads.append(a) or sinklens.load(*a, **k))
    run_sweep(tiny_models / "spec.toml", tmp_path / "again", progress=False)
    assert [Path(source).name for (source,) in loads] == ["gpt2", "llama"]
    assert contents(tmp_path / "again") == contents(swept)
    assert not list((tmp_path / "again" / "unfinished").iterdir())
    assert not worker._LAST  # no model is held


def test_random_models_are_made_once_for_all_tasks_of_a_model(
    tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    make = random_weights.random_weights
    monkeypatch.setattr(
        random_weights,
        "random_weights",
        lambda model, seed: seeds.append(seed) or make(model, seed),
    )
    models, text = tiny_models / "models" / "llama", tiny_models / "text.txt"
    settings = {"draws": 1, "null_models": 2}
    asked = [{"name": "bos_replacement", "conditions": [one]} for one in ("mean", "zero")]
    texts = [{"path": str(text), "n": 2, "length": length} for length in (8, 9)]
    spec = {"models": [str(models)], "texts": texts}
    report = run_sweep(
        {**spec, "experiments": asked, "settings": settings}, tmp_path / "out", progress=False
    )
    assert counts(report) == {FINISHED: 4}
    assert len(seeds) == len(set(seeds)) == 2

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    model = sinklens.load(models)
    prompts = sinklens.prompts(model, text, n=2, length=8)
    for condition in ("mean", "zero"):
        alone = sinklens.run(
            "bos_replacement", model, prompts, conditions=condition, progress=False, **settings
        )
        found = [
            (one / "result.json").read_bytes()
            for one in (tmp_path / "out" / "tasks").iterdir()
            if f'"{condition}"' in (one / "task.json").read_text()
            and json.loads((one / "task.json").read_text())["text"][3] == 8
        ]
        assert found == [alone.files()["result.json"]]
    torch.set_num_threads(before)


def test_what_is_finished_is_not_run_again(copy: Path) -> None:
    expected = contents(copy)
    assert counts(run_sweep(copy, progress=False)) == {BEFORE: 8}
    first, second, *_ = sorted(copy.glob("tasks/*/"))
    shutil.rmtree(first)
    with (second / "values.safetensors").open("r+b") as values:
        values.truncate(100)  # as a copy that was cut off
    assert counts(run_sweep(copy, progress=False)) == {BEFORE: 6, FINISHED: 2}
    assert contents(copy) == expected
    assert {name for name, n in times(copy, "finished").items() if n > 1} == {
        first.name,
        second.name,
    }


@pytest.mark.heavy
def test_what_is_left_of_a_killed_process_is_gone_on_with(copy: Path) -> None:
    names = [task.name for task in read_sweep(copy).tasks]
    (copy / "unfinished" / names[0] / "unfinished").mkdir(parents=True)  # killed after its result
    (copy / "unfinished" / names[1]).mkdir()  # and before it
    shutil.rmtree(copy / "tasks" / names[1])
    assert counts(run_sweep(copy, progress=False)) == {BEFORE: 7, FINISHED: 1}


@pytest.mark.heavy
def test_shards_are_parts_of_the_whole(tiny_models: Path, swept: Path, tmp_path: Path) -> None:
    for number in (0, 1):
        shard = {"shard": (number, 2), "progress": False}
        report = run_sweep(tiny_models / "spec.toml", tmp_path / "out", **shard)
        assert counts(report) == {FINISHED: 4}
    assert contents(tmp_path / "out") == contents(swept)
    assert str(sweep_status(tmp_path / "out")).endswith("8 finished, 0 failed, 0 running, 0 to do")


def test_what_fails_keeps_its_error_and_stops_nothing(
    tiny_models: Path, swept: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_models, base, ignore=lambda *_: ["whole"])
    spec = (base / "spec.toml").read_text()
    one = '["sink_profile"]\n[settings]'
    spec = re.sub(r"\[\"sink_profile\",.*\n\[settings\]", one, spec.replace("[0, 1]", "[0]"))
    (base / "spec.toml").write_text(spec)
    (base / "models" / "bad").mkdir()
    (base / "models" / "bad" / "config.json").write_text("{}")
    broken = shutil.copytree(base / "models" / "llama", base / "models" / "nan")
    from safetensors.torch import load_file, save_file

    weights = load_file(broken / "model.safetensors")
    nan = {name: tensor.fill_(float("nan")) for name, tensor in weights.items()}
    save_file(nan, broken / "model.safetensors", {"format": "pt"})

    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["sweep", str(base / "spec.toml"), "--out", str(out), "--quiet"])
    assert done.exit_code == 1
    assert done.stdout.startswith(f"4 tasks in {out}: 2 finished, 2 failed\n")
    assert "cannot load bad" in done.stdout and "--retry-failed" in done.stdout
    assert contents(out) == {name: contents(swept)[name] for name in contents(out)}
    (error,) = out.glob("tasks/models-nan-sink_profile-0-*.error.json")
    assert "NaN" in error.read_text()

    said = CliRunner().invoke(app, ["sweep", str(out), "--status"]).stdout
    assert "2 finished, 2 failed, 0 running, 0 to do" in said and "NaN" in said
    assert counts(run_sweep(out, progress=False)) == {BEFORE: 2, FAILED: 2}
    shutil.rmtree(broken)
    shutil.copytree(base / "models" / "llama", broken)
    report = run_sweep(out, retry_failed=True, progress=False)
    assert counts(report) == {BEFORE: 2, FINISHED: 1, FAILED: 1}
    assert not list(out.glob("tasks/models-nan*.json"))


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Another process that works in a folder; a thread has locks of its own too."""
    taken, over = threading.Event(), threading.Event()

    def hold() -> None:
        with locked(folder):
            taken.set()
            over.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait(60)
    yield
    over.set()
    thread.join()


def test_two_sweeps_never_do_the_same_task(copy: Path) -> None:
    task = read_sweep(copy).tasks[0].name
    shutil.rmtree(copy / "tasks" / task)
    (copy / "unfinished" / task).mkdir()
    with held(copy / "unfinished" / task):
        assert sweep_status(copy).states[task] == "running"
        report = run_sweep(copy, progress=False)
        assert counts(report) == {BEFORE: 7, ELSEWHERE: 1} and not report.is_done
        assert "1 left to another process that works on them" in str(report)
    assert sweep_status(copy).states[task] == "to do"
    assert counts(run_sweep(copy, progress=False)) == {BEFORE: 7, FINISHED: 1}


@pytest.mark.heavy
def test_a_full_disk_is_said(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    tasks = read_sweep(copy).tasks
    for task in tasks[:2]:
        shutil.rmtree(copy / "tasks" / task.name)
    with monkeypatch.context() as patched:
        patched.setattr("sinklens.core.storage.os.replace", full)
        with pytest.raises(SinklensError, match="No space left on device"):
            run_sweep(copy, progress=False)
        patched.setattr(sweep_folder.SweepFolder, "begin", lambda *_: None)
        report = run_sweep(copy, progress=False)
    assert counts(report) == {BEFORE: 6, FAILED: 2}
    for error in report.errors.values():
        assert "No space left" in error and "; this error could not be kept in" in error
    assert counts(run_sweep(copy, progress=False)) == {BEFORE: 6, FINISHED: 2}


def test_other_folders_are_left_alone(tiny_models: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(SinklensError, match="holds something else than a sweep"):
        run_sweep(tiny_models / "spec.toml", tmp_path)
    with pytest.raises(SinklensError, match="needs a folder"):
        run_sweep(tiny_models / "spec.toml")
    with pytest.raises(SinklensError, match="unknown engine 'rai'; did you mean ray"):
        run_sweep(tiny_models / "spec.toml", tmp_path / "out", engine="rai")
    assert not (tmp_path / "out").exists()


def test_a_dry_run_counts_and_writes_nothing(tiny_models: Path, tmp_path: Path) -> None:
    spec = tiny_models / "spec.toml"
    done = CliRunner().invoke(app, ["sweep", str(spec), "--dry-run", "--out", str(tmp_path / "a")])
    assert done.exit_code == 0, done.output
    assert "2 x bos_replacement on llama, 2 prompts of 8 tokens: 3 forwards" in done.stdout
    assert "together: 8 tasks on 2 models; " in done.stdout
    assert not (tmp_path / "a").exists()


def test_without_weights_a_dry_run_says_what_a_pass_takes(
    tiny_models: Path, tmp_path: Path
) -> None:
    left_out = shutil.ignore_patterns("*.safetensors")
    shutil.copytree(tiny_models / "models" / "llama", tmp_path / "llama", ignore=left_out)
    spec = tmp_path / "spec.toml"
    spec.write_text(
        'models = ["./llama"]\ntexts = [{n = 3, length = 8}]\nexperiments = ["sink_profile"]'
    )
    done = CliRunner().invoke(app, ["sweep", str(spec), "--dry-run"])
    parameters = families.llama().num_parameters()
    assert done.exit_code == 0 and "./llama: 1 tasks cannot be run: cannot load" in done.stdout
    assert f"it has {parameters:,} parameters" in done.stdout
    assert f"takes {2.0 * parameters * 3 * 8:.2g} operations" in done.stdout
