"""The commands that run a model: `diagnose` and `run`."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from .app import app, one_line_errors
from .looking import print_manual
from .request import (
    Bos,
    Device,
    Dtype,
    Length,
    Model,
    ModelSeed,
    Number,
    Out,
    Overwrite,
    Quiet,
    Request,
    Revision,
    Seed,
    Set,
    Source,
    Step,
    Text,
)

EXPERIMENT = "sinklens.experiment"


@app.command()
def diagnose(
    model: Model = "rope",
    text: Text = None,
    n_prompts: Number = 16,
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
    quiet: Quiet = False,
) -> None:
    """Diagnose a model: its sinks, and the effects of removing them, on one page."""
    source = Source(model, device, dtype, revision, step, model_seed)
    request = Request(
        "diagnose", source, text, n_prompts, length, bos, seed, set_ or [], out, overwrite, quiet
    )
    with one_line_errors():
        request.require_inputs()
        with request.kept():
            settings = request.settings()
            from ..diagnosis import configure
            from ..diagnosis import diagnose as run_battery

            configure(settings)
            bridge, prompts = request.load()
            card = run_battery(bridge, prompts, **request.shared, **settings)
            print(card)
            if out is not None:
                card.save(out, overwrite=overwrite)


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
    n_prompts: Number = 64,
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
    quiet: Quiet = False,
) -> None:
    """Run one experiment and print its table."""
    source = Source(model, device, dtype, revision, step, model_seed)
    request = Request(
        experiment, source, text, n_prompts, length, bos, seed, set_ or [], out, overwrite, quiet
    )
    with one_line_errors():
        request.require_inputs()
        with request.kept():
            settings = request.settings()
            from ..runner import registry

            # Before the model is loaded, which can take minutes.
            registry.configure(registry.get(experiment), settings)
            bridge, prompts = request.load()
            result = registry.run(experiment, bridge, prompts, **request.shared, **settings)
            print(result)
            if out is not None:
                result.save(out, overwrite=overwrite)
