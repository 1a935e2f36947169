"""kill -9 at random moments of a run with `out=`, and of `save`; then the same again.

    python -m tests.fuzz.kills 50

The process that is killed is forked from one that holds the model. Before each step in the file
system it waits a little, so that these moments are hit as often as those of the forward passes.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import sinklens
from sinklens.models.prompts import corpus
from tests import families

FILES = ["result.json", "run.json", "values.safetensors"]
PAUSE = 0.01
ENDED, REFUSED = 0, 3


def forked(work: Callable[[], Any]) -> int:
    """Do something in another process; its number."""
    process = os.fork()
    if process:
        return process
    for place, name in ((os, "replace"), (shutil, "rmtree"), (Path, "unlink"), (Path, "mkdir")):
        setattr(place, name, _slowly(getattr(place, name)))
    try:
        work()
        os._exit(ENDED)
    except sinklens.SinklensError as error:
        os._exit(REFUSED if "not empty" in str(error) else 1)
    finally:
        os._exit(1)


def _slowly(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        time.sleep(PAUSE)
        return function(*arguments, **named)

    return call


def status_of(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def bytes_of(folder: Path) -> list[bytes]:
    """What has to be the same: all but the times."""
    return [(folder / name).read_bytes() for name in FILES if name != "run.json"]


def kills(n: int, seed: int = 0) -> Counter[str]:
    """Kill a run, or a `save`, `n` times.

    Returns:
        How often the killed process was how far.

    Raises:
        AssertionError: The same again did not end with the same bytes, or left something.
    """
    model = families.boot("llama")
    prompts = sinklens.prompts(model, corpus()[:2000], n=4, length=12, bos=True)
    settings = {"draws": 2, "null_models": 0, "batch_size": 2, "progress": False}
    run: Callable[..., Any] = lambda **more: sinklens.run(  # noqa: E731
        "bos_replacement", model, prompts, **settings, **more
    )
    result, counts, moments = run(), Counter[str](), random.Random(seed)
    with tempfile.TemporaryDirectory() as place:
        whole = result.save(Path(place) / "whole")
        works = {
            "run": lambda out: run(out=out),
            "save": lambda out: result.save(out),
            "save over another": lambda out: result.save(out, overwrite=True),
        }
        lasts = {name: _seconds(work, Path(place) / name) for name, work in works.items()}
        while sum(counts.values()) < n:
            # Most are runs, which have most moments.
            name = moments.choice(["run"] * 4 + list(works))
            folder = Path(place) / f"{sum(counts.values())}"
            if name == "save over another":
                shutil.copytree(whole, folder / "out")
            folder.mkdir(exist_ok=True)
            stage = _kill(works[name], folder / "out", moments.uniform(0, lasts[name]))
            if stage:
                counts[f"{name}, {stage}"] += 1
                _require_whole(works[name], folder, whole)
            shutil.rmtree(folder)
    return counts


def _seconds(work: Callable[[Path], Any], out: Path) -> float:
    began = time.perf_counter()
    assert status_of(forked(lambda: work(out))) == ENDED
    shutil.rmtree(out)
    return time.perf_counter() - began


def _kill(work: Callable[[Path], Any], out: Path, after: float) -> str:
    """Kill it after some seconds; how far it was, empty if it had ended."""
    process = forked(lambda: work(out))
    time.sleep(after)
    os.kill(process, signal.SIGKILL)
    if status_of(process) != -signal.SIGKILL:
        return ""
    if (out / ".sinklens-finished").exists():
        return "tidying up"
    if (out / "result.json").exists() or any(out.parent.glob(".sinklens-*")):
        return "saving"
    return "measuring" if (out / "unfinished").exists() else "before"


def _require_whole(work: Callable[[Path], Any], folder: Path, whole: Path) -> None:
    """The same again ends with the same bytes, and nothing else is left."""
    out = folder / "out"
    if (out / "result.json").exists() and (out / "values.safetensors").exists():
        sinklens.ExperimentResult.load(out)
    status = status_of(forked(lambda: work(out)))
    # It was killed behind its last step, and is refused as any that ended.
    assert status in (ENDED, REFUSED), status
    assert bytes_of(out) == bytes_of(whole)
    held = sorted(path.name for path in out.iterdir() if status == ENDED or path.name in FILES)
    assert held == FILES, held
    if status == ENDED:
        assert [path.name for path in folder.iterdir()] == ["out"]


if __name__ == "__main__":
    asked = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    for stage, count in sorted(kills(asked).items()):
        print(f"{stage}: {count} of {count} ended with the same bytes")
