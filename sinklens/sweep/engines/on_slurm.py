"""Groups as a job array of SLURM, through submitit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...core.errors import SinklensError, UsageError, in_one_line
from ..tasks import Group
from ..worker import Outcome, work
from .ended import Ended, ended


class Job:
    """What a job runs; after a preemption or a time limit it is submitted again and goes on."""

    def __call__(self, root: Path, group: Group) -> list[Outcome]:
        """Do a group."""
        return work(root, group)

    def checkpoint(self, root: Path, group: Group) -> Any:
        """What submitit submits instead; finished work is on disk."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, root, group)


def run_on_slurm(
    root: Path, groups: Sequence[Group], workers: int, options: Mapping[str, Any]
) -> Iterator[Ended]:
    """Run groups as one job array, and wait for its jobs.

    Args:
        root: The folder of the sweep, which all nodes see; logs are in `root/slurm`.
        groups: The groups.
        workers: How many jobs run at a time.
        options: `cluster` (`slurm`, or `local` to try it without one), and parameters of
            `submitit.AutoExecutor`.

    Raises:
        SinklensError: submitit is not installed, or the jobs cannot be submitted.
        UsageError: submitit has no such parameter.
    """
    try:
        import submitit
    except ImportError as error:
        raise SinklensError(
            "--engine slurm needs submitit: pip install 'sinklens[sweep]'"
        ) from error
    options = dict(options)
    cluster = options.pop("cluster", "slurm")
    try:
        executor = submitit.AutoExecutor(root / "slurm", cluster=cluster)
        executor.update_parameters(
            **{"name": "sinklens", "slurm_array_parallelism": workers, **options}
        )
    except (NameError, TypeError, ValueError) as error:
        raise UsageError(f"[slurm] {error}") from error
    except RuntimeError as error:
        raise SinklensError(f"SLURM cannot be used: {in_one_line(error)}") from error
    try:
        jobs = executor.map_array(Job(), [root] * len(groups), groups)
    except Exception as error:
        raise SinklensError(f"SLURM takes no jobs: {in_one_line(error)}") from error
    waiting = dict(zip(jobs, groups, strict=True))
    for job in submitit.helpers.as_completed(jobs):
        yield ended(waiting[job], job.result)
