"""A sweep from beginning to end: what is still to do is given to an engine, and counted."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.errors import UsageError
from ..core.paths import path_of
from ..engine.progress import progress_bar
from .engines import Ended, engine_of
from .folder import SweepFolder
from .spec import Spec, parse, read_toml
from .tasks import Group, Task, expand, grouped, sharded
from .worker import BEFORE, ELSEWHERE, FAILED, FINISHED, Outcome

MOST_SHOWN = 20


@dataclass(frozen=True)
class SweepReport:
    """How a sweep ended.

    Attributes:
        root: Its folder.
        tasks: How many tasks it has, of this shard.
        counts: How many of them are `finished`, were finished `before`, `failed`, or are worked on
            `elsewhere`.
        errors: By task that failed, now or before, why.
    """

    root: Path
    tasks: int
    counts: dict[str, int]
    errors: dict[str, str] = field(default_factory=dict)

    @property
    def is_done(self) -> bool:
        """Whether every task is finished."""
        return self.counts[FINISHED] + self.counts[BEFORE] == self.tasks

    def __str__(self) -> str:
        """Counts, then why tasks failed."""
        words = {
            FINISHED: "finished",
            BEFORE: "finished before",
            FAILED: "failed",
            ELSEWHERE: "left to another process that works on them",
        }
        said = [
            f"{self.counts[state]} {word}" for state, word in words.items() if self.counts[state]
        ]
        lines = [f"{self.tasks} tasks in {self.root}: {', '.join(said) or 'nothing to do'}"]
        why: dict[str, list[str]] = {}
        for task, error in self.errors.items():
            why.setdefault(error, []).append(task)
        for error, tasks in list(why.items())[:MOST_SHOWN]:
            more = f" and {len(tasks) - 1} more" if len(tasks) > 1 else ""
            lines.append(f"  failed: {tasks[0]}{more}: {error}")
        if self.errors:
            lines.append("  --retry-failed runs these again")
        return "\n".join(lines)


@dataclass(frozen=True)
class Sweep:
    """What a sweep does.

    Attributes:
        spec: What was asked for.
        content: The same as it stands in the file.
        every: All of its tasks.
        tasks: Those of one shard.
    """

    spec: Spec
    content: dict[str, Any]
    every: list[Task]
    tasks: list[Task]


def read_sweep(
    source: str | Path | Mapping[str, Any], shard: tuple[int, int] | None = None
) -> Sweep:
    """What a specification, or the folder of a sweep, asks for.

    Args:
        source: A TOML file, its content, or the folder of a sweep.
        shard: Which part of its tasks, and of how many.

    Raises:
        UsageError: Something in it is wrong.
    """
    if isinstance(source, Mapping):
        content, base = dict(source), Path.cwd()
    elif path_of(source).is_dir():
        about = SweepFolder(path_of(source)).about()
        content, base = about["spec"], Path(about["base"])
    else:
        content, base = read_toml(path_of(source)), path_of(source).resolve().parent
    spec = parse(content, base)
    tasks = every = expand(spec)
    if shard is not None:
        number, count = shard
        if not 0 <= number < count:
            raise UsageError(f"shard {number}/{count}: shards count from 0/{count} on")
        tasks = sharded(every, number, count)
    return Sweep(spec, content, every, tasks)


def run_sweep(
    source: str | Path | Mapping[str, Any],
    out: str | Path | None = None,
    *,
    engine: str = "local",
    workers: int = 1,
    shard: tuple[int, int] | None = None,
    retry_failed: bool = False,
    progress: bool | None = None,
) -> SweepReport:
    """Run the tasks of a sweep that are not finished.

    Args:
        source: A TOML file, its content, or the folder of a sweep, which goes on.
        out: The folder; not needed where the source is one.
        engine: `local`, `ray` or `slurm`.
        workers: How many groups of tasks run at a time.
        shard: Which part of the tasks, and of how many: `(0, 2)`, `(1, 2)`.
        retry_failed: Whether tasks that failed before are run again.
        progress: Whether to show progress; None shows it in a terminal or a notebook.

    Raises:
        UsageError: The specification or an option is wrong.
        SinklensError: The folder or the engine cannot be used.
    """
    run = engine_of(engine)
    if workers < 1:
        raise UsageError(f"workers must be at least 1, not {workers}")
    sweep = read_sweep(source, shard)
    folder = SweepFolder(_folder_of(source, out))
    folder.begin(sweep.content, sweep.spec.base, [task.name for task in sweep.every])
    to_do, before, errors = _to_do(folder, sweep.tasks, retry_failed)
    outcomes: dict[str, Outcome] = {}
    options = {"ray": sweep.spec.ray, "slurm": sweep.spec.slurm}.get(engine, {})
    groups = grouped(to_do, workers)
    deaths: Counter[str] = Counter()
    with progress_bar(len(sweep.tasks), progress, "sweep", "task") as bar:
        bar.update(len(sweep.tasks) - len(to_do))
        while groups:
            left: list[Group] = []
            for group in run(folder.root, groups, workers, options):
                found = group.outcomes
                if group.died:
                    found, rest = _after_death(folder, group, deaths)
                    left += [rest] if rest.tasks else []
                outcomes |= {one.task: one for one in found}
                bar.update(len(found))
            groups = left
    errors |= {one.task: one.error for one in outcomes.values() if one.state == FAILED}
    ended = Counter(one.state for one in outcomes.values())
    counts = {state: ended[state] for state in (FINISHED, BEFORE, FAILED, ELSEWHERE)}
    counts |= {BEFORE: before + ended[BEFORE], FAILED: len(errors)}
    return SweepReport(folder.root, len(sweep.tasks), counts, errors)


def _folder_of(source: str | Path | Mapping[str, Any], out: str | Path | None) -> Path:
    """The folder of a sweep, absolute, since workers may start elsewhere."""
    if isinstance(source, (str, Path)) and path_of(source).is_dir():
        if out is not None and path_of(out).resolve() != path_of(source).resolve():
            raise UsageError(f"{source} is the folder of a sweep, which goes on there; leave --out")
        return path_of(source).resolve()
    if out is None:
        raise UsageError("a sweep needs a folder for its results (--out DIR)")
    return Path(os.path.abspath(path_of(out)))


def _to_do(
    folder: SweepFolder, tasks: Sequence[Task], retry_failed: bool
) -> tuple[list[Task], int, dict[str, str]]:
    """The tasks that are left, how many are finished, and why others failed before."""
    to_do: list[Task] = []
    errors: dict[str, str] = {}
    for task in tasks:
        if folder.is_finished(task.name):
            continue
        if retry_failed:
            folder.forgive(task.name)
        failed = folder.error(task.name)
        if failed is None:
            to_do.append(task)
        else:
            errors[task.name] = str(failed.get("error"))
    return to_do, len(tasks) - len(to_do) - len(errors), errors


def _after_death(
    folder: SweepFolder, ended: Ended, deaths: Counter[str]
) -> tuple[list[Outcome], Group]:
    """How the tasks of a group ended whose worker died, and what is left to do of it.

    A task is tried once more after the worker that had begun it died, then it has failed.

    Args:
        folder: The folder of the sweep.
        ended: The group.
        deaths: By task how often a worker died that had begun it.
    """
    over = [
        t for t in ended.group.tasks if not folder.is_finished(t.name) and not folder.error(t.name)
    ]
    deaths.update(task.name for task in [t for t in over if folder.was_begun(t.name)] or over)
    for task in over:
        if deaths[task.name] > 1:
            folder.fail(task.name, {**task.identity, "error": f"its worker died: {ended.died}"})
    outcomes = []
    for task in ended.group.tasks:
        failed = folder.error(task.name)
        if failed is not None:
            outcomes.append(Outcome(task.name, FAILED, error=str(failed.get("error"))))
        elif task not in over:
            outcomes.append(Outcome(task.name, FINISHED))
    return outcomes, Group(tuple(t for t in over if folder.error(t.name) is None))
