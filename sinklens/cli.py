"""The command line. It imports nothing heavy before a command needs it."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .core.errors import SinklensError, UsageError

if TYPE_CHECKING:
    from .models.prompts import Prompts
    from .results.result import ExperimentResult

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Find the attention sinks of a transformer and measure what removing them does.",
)

Model = Annotated[str, typer.Argument(help="A shipped model, a folder, a .gguf file or a Hub id.")]
Text = Annotated[Path | None, typer.Option(help="A text file instead of the shipped corpus.")]
Number = Annotated[int | None, typer.Option("--n-prompts", help="Number of prompts.")]
Length = Annotated[int, typer.Option(help="Tokens in each prompt, BOS included.")]
Bos = Annotated[bool | None, typer.Option("--bos/--no-bos", help="Whether prompts start with BOS.")]
Seed = Annotated[int, typer.Option(help="Seed of every random draw.")]
Device = Annotated[str | None, typer.Option(help="Device, such as cpu or cuda.")]
Dtype = Annotated[str, typer.Option(help="float32, float64, float16 or bfloat16.")]
Out = Annotated[Path | None, typer.Option(help="Write results into this folder.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing output.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting, KEY=VALUE; commas separate list items."),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]


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
    out: Out = None,
    overwrite: Overwrite = False,
    set_: Set = None,
    quiet: Quiet = False,
) -> None:
    """Diagnose a model: its sinks, and the effects of removing them, on one page."""
    command = _command("diagnose", model, text, n_prompts, length, bos, seed, device, dtype, set_)
    with _prepared(out, overwrite, quiet), _kept(out, overwrite, command):
        settings = _settings(set_)
        from .diagnosis import N_PROMPTS
        from .diagnosis import diagnose as run_battery

        bridge = _load(model, device, dtype, quiet)
        prompts = _prompts(bridge, text, N_PROMPTS if n_prompts is None else n_prompts, length, bos)
        progress = False if quiet else None
        card = run_battery(bridge, prompts, seed=seed, progress=progress, **settings)
        print(card)
        if out is not None:
            card.save(out, overwrite=overwrite)


@app.command()
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
    out: Out = None,
    overwrite: Overwrite = False,
    set_: Set = None,
    quiet: Quiet = False,
) -> None:
    """Run one experiment and print its table."""
    command = _command(experiment, model, text, n_prompts, length, bos, seed, device, dtype, set_)
    with _prepared(out, overwrite, quiet), _kept(out, overwrite, command):
        from .runner import registry

        settings = _settings(set_)
        # Before the model is loaded, which can take minutes.
        registry.configure(registry.get(experiment), settings)
        bridge = _load(model, device, dtype, quiet)
        prompts = _prompts(bridge, text, 64 if n_prompts is None else n_prompts, length, bos)
        result = registry.run(
            experiment, bridge, prompts, seed=seed, progress=False if quiet else None, **settings
        )
        print(result)
        if out is not None:
            result.save(out, overwrite=overwrite)


@app.command("list")
def list_experiments() -> None:
    """List the experiments."""
    with _prepared(None, False, True):
        from .runner.registry import all_experiments

        for name, entry in all_experiments().items():
            print(f"{name:24}{entry.question} [{entry.paper}]")


@app.command()
def models() -> None:
    """List the models that ship with the package."""
    with _prepared(None, False, True):
        from .models import shipped

        for name in shipped.names():
            print(f"{name:16}{shipped.card(name)['description']}")


@app.command()
def check(model: Model = "rope", device: Device = None, dtype: Dtype = "float32") -> None:
    """Check what can be intervened on and measured in a model."""
    with _prepared(None, False, True):
        from .models import capabilities

        found = capabilities.check(_load(model, device, dtype, True))
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
def show(folder: Annotated[Path, typer.Argument(help="A folder written by --out.")]) -> None:
    """Print a saved result, or all results of a saved diagnosis."""
    with _prepared(None, False, True):
        print(*_saved(folder).values(), sep="\n\n")


@app.command()
def report(
    source: Annotated[str, typer.Argument(help="A model, or a folder written by --out.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The HTML file to write.")],
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write one HTML page from a saved result, or from the diagnosis of a model."""
    with _prepared(None, False, quiet):
        from .results.report import write_report

        if output.exists() and not overwrite:
            raise SinklensError(f"{output} exists; choose another name, or use --overwrite")
        folder = Path(source)
        findings: list[str] = []
        if folder.is_dir() and not (folder / "config.json").exists():
            results = _saved(folder)
            page = folder / "findings.txt"
            findings = page.read_text("utf-8").splitlines() if page.exists() else []
        else:
            from .diagnosis import diagnose as run_battery

            bridge = _load(source, None, "float32", quiet)
            card = run_battery(bridge, progress=False if quiet else None)
            results, findings = card.results, card.findings
        write_report(results, output, findings=findings, overwrite=overwrite)


def _saved(folder: Path) -> dict[str, ExperimentResult]:
    """The result in a folder, or the results of a diagnosis."""
    from .results.result import ExperimentResult

    parts = sorted(path.parent for path in folder.glob("*/result.json"))
    if (folder / "result.json").exists() or not parts:
        parts = [folder]
    loaded = [ExperimentResult.load(part) for part in parts]
    return {result.experiment: result for result in loaded}


def main() -> None:
    """The entry point of the `sinklens` command."""
    app()


@contextlib.contextmanager
def _prepared(out: Path | None, overwrite: bool, quiet: bool) -> Iterator[None]:
    """Turn errors into one line and a status: 1 not possible on this model, 2 wrong usage."""
    try:
        if out is not None:
            from .core.storage import require_free

            require_free(out, overwrite)
        yield
    except UsageError as error:
        print(f"sinklens: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    except SinklensError as error:
        print(f"sinklens: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        print("sinklens: stopped", file=sys.stderr)
        raise typer.Exit(130) from None


def _command(*arguments: Any) -> list[str]:
    """The request as text, by which a repeated command is recognised."""
    return [str(argument) for argument in arguments]


def _kept(
    out: Path | None, overwrite: bool, command: list[str]
) -> contextlib.AbstractContextManager[None]:
    """Keep finished work in the output folder, if one is given."""
    if out is None:
        return contextlib.nullcontext()
    from .engine import kept

    return kept(out, command, overwrite=overwrite)


def _load(model: str, device: str | None, dtype: str, quiet: bool) -> Any:
    """Load a model, without a progress bar if `quiet` or not in a terminal."""
    from .models import load

    silent = quiet or not sys.stderr.isatty()
    with contextlib.redirect_stderr(io.StringIO()) if silent else contextlib.nullcontext():
        return load(model, device=device, dtype=dtype)


def _prompts(model: Any, text: Path | None, n: int, length: int, bos: bool | None) -> Prompts:
    from .models.prompts import prompts

    return prompts(model, text, n=n, length=length, bos=bos)


def _settings(pairs: list[str] | None) -> dict[str, Any]:
    """`KEY=VALUE` pairs as a dictionary."""
    settings: dict[str, Any] = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"--set takes KEY=VALUE, not {pair!r}")
        settings[key] = value
    for fixed in {"seed", "progress", "out", "overwrite"} & settings.keys():
        raise UsageError(f"use --{'quiet' if fixed == 'progress' else fixed} instead of --set")
    return settings


def _yes(value: object) -> str:
    return "yes" if value else "no"
