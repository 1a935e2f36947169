"""The commands about many models: `sweep`, `merge` and `atlas`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import UsageError
from .app import app, one_line_errors
from .request import Overwrite, Quiet

Spec = Annotated[Path, typer.Argument(help="A TOML file, or the folder of a sweep, to go on.")]
Engine = Annotated[str, typer.Option(help="local, ray or slurm.")]
Workers = Annotated[int, typer.Option(help="Groups of tasks that run at a time.")]
Shard = Annotated[str | None, typer.Option(help="A part of the tasks, I/N with I from 0.")]
Retry = Annotated[bool, typer.Option("--retry-failed", help="Run failed tasks again.")]
Status = Annotated[bool, typer.Option("--status", help="Say how far the sweep is, and stop.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what it would take, and stop.")]
OutFolder = Annotated[Path | None, typer.Option(help="The folder of the sweep.")]


@app.command()
def sweep(
    spec: Spec,
    out: OutFolder = None,
    engine: Engine = "local",
    workers: Workers = 1,
    shard: Shard = None,
    dry_run: DryRun = False,
    status: Status = False,
    retry_failed: Retry = False,
    quiet: Quiet = False,
) -> None:
    """Run experiments on many models, checkpoints, texts and seeds."""
    with one_line_errors():
        part = None if shard is None else _shard(shard)
        if status:
            from ..sweep.status import sweep_status

            print(sweep_status(spec if out is None else out))
            return
        from ..sweep.driver import read_sweep, run_sweep

        if dry_run:
            from ..sweep.planning import plan_sweep

            print(plan_sweep(read_sweep(spec, part).tasks))
            return
        report = run_sweep(
            spec,
            out,
            engine=engine,
            workers=workers,
            shard=part,
            retry_failed=retry_failed,
            progress=False if quiet else None,
        )
        print(report)
        if report.errors:
            raise typer.Exit(1)


def _shard(text: str) -> tuple[int, int]:
    """`0/4` as two numbers.

    Raises:
        UsageError: It is none.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None:
        raise UsageError(f"--shard takes I/N, such as 0/4, not {text!r}")
    return int(found[1]), int(found[2])


@app.command()
def merge(
    folders: Annotated[list[Path], typer.Argument(help="Folders of sweeps, or of results.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="A .parquet or .csv file.")],
    mixed: Annotated[
        bool, typer.Option("--mixed", help="Keep results of different settings and versions.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Put the results of sweeps into one table of effects."""
    with one_line_errors():
        from ..sweep.table import merge as merge_folders

        table = merge_folders(folders, output, mixed=mixed, overwrite=overwrite)
        results = table["task"].nunique()
        print(f"{output}: {len(table):,} effects of {results:,} results")


@app.command()
def atlas(
    effects: Annotated[Path, typer.Argument(help="The file that merge wrote.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder to write.")],
) -> None:
    """Write static pages that compare the models of a table of effects."""
    with one_line_errors():
        from ..sweep.atlas.site import make_atlas

        print(f"Open {make_atlas(effects, output)}")
