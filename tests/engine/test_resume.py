"""A run that was stopped goes on where it was, and ends with the bytes of one that was not."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial, partialmethod
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

import sinklens
from sinklens.core.storage import require_free, write_files
from sinklens.engine import kept
from sinklens.engine import resume as journal
from sinklens.engine.resume import current_call, section
from sinklens.engine.sweep import Sweep
from sinklens.experiments.position._reader import Reader
from sinklens.runner import registry

pytestmark = pytest.mark.slow

COMMAND = [
    *("position0_patching", "rope", "--n-prompts", "8", "--length", "48", "--quiet"),
    *(
        "--set",
        "conditions=other_token,zero",
        "--set",
        "batch_size=2",
        "--set",
        "draws=2",
        "--set",
        "null_models=1",
    ),
]
FILES = ("result.json", "values.safetensors")


def start(out: Path, *more: str) -> subprocess.Popen[bytes]:
    """Run the command; what it says goes into `out`.err."""
    # A process that was started in the background hands on that it ignores Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with out.with_suffix(".err").open("wb") as said:
            return subprocess.Popen(
                [sys.executable, "-m", "sinklens", "run", *COMMAND, "--out", str(out), *more],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=subprocess.DEVNULL,
                stderr=said,
            )
    finally:
        signal.signal(signal.SIGINT, before)


def groups(out: Path) -> int:
    return len(list(out.glob("unfinished/**/*.safetensors")))


@pytest.mark.heavy
def test_after_kill_9_the_same_command_ends_with_the_same_bytes(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    straight = start(whole)
    for least, sent, status in ((3, signal.SIGKILL, -9), (60, signal.SIGINT, 130)):
        process = start(broken)
        while groups(broken) < least and process.poll() is None:
            time.sleep(0.01)
        assert process.poll() is None, broken.with_suffix(".err").read_text()
        process.send_signal(sent)
        assert process.wait() == status
        assert not (broken / "result.json").exists()
    # Ctrl-C, the second, stops within a batch and says nothing of Python.
    assert "Traceback" not in broken.with_suffix(".err").read_text()
    before = groups(broken)
    assert before >= 60
    other = start(broken, "--seed", "1")  # another command is refused and spoils nothing
    assert other.wait() == 1
    assert "unfinished run of another command" in broken.with_suffix(".err").read_text()
    assert groups(broken) == before
    last = start(broken)
    assert last.wait() == 0 and straight.wait() == 0
    for name in FILES:
        assert (broken / name).read_bytes() == (whole / name).read_bytes()
    assert sorted(path.name for path in broken.iterdir()) == sorted(
        path.name for path in whole.iterdir()
    )


@pytest.fixture
def ablate() -> Callable[[], sinklens.ExperimentResult]:
    model = sinklens.load("rope")
    return partial(
        sinklens.run,
        "sink_head_ablation",
        model,
        sinklens.prompts(model, n=4, length=24),
        each=True,
        draws=2,
        null_models=0,
        batch_size=2,
        conditions=("zero", "mean"),
        metrics=("loss", "sink_mass"),
        progress=False,
    )


def test_what_is_done_is_not_done_again(
    ablate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[int] = []
    original = Sweep.run_group

    def counted(self: Any, watches: Any, stop_after: int | None = None) -> Any:
        if stop_after is not None and len(done) == stop_after:
            raise KeyboardInterrupt
        done.append(len(watches))
        return original(self, watches)

    monkeypatch.setattr(Sweep, "run_group", counted)
    plain = ablate()
    everything = len(done)
    done.clear()
    monkeypatch.setattr(
        Sweep, "run_group", lambda self, watches: counted(self, watches, stop_after=10)
    )
    with pytest.raises(KeyboardInterrupt), kept(tmp_path, ["ablate"]):
        ablate()
    assert groups(tmp_path) == 10
    done.clear()
    monkeypatch.setattr(Sweep, "run_group", counted)
    with kept(tmp_path, ["ablate"]):
        resumed = ablate()
    assert len(done) == everything - 10 > 10
    assert resumed.effects == plain.effects and resumed.provenance == plain.provenance
    assert not list(tmp_path.iterdir())


def test_other_settings_take_nothing_over(ablate: Any, tmp_path: Path) -> None:
    """Even under the same command: the key holds settings, weights and prompts."""
    interrupted = partial(ablate, metrics=("loss", stop))
    with pytest.raises(KeyboardInterrupt), kept(tmp_path, ["same"]):
        interrupted()
    assert groups(tmp_path) > 0
    with kept(tmp_path, ["same"]):
        resumed = ablate(draws=1)
    assert resumed.effects == ablate(draws=1).effects


def test_own_metrics_take_nothing_over(
    ablate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two metrics may have one name and one code, and differ in what they hold."""

    def made(by: float) -> Any:
        def metric(logits: Any, tokens: Any, **_: Any) -> Any:
            return by * logits.mean((1, 2))

        return metric

    with_metric = {by: partial(ablate, metrics=(made(by),)) for by in (1.0, 2.0)}
    stopped(with_metric[1.0], tmp_path, monkeypatch, 4)
    with kept(tmp_path, ["ablate"]):
        resumed = with_metric[2.0]()
    assert resumed.effects == with_metric[2.0]().effects != with_metric[1.0]().effects


