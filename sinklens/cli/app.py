"""The `sinklens` command itself, and how its commands end."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from .. import __version__
from ..core.errors import SinklensError, UsageError

VERSION = "Print the version."

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> bool:
    if wanted:
        print(f"sinklens {__version__}")
        raise typer.Exit()
    return wanted


@app.callback()
def sinklens(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help=VERSION),
    ] = False,
) -> None:
    """Find the attention sinks of a transformer and measure what removing them does."""


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn errors into one line and a status: 1 not possible on this model, 2 wrong usage."""
    try:
        yield
    except SinklensError as error:
        print(f"sinklens: {error}", file=sys.stderr)
        raise typer.Exit(2 if isinstance(error, UsageError) else 1) from None
    except KeyboardInterrupt:
        print("sinklens: stopped", file=sys.stderr)
        raise typer.Exit(130) from None
