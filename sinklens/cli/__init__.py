"""The command line. It imports nothing heavy before a command needs it."""

from __future__ import annotations

import warnings

from ..core.terminal import printable
from .app import app as app
from .looking import check as check
from .looking import list_experiments as list_experiments
from .looking import models as models
from .looking import show as show
from .reporting import report as report
from .running import diagnose as diagnose
from .running import run as run
from .sweeping import atlas as atlas
from .sweeping import merge as merge
from .sweeping import sweep as sweep


def main() -> None:
    """The entry point of the `sinklens` command."""
    warnings.formatwarning = _one_line
    app()


def _one_line(message: Warning | str, *_: object, **__: object) -> str:
    """A warning as the command line shows it."""
    return f"sinklens: {printable(str(message))}\n"
