"""Groups in this process, one after the other; with several workers, in processes of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from ..tasks import Group
from ..worker import release, work
from .ended import Ended, ended


def run_local(
    root: Path, groups: Sequence[Group], workers: int, options: Mapping[str, Any]
) -> Iterator[Ended]:
    """Run groups on this machine."""
    if workers > 1:
        yield from _in_processes(root, groups, workers)
        return
    try:
        for group in groups:
            yield Ended(group, work(root, group))
    finally:
        release()


def _in_processes(root: Path, groups: Sequence[Group], workers: int) -> Iterator[Ended]:
    """A pool of processes; where one of them dies the pool ends, and what is left is said."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(work, root, group): group for group in groups}
        try:
            for future in as_completed(futures):
                yield ended(futures[future], future.result)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
