"""The commands that look: `list`, `models`, `check`, `show` and `report`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.errors import SinklensError, UsageError
from .app import app, one_line_errors
from .request import Device, Dtype, Full, Model, ModelSeed, Overwrite, Quiet, Revision, Source, Step

if TYPE_CHECKING:
    from ..results.diagnosis import Diagnosis
    from ..results.result import ExperimentResult


@app.command("list")
def list_experiments(
    name: Annotated[str, typer.Argument(help="An experiment, to see all about it.")] = "",
) -> None:
    """List the experiments, or the conditions, settings and cost of one."""
    if name:
        print_manual(name)
        return
    with one_line_errors():
        from ..runner.plugins import left_out
        from ..runner.registry import all_experiments

        for known, entry in all_experiments().items():
            print(f"{known:24}{entry.question} [{entry.paper}]")
        for line in left_out():
            print(f"sinklens: left out: {line}", file=sys.stderr)


def print_manual(name: str) -> None:
    """Print what can be asked of an experiment."""
    with one_line_errors():
        from ..runner.manual import manual
        from ..runner.registry import get

        print(manual(get(name)))


@app.command()
def models() -> None:
    """List the models that ship with the package."""
    with one_line_errors():
        from ..models import shipped

        for name in shipped.names():
            print(f"{name:16}{shipped.card(name)['description']}")


@app.command()
def check(
    model: Model = "rope",
    device: Device = None,
    dtype: Dtype = "float32",
    revision: Revision = None,
    step: Step = None,
    model_seed: ModelSeed = None,
) -> None:
    """Check what can be intervened on and measured in a model."""
    with one_line_errors():
        from ..models import capabilities

        source = Source(model, device, dtype, revision, step, model_seed)
        found = capabilities.check(source.load(quiet=True))
        print(
            f"{model}: {found.architecture}, {found.n_layers} layers of {found.n_heads} heads "
            f"({found.n_key_value_heads} key-value heads)"
        )
        for site, possible in found.edits.items():
            print(f"  intervene on {site:10} {'works' if possible else 'has no effect'}")
        windowed = sum(window is not None for window in found.windows)
        for name, value in (
            ("causal", found.causal),
            ("BOS", found.bos),
            ("learned sinks", found.learned_sinks),
            ("sliding-window layers", windowed),
        ):
            print(f"  {name}: {value if isinstance(value, int) and value > 1 else _yes(value)}")


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(help="A folder written by --out.")],
    full: Full = False,
) -> None:
    """Print the table of a saved result, or the first screen of a saved diagnosis."""
    with one_line_errors():
        card = _diagnosis(folder)
        if card is not None:
            print(card.full() if full else card)
        else:
            print("\n\n".join(map(str, _saved(folder).values())))


@app.command()
def report(
    source: Annotated[str, typer.Argument(help="A model, or a folder written by --out.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The HTML file to write.")],
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write one HTML page from a saved result, or from the diagnosis of a model."""
    with one_line_errors():
        _require_writable(output, overwrite)
        folder = Path(source)
        if folder.is_dir() and not (folder / "config.json").exists():
            card = _diagnosis(folder)
            results = _saved(folder) if card is None else card.results
        else:
            from ..diagnosis import diagnose as run_battery

            card = run_battery(Source(source).load(quiet), progress=False if quiet else None)
            results = card.results
        from ..results.report import write_report

        findings = [] if card is None else card.full().split("\n")
        write_report(results, output, findings=findings, overwrite=overwrite)


def _require_writable(output: Path, overwrite: bool) -> None:
    """Refuse a file that cannot be written, before any work is done."""
    if output.is_dir():
        raise UsageError(f"{output} is a folder; give the name of an HTML file")
    if output.exists() and not overwrite:
        raise SinklensError(f"{output} exists; choose another name, or use --overwrite")
    if not output.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {output.parent} to write {output.name} into")


def _diagnosis(folder: Path) -> Diagnosis | None:
    """A saved diagnosis; None where the folder holds single results."""
    from ..results.diagnosis import PAGE, Diagnosis

    return Diagnosis.load(folder) if (folder / PAGE).is_file() else None


def _saved(folder: Path) -> dict[str, ExperimentResult]:
    """The result in a folder, or the results of a diagnosis."""
    from ..results.result import ExperimentResult

    parts = sorted(path.parent for path in folder.glob("*/result.json"))
    if (folder / "result.json").exists() or not parts:
        parts = [folder]
    loaded = [ExperimentResult.load(part) for part in parts]
    return {result.experiment: result for result in loaded}


def _yes(value: object) -> str:
    return "yes" if value else "no"
