"""The commands that look: `list`, `models`, `check` and `show`."""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.terminal import printable
from .app import app, one_line_errors
from .request import Device, Dtype, Full, Model, ModelSeed, Revision, Source, Step

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
        from ..models.obstacles import NO_EFFECT

        source = Source(model, device, dtype, revision, step, model_seed)
        found = capabilities.check(source.load(quiet=True))
        print(
            f"{printable(model)}: {found.architecture}, {found.n_layers} layers of "
            f"{found.n_heads} heads ({found.n_key_value_heads} key-value heads)"
        )
        for site, possible in found.edits.items():
            why = found.obstacles.get(site, "")
            said = "works" if possible else "has no effect" if why == NO_EFFECT else why
            print(f"  intervene on {site:10} {said}")
        windowed = sum(window is not None for window in found.windows)
        for name, value in (
            ("causal", found.causal),
            ("BOS", found.bos),
            ("learned sinks", found.learned_sinks),
            ("sliding-window layers", windowed),
        ):
            print(f"  {name}: {value if isinstance(value, int) and value > 1 else _yes(value)}")
        if found.experts or found.hidden_experts:
            print(f"  choice of experts: {'shown' if found.experts else 'not shown'}")
        if found.agreement is not None:
            print(f"  largest difference from the logits of Hugging Face: {found.agreement:.2g}")


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(help="A folder written by --out.")],
    full: Full = False,
) -> None:
    """Print the table of a saved result, or the first screen of a saved diagnosis."""
    with one_line_errors():
        card = diagnosis_in(folder)
        if card is not None:
            print(card.full() if full else card)
        else:
            saved = results_in(folder).items()
            print(
                "\n\n".join(
                    str(r) if n == r.experiment else f"{printable(n)}\n{r}" for n, r in saved
                )
            )


def diagnosis_in(folder: Path) -> Diagnosis | None:
    """A saved diagnosis; None where the folder holds single results."""
    from ..results.diagnosis import PAGE, Diagnosis

    return Diagnosis.load(folder) if os.path.isfile(folder / PAGE) else None


def results_in(folder: Path) -> dict[str, ExperimentResult]:
    """The results in a folder by experiment; where one is there twice, with its folder."""
    from ..results.result import ExperimentResult

    parts = sorted(path.parent for path in folder.glob("*/result.json"))
    if os.path.isfile(folder / "result.json") or not parts:
        parts = [folder]
    loaded = [ExperimentResult.load(part) for part in parts]
    counts = Counter(result.experiment for result in loaded)
    return {
        one.experiment if counts[one.experiment] == 1 else f"{one.experiment} ({part.name})": one
        for part, one in zip(parts, loaded, strict=True)
    }


def _yes(value: object) -> str:
    return "yes" if value else "no"