def test_only_what_has_a_version_is_gone_on_with() -> None:
    """An experiment that a notebook defines can change under the same name."""
    assert registry._version_of(sinklens.run) == f"sinklens {version('sinklens')}"
    assert registry._version_of(torch.nn.functional.relu) == f"torch {version('torch')}"
    there: dict[str, Any] = {"__name__": "__main__"}
    exec("def function(): return 1", there)
    assert registry._version_of(there["function"]) is None


@pytest.mark.parametrize("changed", ["weights", "hooks", "prompts"])
def test_another_model_or_text_takes_nothing_over(
    changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the same command, in the same process."""
    model = sinklens.load("rope")

    def run_it(prompts: Any) -> Any:
        return sinklens.run(
            "sink_head_ablation",
            model,
            prompts,
            conditions=("zero",),
            heads=("L0H1", "L2H3"),
            each=True,
            draws=1,
            metrics=("loss",),
            progress=False,
        )

    prompts = sinklens.prompts(model, n=2, length=16)
    stopped(partial(run_it, prompts), tmp_path, monkeypatch, 2)
    if changed == "weights":
        with torch.no_grad():
            norm = model.original_model.model.norm
            norm.weight = torch.nn.Parameter(norm.weight * 1.5)
    if changed == "prompts":
        prompts = replace(prompts, tokens=prompts.tokens.flip(0))
    hooks = [("blocks.5.hook_resid_post", lambda x, hook: 1.1 * x)] if changed == "hooks" else []
    with model.hooks(fwd_hooks=hooks):
        with kept(tmp_path, ["ablate"]):
            resumed = run_it(prompts)
        assert resumed.effects == run_it(prompts).effects


def test_edits_that_are_read_in_attention_are_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`absolute_position` has no metrics; its edits are kept all the same."""
    model = sinklens.load("rope")
    run_it = partial(
        sinklens.run,
        "absolute_position",
        model,
        sinklens.prompts(model, n=4, length=16),
        conditions=("mean", "zero", "other_token:residual"),
        draws=1,
        first_tokens=0,
        progress=False,
    )
    whole = run_it()
    original, read = Reader._kept, []

    def count(self: Any, intervention: Any, most: int = 1000) -> Any:
        if len(read) == most:
            raise KeyboardInterrupt
        read.append(intervention.name)
        return original(self, intervention)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Reader, "_kept", partialmethod(count, most=3))
        with kept(tmp_path, ["position"]):
            run_it()
    assert groups(tmp_path) == 4  # these, and the norm at position 0 under zero
    monkeypatch.setattr(Reader, "_kept", count)
    with kept(tmp_path, ["position"]):
        resumed = run_it()
    everything = len(read)
    read.clear()
    run_it()
    assert everything == len(read) > 3  # three before the stop, the others after it
    assert resumed.effects == whole.effects and resumed.provenance == whole.provenance


calls: list[int] = []


def stop(logits: Any, tokens: Any, **_: Any) -> Any:
    calls.append(1)
    if len(calls) > 6:
        raise KeyboardInterrupt
    return logits.mean((1, 2))


