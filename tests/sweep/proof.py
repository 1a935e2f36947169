"""What a sweep promises, at full size: the same bytes on every engine, nothing twice, sharing.

    python -m tests.sweep.proof engines FOLDER     # 15 models x 3 seeds x 4 experiments
    python -m tests.sweep.proof sharing FOLDER     # beside separate `sinklens run` commands
    python -m tests.sweep.proof memory FOLDER      # 1,000 tasks
    python -m tests.sweep.proof table FOLDER       # 100,000 rows

Needs the extra `sweep`. The parts that kill and start again are in `tests/sweep/test_engines.py`
too, on two models.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

EXPERIMENTS = """
experiments = [
  "sink_profile",
  {name = "bos_replacement", conditions = ["mean", "zero"]},
  {name = "sink_head_ablation", conditions = ["mean", "drop_edge"]},
  {name = "position0_patching", layers = [2], conditions = ["other_token:residual"]},
]
[settings]
draws = 1
null_models = 0
"""
ENGINES = '[slurm]\ncluster = "local"\ntimeout_min = 60\n'
FILES = ("result.json", "values.safetensors", "task.json")


def spec(models: list[str], seeds: list[int], n: int = 2, length: int = 12) -> str:
    """A specification of four experiments."""
    head = f"models = {json.dumps(models)}\nseeds = {seeds}\n"
    return f"{head}texts = [{{n = {n}, length = {length}}}]\n{EXPERIMENTS}{ENGINES}"


def sweep(file: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    """`sinklens sweep`, begun, in a process group of its own."""
    command = [sys.executable, "-m", "sinklens", "sweep", str(file), "--out", str(out), "--quiet"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*command, *options], start_new_session=True, **streams)


def done(process: subprocess.Popen[str]) -> str:
    """What a sweep printed at its end."""
    said, _ = process.communicate()
    return said


def contents(out: Path) -> dict[str, list[bytes]]:
    """What has to be the same: all of each result but its times."""
    folders = [path.parent for path in out.glob("tasks/*/result.json")]
    return {one.name: [(one / file).read_bytes() for file in FILES] for one in folders}


def events(out: Path) -> list[dict[str, str]]:
    """When tasks began and ended, and in which process."""
    return [
        {**json.loads(line), "process": file.stem.rpartition("-")[2]}
        for file in out.glob("log/*.jsonl")
        for line in file.read_text("utf-8").splitlines()
    ]


def times(out: Path, event: str) -> Counter[str]:
    """How often each task began, or finished."""
    return Counter(one["task"] for one in events(out) if one["event"] == event)


def kill_a_worker(out: Path, after: int) -> str:
    """Kill the process that works on a task, once so many tasks are finished; its number."""
    while True:
        told = events(out)
        ended = {one["task"] for one in told if one["event"] != "began"}
        running = [one for one in told if one["task"] not in ended]
        if len(ended) >= after and running:
            os.kill(int(running[-1]["process"]), signal.SIGKILL)
            return running[-1]["process"]
        time.sleep(0.02)


def kill_the_driver(process: subprocess.Popen[str], out: Path, after: int) -> None:
    """Kill a sweep and all that it started, once so many tasks are finished."""
    with process:  # which closes its streams, since nobody reads them
        while sum(times(out, "finished").values()) < after:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)


def require_same(out: Path, expected: dict[str, list[bytes]], begun_twice: int) -> None:
    """Refuse results that differ, are missing, or were measured twice.

    Args:
        out: The folder of the sweep.
        expected: The results of another one.
        begun_twice: How many tasks may have begun again, having been stopped.
    """
    assert contents(out) == expected
    assert not [task for task, n in times(out, "finished").items() if n > 1]
    assert sum(n - 1 for n in times(out, "began").values()) <= begun_twice


def engines(place: Path) -> Iterator[str]:
    """The same sweep on every engine, killed on the way."""
    from sinklens.models import shipped

    file = place / "full.toml"
    file.write_text(spec(shipped.names(), [0, 1, 2]))
    seconds: dict[str, float] = {}

    def timed(name: str, run: Callable[[], str]) -> str:
        began = time.perf_counter()
        said = run()
        seconds[name] = time.perf_counter() - began
        return f"{name}, {seconds[name]:.0f} s: {said.splitlines()[0]}"

    yield timed("local", lambda: done(sweep(file, place / "local")))
    expected = contents(place / "local")

    ray = sweep(file, place / "ray", "--engine", "ray", "--workers", "2")
    killed = kill_a_worker(place / "ray", 60)
    yield timed(f"Ray, worker {killed} killed", lambda: done(ray))
    require_same(place / "ray", expected, 1)

    again = sweep(file, place / "driver", "--engine", "ray", "--workers", "2")
    kill_the_driver(again, place / "driver", 60)
    options = ("--engine", "ray", "--workers", "2")
    yield timed("driver killed", lambda: done(sweep(file, place / "driver", *options)))
    require_same(place / "driver", expected, 2)

    for number in (0, 1):
        shard = ("--shard", f"{number}/2")
        run = sweep(file, place / f"shard{number}", *shard)
        yield timed(f"shard {number}/2", lambda run=run: done(run))  # type: ignore[misc]
    both = contents(place / "shard0") | contents(place / "shard1")
    assert both == expected

    slurm = sweep(file, place / "slurm", "--engine", "slurm", "--workers", "2")
    yield timed("submitit", lambda: done(slurm))
    require_same(place / "slurm", expected, 0)


def sharing(place: Path) -> Iterator[str]:
    """The time of a sweep over that of separate commands."""
    for model in ("rope", "postnorm"):
        file = place / f"{model}.toml"
        file.write_text(spec([model], [0]))
        began = time.perf_counter()
        done(sweep(file, place / f"{model}-sweep"))
        together = time.perf_counter() - began
        began = time.perf_counter()
        for name, settings in COMMANDS.items():
            size = ["--n-prompts", "2", "--length", "12", "--quiet"]
            out = ["--out", str(place / f"{model}-{name}")]
            pairs = [part for pair in settings for part in ("--set", pair)]
            command = [sys.executable, "-m", "sinklens", "run", name, model, *size, *pairs, *out]
            subprocess.run(command, check=True, capture_output=True)
        apart = time.perf_counter() - began
        yield f"{model}: {together:.1f} s together, {apart:.1f} s apart: {together / apart:.2f}"


def memory(place: Path) -> Iterator[str]:
    """What the driver and its workers hold over 1,000 tasks, and over half as many on Ray."""
    from tests import families

    for name in ("llama", "gpt2"):
        getattr(families, name)().save_pretrained(place / name)
        families.tiny_tokenizer().save_pretrained(place / name)
    (place / "text.txt").write_text("a text about nothing in particular, cut into windows. " * 20)
    for tasks, options in ((1000, ()), (1000, ("--workers", "2")), (500, ("--engine", "ray"))):
        file = place / f"{len(options)}{tasks}.toml"
        file.write_text(SMALL.format(seeds=list(range(tasks // 4))))
        said = " ".join(options) or "one process"
        for line in _held(sweep(file, file.with_suffix(""), *options), file.with_suffix("")):
            yield f"{said}: {line}"


SMALL = """
models = ["llama", "gpt2"]
seeds = {seeds}
texts = [{{path = "text.txt", n = 2, length = 8}}]
experiments = ["qk_eigenspectrum", {{name = "bos_replacement", conditions = ["mean"]}}]
[settings]
draws = 1
null_models = 0
"""
EVERY = 100


def _held(running: subprocess.Popen[str], out: Path) -> Iterator[str]:
    """Memory by number of finished tasks: of the process that was started, and of all that work."""
    shown = 0
    while running.poll() is None:
        time.sleep(1)
        finished = sum(times(out, "finished").values())
        if finished >= shown + EVERY:
            shown = finished // EVERY * EVERY
            workers = {int(one["process"]) for one in events(out)} - {running.pid}
            held = [f"worker {n} {in_memory(one)}" for n, one in enumerate(sorted(workers))]
            yield f"{finished} tasks: " + "; ".join([f"driver {in_memory(running.pid)}", *held])
    yield done(running).splitlines()[0]


def in_memory(process: int) -> str:
    """The memory that a process holds, and the most that it held."""
    try:
        told = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return "has ended"
    now, most = (int(told.split(f"{key}:")[1].split()[0]) >> 10 for key in ("VmRSS", "VmHWM"))
    return f"{now} MiB, {most} at most"


def table(place: Path) -> Iterator[str]:
    """A table of 100,000 rows: copies of one result under other names."""
    from sinklens.sweep.driver import run_sweep
    from sinklens.sweep.table import merge

    file = place / "one.toml"
    file.write_text(spec(["rope"], [0]))
    run_sweep(file, place / "out", progress=False)
    about = json.loads((place / "out" / "sweep.json").read_text())
    (source,) = (place / "out").glob("tasks/rope-bos_replacement-*")
    rows = len(json.loads((source / "result.json").read_text())["effects"])
    copies = -(-100_000 // rows)
    for number in range(copies):
        shutil.copytree(source, place / "out" / "tasks" / f"copy{number}")
        task = json.loads((source / "task.json").read_text()) | {"task": f"copy{number}"}
        (place / "out" / "tasks" / f"copy{number}" / "task.json").write_text(json.dumps(task))
    about["tasks"] = [f"copy{number}" for number in range(copies)]
    (place / "out" / "sweep.json").write_text(json.dumps(about))
    import pandas as pd

    for suffix in ("parquet", "csv"):
        began = time.perf_counter()
        found = merge([place / "out"], place / f"effects.{suffix}")
        seconds = time.perf_counter() - began
        size = (place / f"effects.{suffix}").stat().st_size / 2**20
        said = f"{len(found):,} rows of {copies:,} results, {suffix}"
        yield f"{said}: {seconds:.1f} s, {size:.1f} MiB"
    began = time.perf_counter()
    pd.read_parquet(place / "effects.parquet")
    yield f"read again: {time.perf_counter() - began:.2f} s"


BOTH = ["draws=1", "null_models=0"]
COMMANDS = {
    "sink_profile": BOTH,
    "bos_replacement": [*BOTH, "conditions=mean,zero"],
    "sink_head_ablation": [*BOTH, "conditions=mean,drop_edge"],
    "position0_patching": [*BOTH, "layers=2", "conditions=other_token:residual"],
}


def main(part: str, folder: str) -> None:
    """Run a part in a folder, which is emptied."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    place = Path(folder).resolve()
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for line in PARTS[part](place):
        print(line, flush=True)


PARTS: dict[str, Callable[[Path], Iterator[str]]] = {
    "engines": engines,
    "sharing": sharing,
    "memory": memory,
    "table": table,
}

if __name__ == "__main__":
    main(*sys.argv[1:])
