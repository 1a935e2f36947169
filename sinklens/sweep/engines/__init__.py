"""Where groups of tasks run: in this process, on Ray, or on SLURM.

An engine is a function `(root, groups, workers, options)` that yields how groups ended, in any
order. All run the same function, `worker.work`; none schedules by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...core.errors import unknown_name
from ..tasks import Group
from .ended import Ended as Ended

Engine = Callable[[Path, Sequence[Group], int, Mapping[str, Any]], Iterator[Ended]]


def engine_of(name: str) -> Engine:
    """The engine of a name.

    Raises:
        UsageError: There is none.
    """
    if name == "local":
        from .local import run_local

        return run_local
    if name == "ray":
        from .on_ray import run_on_ray

        return run_on_ray
    if name == "slurm":
        from .on_slurm import run_on_slurm

        return run_on_slurm
    raise unknown_name("engine", name, ("local", "ray", "slurm"))
