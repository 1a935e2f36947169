"""Ray and SLURM give the bytes of the local engine, also where processes are killed on the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from sinklens.sweep.driver import run_sweep
from tests.sweep.conftest import SPEC
from tests.sweep.proof import (
    ENGINES,
    contents,
    done,
    events,
    kill_a_worker,
    kill_the_driver,
    require_same,
    sweep,
)

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def spec(tiny_models: Path) -> Path:
    """Twenty-four tasks."""
    file = tiny_models / "engines.toml"
    file.write_text(SPEC.replace("[0, 1]", "[0, 1, 2, 3, 4, 5]") + ENGINES)
    return file


@pytest.fixture(scope="module")
def expected(spec: Path) -> dict[str, list[bytes]]:
    """What the local engine gives."""
    run_sweep(spec, spec.with_name("local"), progress=False)
    found = contents(spec.with_name("local"))
    assert len(found) == 24
    return found


def test_ray_goes_on_where_a_worker_is_killed(
    spec: Path, expected: dict[str, list[bytes]], tmp_path: Path
) -> None:
    running = sweep(spec, tmp_path, "--engine", "ray", "--workers", "2")
    kill_a_worker(tmp_path, 4)
    assert "24 tasks in" in done(running) and running.returncode == 0
    require_same(tmp_path, expected, 1)
    assert len({one["process"] for one in events(tmp_path)}) >= 3


def test_a_sweep_goes_on_where_its_driver_was_killed(
    spec: Path, expected: dict[str, list[bytes]], tmp_path: Path
) -> None:
    options = ("--engine", "ray", "--workers", "2")
    kill_the_driver(sweep(spec, tmp_path, *options), tmp_path, 4)
    done(sweep(spec, tmp_path, *options))
    require_same(tmp_path, expected, 2)


def test_processes_of_its_own(spec: Path, expected: dict[str, list[bytes]], tmp_path: Path) -> None:
    running = sweep(spec, tmp_path, "--workers", "2")
    kill_a_worker(tmp_path, 4)
    assert "24 finished" in done(running)
    require_same(tmp_path, expected, 2)


def test_two_sweeps_at_once_share_the_work(
    spec: Path, expected: dict[str, list[bytes]], tmp_path: Path
) -> None:
    both = [sweep(spec, tmp_path) for _ in range(2)]
    said = [done(one) for one in both]
    assert all("failed" not in one for one in said), said
    require_same(tmp_path, expected, 0)


def test_submitit(spec: Path, expected: dict[str, list[bytes]], tmp_path: Path) -> None:
    assert "24 finished" in done(sweep(spec, tmp_path, "--engine", "slurm", "--workers", "2"))
    require_same(tmp_path, expected, 0)
