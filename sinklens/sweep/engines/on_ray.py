"""Groups as tasks of Ray, with its retries, resources, placement and autoscaling."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ...core.errors import SinklensError, UsageError, in_one_line
from ..tasks import Group
from ..worker import work
from .ended import Ended, ended

RETRIES = 3


def run_on_ray(
    root: Path, groups: Sequence[Group], workers: int, options: Mapping[str, Any]
) -> Iterator[Ended]:
    """Run groups on Ray: on the cluster of `address`, else on one that is started here.

    A worker that dies is retried by Ray; tasks that it had finished are not run again.

    Args:
        root: The folder of the sweep, which all workers see.
        groups: The groups.
        workers: How many run at a time where the cluster is started here.
        options: `address`, and options of `ray.remote` for every group.

    Raises:
        SinklensError: Ray is not installed or cannot be started.
        UsageError: Ray has no such option.
    """
    ray = _ray()
    options = dict(options)
    address = options.pop("address", None) or os.environ.get("RAY_ADDRESS")
    started = not ray.is_initialized()
    try:
        function = ray.remote(work).options(**{"max_retries": RETRIES, **options})
    except ValueError as error:
        raise UsageError(f"[ray] {error}") from error
    if started:
        _start(ray, address, workers)
    try:
        waiting = {function.remote(root, group): group for group in groups}
        while waiting:
            for done in ray.wait(list(waiting), num_returns=1)[0]:
                yield ended(waiting.pop(done), partial(ray.get, done))
    finally:
        if started:
            ray.shutdown()


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise SinklensError("--engine ray needs Ray: pip install 'sinklens[sweep]'") from error
    return ray


def _start(ray: Any, address: str | None, workers: int) -> None:
    """Join a cluster, or start one on this machine."""
    where = {"address": address} if address else {"num_cpus": workers}
    try:
        ray.init(**where, include_dashboard=False, log_to_driver=False, logging_level="error")
    except Exception as error:
        raise SinklensError(
            f"Ray does not start: {in_one_line(error)}; give the address of a cluster as `address` "
            "in [ray], or use --engine local"
        ) from error
