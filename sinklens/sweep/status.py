"""How far a sweep is, read from its folder alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ..core.paths import path_of
from .folder import SweepFolder

FINISHED, FAILED, RUNNING, TO_DO = "finished", "failed", "running", "to do"


@dataclass(frozen=True)
class SweepStatus:
    """How far a sweep is.

    Attributes:
        root: Its folder.
        states: By task `finished`, `failed`, `running` or `to do`.
        errors: By task that failed, why.
    """

    root: Path
    states: dict[str, str]
    errors: dict[str, str]

    def __str__(self) -> str:
        """Counts, then why tasks failed."""
        counts = Counter(self.states.values())
        said = [f"{counts[state]} {state}" for state in (FINISHED, FAILED, RUNNING, TO_DO)]
        lines = [f"{len(self.states)} tasks in {self.root}: {', '.join(said)}"]
        return "\n".join([*lines, *(f"  {task}: {why}" for task, why in self.errors.items())])


def sweep_status(root: str | Path) -> SweepStatus:
    """How far a sweep is.

    Args:
        root: Its folder.

    Raises:
        SinklensError: It is none.
    """
    folder = SweepFolder(path_of(root))
    states: dict[str, str] = {}
    errors: dict[str, str] = {}
    for task in folder.about()["tasks"]:
        failed = folder.error(task)
        if folder.is_finished(task):
            states[task] = FINISHED
        elif folder.runs(task):
            states[task] = RUNNING
        elif failed is not None:
            states[task], errors[task] = FAILED, str(failed.get("error"))
        else:
            states[task] = TO_DO
    return SweepStatus(folder.root, states, errors)