def stopped(ablate: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Leave an unfinished run with `after` groups."""
    done: list[int] = []
    original = Sweep.run_group

    def count(self: Any, watches: Any) -> Any:
        if len(done) == after:
            raise KeyboardInterrupt
        done.append(1)
        return original(self, watches)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Sweep, "run_group", count)
        with kept(folder, ["ablate"]):
            ablate()
    assert groups(folder) == after


@pytest.mark.parametrize("left", [0, 7, 100])
def test_damaged_work_is_done_again(
    left: int, ablate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a power cut leaves a file that was written last: empty, or cut off."""
    stopped(ablate, tmp_path, monkeypatch, 6)
    for file in tmp_path.glob("unfinished/**/*.safetensors"):
        file.write_bytes(file.read_bytes()[:left])
    with kept(tmp_path, ["ablate"]):
        resumed = ablate()
    plain = ablate()
    assert resumed.effects == plain.effects and resumed.provenance == plain.provenance


def test_a_full_disk_is_said_and_what_is_done_stays(
    ablate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(ablate, tmp_path, monkeypatch, 4)

    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, kept_open(tmp_path):
        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(sinklens.SinklensError, match="No space left on device"):
            ablate()
    assert groups(tmp_path) == 4
    with kept(tmp_path, ["ablate"]):
        assert ablate().effects == ablate().effects


@contextmanager
def kept_open(folder: Path) -> Iterator[None]:
    """Leave `kept` by an error, so that nothing is removed."""
    with pytest.raises(KeyboardInterrupt), kept(folder, ["ablate"]):
        yield
        raise KeyboardInterrupt


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_is_only_named_so_is_left_alone(overwrite: bool, tmp_path: Path) -> None:
    mine = tmp_path / "unfinished" / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("three years")
    with (
        pytest.raises(sinklens.SinklensError, match="does not belong to an unfinished run"),
        kept(tmp_path, ["ablate"], overwrite=overwrite),
    ):
        pass
    assert mine.read_text() == "three years"


def test_a_run_stopped_before_it_said_which_it_is_can_be_taken_up(tmp_path: Path) -> None:
    own = tmp_path / "unfinished"
    own.mkdir()
    (own / "command.json.partial").write_text("[")
    with kept(tmp_path, ["ablate"]):
        pass
    assert not own.exists()


@pytest.mark.parametrize("stop_at", [1, 2, 3])
def test_a_stop_while_it_tidies_up_is_an_end(
    stop_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command finds its result; another one finds the folder in use."""
    steps: list[str] = []

    def stop_before(step: str, function: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            steps.append(step)
            if len(steps) == stop_at:
                raise KeyboardInterrupt
            return function(*arguments, **named)

        return call

    out = tmp_path / "out"
    with (
        monkeypatch.context() as patched,
        pytest.raises(KeyboardInterrupt),
        kept(out, ["ablate"]) as finished,
    ):
        assert not finished
        write_files(out, {"result.json": b"{}"})
        patched.setattr(journal.os, "replace", stop_before("end", os.replace))
        patched.setattr(journal.shutil, "rmtree", stop_before("remove", journal.shutil.rmtree))
        patched.setattr(Path, "unlink", stop_before("unlink", Path.unlink))
    assert steps == [*["end", "remove", "unlink"][:stop_at], "unlink"]  # the lock, at last
    require_free(out, overwrite=False)
    if stop_at > 1:
        copy = shutil.copytree(out, tmp_path / "copy")
        with pytest.raises(sinklens.SinklensError, match="not empty"), kept(copy, ["another"]):
            pass
    with kept(out, ["ablate"]) as finished:
        assert finished == (stop_at > 1)  # otherwise it goes on from what it kept
    assert [path.name for path in out.iterdir()] == ["result.json"]


def test_a_run_that_ended_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = sinklens.load("rope")
    prompts = sinklens.prompts(model, n=2, length=16)
    run_it = partial(
        sinklens.run, "sink_profile", model, prompts, null_models=0, draws=1, progress=False
    )
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(journal, "_tidied", stop_at_the_end)
        run_it(out=tmp_path)
    first = (tmp_path / "run.json").read_bytes()
    assert run_it(out=tmp_path) == run_it()
    assert (tmp_path / "run.json").read_bytes() == first
    assert "unfinished" not in {path.name for path in tmp_path.iterdir()}


def stop_at_the_end(folder: Path, text: str, overwrite: bool | None = None) -> bool:
    if overwrite is None:
        raise KeyboardInterrupt
    return False


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    """As two commands that were started together; threads have locks of their own too."""
    with ThreadPoolExecutor(1) as other, kept(tmp_path, ["ablate"]):

        def second() -> None:
            with kept(tmp_path, ["ablate"], overwrite=True):
                pass

        with pytest.raises(sinklens.SinklensError, match="in use by process"):
            other.submit(second).result()
    assert not list(tmp_path.iterdir())


def test_a_flipped_bit_in_finished_work_is_measured_again(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), kept(tmp_path, ["a"]), section(lambda: {"a": 1}):
        current_call().store(0, "b", {"values": torch.ones(3)})
        raise KeyboardInterrupt
    (file,) = tmp_path.glob("unfinished/**/*.safetensors")
    raw = file.read_bytes()
    for content, found in ((raw, True), (raw[:-1] + bytes([raw[-1] ^ 1]), False)):
        file.write_bytes(content)
        with pytest.raises(KeyboardInterrupt), kept(tmp_path, ["a"]), section(lambda: {"a": 1}):
            assert (current_call().load(0, "b") is not None) == found
            raise KeyboardInterrupt


def test_an_error_leaves_no_folder(ablate: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(sinklens.SinklensError), kept(out, ["wrong"]):
        ablate(heads=("L99H0",))
    assert not out.exists()


def test_nothing_is_written_without_a_folder(
    ablate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ablate(conditions=("zero",))
    assert not list(tmp_path.iterdir()) and journal._open.get() is None
