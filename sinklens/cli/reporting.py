"""The command that writes a page: `report`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.errors import SinklensError, UsageError, in_one_line
from ..core.paths import path_of
from .app import app, one_line_errors
from .looking import diagnosis_in, results_in
from .request import (
    Bos,
    Device,
    Dtype,
    Length,
    ModelSeed,
    Number,
    Overwrite,
    Precision,
    Quiet,
    Request,
    Revision,
    Seed,
    Set,
    Source,
    Step,
    Text,
    at_home,
)

if TYPE_CHECKING:
    from ..results.report import Report

LENGTH = 64


@app.command()
def report(
    source: Annotated[str, typer.Argument(help="A model, or a folder written by --out.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", callback=at_home, help="The HTML file to write.")
    ],
    text: Text = None,
    n_prompts: Number = None,
    length: Length = LENGTH,
    bos: Bos = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = "float32",
    revision: Revision = None,
    step: Step = None,
    model_seed: ModelSeed = None,
    set_: Set = None,
    precision: Precision = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write one HTML page from saved results, or from the diagnosis of a model."""
    with one_line_errors():
        _require_writable(output, overwrite)
        folder = path_of(source)
        of_model = Source(source, device, dtype, revision, step, model_seed)
        request = Request(
            "report",
            of_model,
            text,
            n_prompts,
            length,
            bos,
            seed,
            set_ or [],
            precision,
            quiet=quiet,
        )
        if folder.is_dir() and not (folder / "config.json").exists():
            _require_no_options(request, folder)
            _write_saved(folder, output, overwrite)
        else:
            _of_model(request).save(output, overwrite=overwrite)


def _require_writable(output: Path, overwrite: bool) -> None:
    """Refuse a file that cannot be written, before any work is done."""
    if output.is_dir():
        raise UsageError(f"{output} is a folder; give the name of an HTML file")
    if output.exists() and not overwrite:
        raise SinklensError(f"{output} exists; choose another name, or use --overwrite")
    if not output.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {output.parent} to write {output.name} into")


def _require_no_options(request: Request, folder: Path) -> None:
    """Refuse options of a diagnosis where results are there already."""
    usual = Request(request.what, Source(request.source.model), None, None, LENGTH, None, 0)
    if request != replace(usual, quiet=request.quiet):
        raise UsageError(
            f"options such as --n-prompts and --set are for the diagnosis of a model; {folder} "
            "holds results"
        )


def _write_saved(folder: Path, output: Path, overwrite: bool) -> None:
    """The page of what was saved, which may be damaged in ways that loading does not see."""
    from ..results.report import Report
    from ..runner.methods import methods_of

    card = diagnosis_in(folder)
    results = results_in(folder) if card is None else card.results
    try:
        methods = methods_of(result.experiment for result in results.values())
        Report(results, card, methods).save(output, overwrite=overwrite)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise SinklensError(
            f"a result.json in {folder} is damaged: {in_one_line(error)}; run it again"
        ) from error


def _of_model(request: Request) -> Report:
    """The page of a diagnosis and of attention on its first prompt."""
    request.require_inputs()
    settings = request.settings()
    with request.imports():
        from ..diagnosis import configure, default_prompts, diagnose
        from ..results.report import Report
        from ..runner.methods import methods_of
        from ..views import views_of

        configure(settings)
    model, prompts = request.load(partial(default_prompts, settings=settings))
    card = diagnose(model, prompts, **request.shared, **settings)
    views, why_none = {}, ""
    try:
        views = views_of(model, prompts[0])
    except SinklensError as error:
        why_none = str(error)
    return Report(card.results, card, methods_of(card.results), views, why_none)
