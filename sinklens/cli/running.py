"""The commands that run a model: `diagnose` and `run`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from .app import app, one_line_errors
from .looking import print_manual
from .request import (
    Bos,
    Device,
    DryRun,
    Dtype,
    Full,
    Length,
    Model,
    ModelSeed,
    Number,
    Out,
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
)

if TYPE_CHECKING:
    from ..engine import Plan

EXPERIMENT = "sinklens.experiment"


@app.command()
def diagnose(
    model: Model = "rope",
    text: Text = None,
    n_prompts: Number = None,
    length: Length = 64,
    bos: Bos = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = "float32",
    revision: Revision = None,
    step: Step = None,
    model_seed: ModelSeed = None,
    out: Out = None,
    overwrite: Overwrite = False,
    set_: Set = None,
    precision: Precision = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    full: Full = False,
) -> None:
    """Diagnose a model: its sinks, and the effects of removing them, on one screen."""
    source = Source(model, device, dtype, revision, step, model_seed)
    request = Request(
        "diagnose",
        source,
        text,
        n_prompts,
        length,
        bos,
        seed,
        set_ or [],
        precision,
        out,
        overwrite,
        quiet,
    )
    with one_line_errors():
        request.require_inputs()
        if dry_run:
            _plan_diagnosis(request)
        else:
            _diagnose(request, full)


def _diagnose(request: Request, full: bool) -> None:
    """Print the first screen or the whole page, and save what it rests on."""
    with request.kept() as finished:
        settings = request.settings()
        if finished and request.out is not None:
            from ..results.diagnosis import Diagnosis

            saved = Diagnosis.load(request.out)
            print(saved.full() if full else saved)
            return
        with request.imports():
            from ..diagnosis import configure, default_prompts
            from ..diagnosis import diagnose as run_battery

            configure(settings)
        model, prompts = request.load(partial(default_prompts, settings=settings))
        card = run_battery(model, prompts, **request.shared, **settings)
        print(card.full() if full else card)
        if request.out is not None:
            card.save(request.out, overwrite=request.overwrite)


def _plan_diagnosis(request: Request) -> None:
    """Print what each experiment of the diagnosis takes."""
    settings = request.settings()
    with request.imports():
        from ..diagnosis import configure, default_prompts, plans

        configure(settings)
    model, prompts = request.load(partial(default_prompts, settings=settings))
    print_plans(plans(model, prompts, seed=request.seed, **settings))


class RunCommand(TyperCommand):
    """`sinklens run`, whose `--help` behind the name of an experiment is about that experiment."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Remember the experiment, since `--help` acts before the arguments are read."""
        ctx.meta[EXPERIMENT] = self.make_parser(ctx).parse_args(list(args))[0].get("experiment")
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """What can be asked of the experiment, if one is named, then the options."""
        name = ctx.meta.get(EXPERIMENT)
        if isinstance(name, str):
            print_manual(name)
        super().format_help(ctx, formatter)


@app.command(cls=RunCommand)
def run(
    experiment: Annotated[str, typer.Argument(help="Experiment name; `sinklens list` prints all.")],
    model: Model = "rope",
    text: Text = None,
    n_prompts: Number = None,
    length: Length = 64,
    bos: Bos = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = "float32",
    revision: Revision = None,
    step: Step = None,
    model_seed: ModelSeed = None,
    out: Out = None,
    overwrite: Overwrite = False,
    set_: Set = None,
    precision: Precision = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
) -> None:
    """Run one experiment and print its table."""
    source = Source(model, device, dtype, revision, step, model_seed)
    request = Request(
        experiment,
        source,
        text,
        n_prompts,
        length,
        bos,
        seed,
        set_ or [],
        precision,
        out,
        overwrite,
        quiet,
    )
    with one_line_errors():
        request.require_inputs()
        if dry_run:
            _plan(request)
        else:
            _run(request)


def _run(request: Request) -> None:
    """Print the table, and save the result."""
    with request.kept() as finished:
        settings = _configured(request)
        if finished and request.out is not None:
            from ..results.result import ExperimentResult

            print(ExperimentResult.load(request.out))
            return
        from ..runner.registry import default_prompts, run

        model, prompts = request.load(partial(default_prompts, settings=settings))

        result = run(request.what, model, prompts, **request.shared, **settings)
        print(result)
        if request.out is not None:
            result.save(request.out, overwrite=request.overwrite)


def _plan(request: Request) -> None:
    """Print what the experiment takes."""
    settings = _configured(request)
    from ..runner.planning import plan
    from ..runner.registry import default_prompts

    model, prompts = request.load(partial(default_prompts, settings=settings))

    print_plans([plan(request.what, model, prompts, seed=request.seed, **settings)])


def _configured(request: Request) -> dict[str, Any]:
    """The settings, checked before the model is loaded, which can take minutes."""
    settings = request.settings()
    with request.imports():
        from ..runner import registry

        registry.configure(registry.get(request.what), settings)
    return settings


def print_plans(plans: Sequence[Plan]) -> None:
    """A line for each experiment, and the sum."""
    print(*plans, sep="\n")
    times = [plan.seconds for plan in plans if plan.seconds is not None]
    if len(plans) > 1:
        from ..engine import duration

        forwards = sum(plan.forwards + plan.random_forwards for plan in plans)
        print(f"together: {forwards} forwards; about {duration(sum(times))}")
