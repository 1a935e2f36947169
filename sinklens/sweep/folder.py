"""The folder of a sweep: what is finished, what failed, what runs.

    OUT/sweep.json                    what was asked for, relative to which folder; names of tasks
    OUT/tasks/<name>/                 a result, as `sinklens run --out` writes it, and task.json
    OUT/tasks/<name>.error.json       why a task failed
    OUT/unfinished/<name>/            finished interventions of a task that runs or was stopped
    OUT/log/<host>-<process>.jsonl    when each process began and ended each task

Result folders appear whole or not at all. Whoever works on a task holds the lock of its folder in
`unfinished`, so that any number of shards, workers and sweeps can share one folder.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, cast

from ..core.errors import SinklensError, shortened
from ..core.json_files import json_bytes, read_json
from ..core.locks import locked, owner
from ..core.storage import write_file
from ..results.checked import require
from ..results.saved import read_vouched

ABOUT, OF_A_TASK = "sweep.json", "task.json"
SCHEMA = 1


class SweepAbout(TypedDict):
    """What `sweep.json` holds."""

    schema: int
    base: str
    spec: dict[str, Any]
    tasks: list[str]


@dataclass(frozen=True)
class SweepFolder:
    """The folder of a sweep.

    Attributes:
        root: Where it is.
    """

    root: Path

    def about(self) -> SweepAbout:
        """What was asked for.

        Raises:
            SinklensError: It is no folder of a sweep, or of another version.
        """
        if not self.is_sweep():
            raise SinklensError(
                f"{shortened(self.root)} is no folder of a sweep: it has no {ABOUT}; give one that "
                "`sinklens sweep SPEC.toml --out` wrote"
            )
        anew = (
            f"`sinklens sweep SPEC.toml --out {shortened(self.root)}` writes it anew and keeps "
            "what is finished"
        )
        try:
            about = read_json(self.root / ABOUT)
        except SinklensError as error:
            raise SinklensError(f"{error}; {anew}") from error
        try:
            require(about, SweepAbout, "")
        except SinklensError as error:
            raise SinklensError(f"{self.root / ABOUT} is damaged: {error}; {anew}") from error
        if about["schema"] != SCHEMA:
            raise SinklensError(
                f"{self.root} has sweep schema {about['schema']}, this version reads {SCHEMA}"
            )
        return cast(SweepAbout, about)

    def begin(self, spec: Mapping[str, Any], base: Path, tasks: Sequence[str]) -> None:
        """Make the folder and write what was asked for.

        Args:
            spec: What the specification says.
            base: The folder that its paths are relative to.
            tasks: The names of all tasks.

        Raises:
            SinklensError: It holds something else, or cannot be written.
        """
        content = {"schema": SCHEMA, "base": str(base), "spec": spec, "tasks": tasks}
        try:
            if self.root.is_dir() and any(self.root.iterdir()) and not self.is_sweep():
                raise SinklensError(
                    f"the folder {self.root} holds something else than a sweep; give another one"
                )
            write_file(self.root / ABOUT, json_bytes(content))
        except OSError as error:
            raise SinklensError(f"cannot write {shortened(self.root)}: {error.strerror}") from error

    def is_sweep(self) -> bool:
        """Whether this is the folder of a sweep."""
        return (self.root / ABOUT).is_file()

    def result(self, task: str) -> Path:
        """The folder of a task's result."""
        return self.root / "tasks" / task

    def _error(self, task: str) -> Path:
        return self.root / "tasks" / f"{task}.error.json"

    def _work(self, task: str) -> Path:
        return self.root / "unfinished" / task

    def is_finished(self, task: str) -> bool:
        """Whether a whole and undamaged result is there."""
        if not (self.result(task) / OF_A_TASK).is_file():
            return False
        try:
            read_vouched(self.result(task))
        except SinklensError:
            return False
        return True

    def error(self, task: str) -> dict[str, Any] | None:
        """Why a task failed; None where it did not."""
        with suppress(SinklensError):
            return read_json(self._error(task))
        return None

    def fail(self, task: str, error: Mapping[str, Any]) -> str:
        """Keep why a task failed.

        Returns:
            Why it could not be kept; empty where it was.
        """
        try:
            write_file(self._error(task), json_bytes({"task": task, **error}))
        except OSError as failed:
            return f"this error could not be kept in {self.root}: {failed.strerror}"
        return ""

    def forgive(self, task: str) -> None:
        """Forget that a task failed."""
        with suppress(OSError):
            self._error(task).unlink(missing_ok=True)

    @contextmanager
    def alone(self, task: str) -> Iterator[Path]:
        """Work on a task that nobody else works on meanwhile.

        Yields:
            The folder in which its finished interventions are kept.

        Raises:
            SinklensError: Another process works on it, or the folder cannot be made.
        """
        place = self._work(task)
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SinklensError(f"cannot write {self.root}: {error.strerror}") from error
        with locked(place):
            yield place
        with suppress(OSError):
            place.rmdir()

    def tidy(self, task: str) -> None:
        """Remove what a process left that was killed between its result and the end."""
        shutil.rmtree(self._work(task), ignore_errors=True)

    def runs(self, task: str) -> bool:
        """Whether a process works on a task."""
        return bool(owner(self._work(task)))

    def was_begun(self, task: str) -> bool:
        """Whether a process began a task, did not end it and works on it no more."""
        return self._work(task).is_dir() and not self.runs(task)

    def log(self, task: str, event: str) -> None:
        """Say in the log of this process that a task began or ended."""
        file = self.root / "log" / f"{socket.gethostname()}-{os.getpid()}.jsonl"
        line = {"time": round(time.time(), 3), "task": task, "event": event}
        with suppress(OSError):  # a full disk, which the result or its error says
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a", encoding="utf-8") as out:
                out.write(f"{json.dumps(line)}\n")
