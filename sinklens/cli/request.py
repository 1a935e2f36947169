"""What the user asks a command to run: a model, prompts, settings and an output folder."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import UsageError
from ..core.paths import path_of
from ..core.terminal import status

if TYPE_CHECKING:
    from ..models.prompts import Prompts

Model = Annotated[str, typer.Argument(help="A shipped model, a folder, a .gguf file or a Hub id.")]


def at_home(written: Path | None) -> Path | None:
    """A path given as `--out=~/results`, in which no shell replaces the `~`."""
    return None if written is None else path_of(written)


Text = Annotated[
    Path | None,
    typer.Option(callback=at_home, help="A text file instead of the shipped corpus."),
]
Number = Annotated[
    int | None, typer.Option("--n-prompts", "--n", help="Number of prompts; 64, of a diagnosis 16.")
]
Precision = Annotated[
    str | None, typer.Option(help="full, or quick for a first answer (8 prompts, fewer draws).")
]
Length = Annotated[int, typer.Option(help="Tokens in each prompt, BOS included.")]
Bos = Annotated[bool | None, typer.Option("--bos/--no-bos", help="Whether prompts start with BOS.")]
Seed = Annotated[int, typer.Option(help="Seed of every random draw.")]
Device = Annotated[str | None, typer.Option(help="Device, such as cpu or cuda.")]
Dtype = Annotated[str, typer.Option(help="float32, float64, float16 or bfloat16.")]
Revision = Annotated[str | None, typer.Option(help="A revision of a Hub id.")]
Step = Annotated[int | None, typer.Option(help="A training step of a shipped model.")]
ModelSeed = Annotated[int | None, typer.Option(help="A training seed of a shipped model.")]
Out = Annotated[Path | None, typer.Option(callback=at_home, help="Write results into this folder.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing output.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting, KEY=VALUE; commas separate list items."),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]
Full = Annotated[bool, typer.Option("--full", help="The whole page of a diagnosis.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say how many forward passes and how long, and stop.")
]


@dataclass(frozen=True)
class Source:
    """The model that is asked for.

    Attributes:
        model: A shipped name, a folder, a `.gguf` file or a Hub id.
        device: Its device.
        dtype: Its dtype.
        revision: A revision of a Hub id.
        step: A training step of a shipped model.
        model_seed: A training seed of a shipped model.
    """

    model: str
    device: str | None = None
    dtype: str = "float32"
    revision: str | None = None
    step: int | None = None
    model_seed: int | None = None

    def load(self, quiet: bool) -> Any:
        """Load the model, without loading bars if `quiet` or not in a terminal."""
        silent = quiet or not sys.stderr.isatty()
        with (
            contextlib.redirect_stderr(io.StringIO()) if silent else contextlib.nullcontext(),
            status(f"loading {self.model}", not silent),
        ):
            from ..models import load

            return load(
                self.model,
                device=self.device,
                dtype=self.dtype,
                revision=self.revision,
                step=self.step,
                seed=self.model_seed,
            )


@dataclass(frozen=True)
class Request:
    """What `run` and `diagnose` are asked for.

    Attributes:
        what: The experiment, or `diagnose`.
        source: The model.
        text: A text file instead of the shipped corpus.
        n_prompts: Number of prompts, if the user says it.
        length: Tokens in each prompt.
        bos: Whether prompts start with BOS.
        seed: Seed of every random draw.
        pairs: Settings as `KEY=VALUE`.
        precision: `full` or `quick`, if the user says it.
        out: The output folder.
        overwrite: Whether existing output is replaced.
        quiet: Whether no progress is shown.
    """

    what: str
    source: Source
    text: Path | None
    n_prompts: int | None
    length: int
    bos: bool | None
    seed: int
    pairs: list[str] = field(default_factory=list)
    precision: str | None = None
    out: Path | None = None
    overwrite: bool = False
    quiet: bool = False

    @property
    def shared(self) -> dict[str, Any]:
        """What `run` and `diagnose` take besides settings."""
        return {"seed": self.seed, "progress": False if self.quiet else None}

    def settings(self) -> dict[str, Any]:
        """`KEY=VALUE` pairs as a dictionary.

        Raises:
            UsageError: A pair is none, is given twice, or has an option of its own.
        """
        settings: dict[str, Any] = {}
        for pair in self.pairs:
            key, equals, value = pair.partition("=")
            if not equals or not key:
                raise UsageError(f"--set takes KEY=VALUE, not {pair!r}")
            if key in settings:
                raise UsageError(
                    f"--set {key} is given twice; commas separate list items: "
                    f"--set {key}={settings[key]},{value}"
                )
            settings[key] = value
        for fixed in {"seed", "progress", "out", "overwrite", "precision"} & settings.keys():
            option = "quiet" if fixed == "progress" else fixed
            raise UsageError(f"use --{option} instead of --set")
        return settings if self.precision is None else {**settings, "precision": self.precision}

    def require_inputs(self) -> None:
        """Refuse an output folder that is in use and a text that is not there, before any work.

        Raises:
            SinklensError: There is one.
        """
        if self.out is not None:
            from ..core.storage import require_free

            require_free(self.out, self.overwrite)
        number = 1 if self.n_prompts is None else self.n_prompts
        if number < 1 or self.length < 2:
            raise UsageError(
                f"prompts need n >= 1 and length >= 2, not n={number}, length={self.length}"
            )
        if self.text is not None and not (self.text.is_file() or self.text.is_dir()):
            what = "is no regular file" if self.text.exists() else "does not exist"
            raise UsageError(f"--text {self.text} {what}; give a text file")

    def imports(self) -> contextlib.AbstractContextManager[None]:
        """Say what is going on while torch is imported, which takes seconds."""
        return status(f"loading sinklens for {self.source.model}", False if self.quiet else None)

    def load(self, by_default: Callable[[Any], int]) -> tuple[Any, Prompts]:
        """The model and its prompts.

        Args:
            by_default: How many prompts a model gets where the user does not say it.
        """
        model = self.source.load(self.quiet)
        from ..models.prompts import prompts

        number = by_default(model) if self.n_prompts is None else self.n_prompts
        size = {"n": number, "length": self.length}
        with status("cutting prompts", False if self.quiet else None):
            return model, prompts(model, self.text, bos=self.bos, **size)

    @contextlib.contextmanager
    def kept(self) -> Iterator[bool]:
        """Keep finished work in the output folder, if one is given.

        Yields:
            Whether the same command ended there already and was stopped while it tidied up.
        """
        if self.out is None:
            yield False
            return
        from ..engine import kept

        with kept(self.out, self._as_text(), overwrite=self.overwrite) as finished:
            yield finished

    def _as_text(self) -> list[str]:
        """The request as text, by which a repeated command is recognised."""
        unimportant = ("out", "overwrite", "quiet")
        return [str(getattr(self, f.name)) for f in fields(self) if f.name not in unimportant]
