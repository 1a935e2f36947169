"""HTML pages that need no network: their skeleton, and the libraries and scripts within them.

A library is packed (gzip, base64) and unpacked by the browser's `DecompressionStream`, which all
have since 2023: plotly.js takes 2.0 MB of a page instead of 4.8 MB, CircuitsVis 0.5 instead of 1.3.
`sinklens.NAME` is then a promise that is kept when the library is there.
"""

from __future__ import annotations

import base64
import gzip
import html
import json
import os
from importlib import resources
from pathlib import Path
from typing import Any

from ...core.errors import SinklensError
from ...core.paths import path_of

LEVEL = 6  # 9 saves 0.2 %


def asset(name: str) -> str:
    """A style sheet or script of this folder."""
    return resources.files(__name__).joinpath(name).read_text("utf-8")


def library(name: str, source: str) -> str:
    """A script that holds a JavaScript library; one of a name is enough for a page.

    Args:
        name: What the page calls it.
        source: Its source, which sets a global variable.
    """
    inside = packed(source.encode())
    return f'<script>{asset("library.js")}\nsinklens.library("{name}", "{inside}")</script>'


def packed(content: bytes) -> str:
    """Bytes as text that `sinklens.unpacked` reads."""
    return base64.b64encode(gzip.compress(content, LEVEL, mtime=0)).decode()


def plotly() -> str:
    """The script of plotly.js, as `sinklens.plotly`."""
    from plotly.offline import get_plotlyjs

    return library("plotly", get_plotlyjs())


def in_script(content: Any) -> str:
    """JSON that can stand in a script: no text in it ends the script or begins a comment."""
    return json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def page(title: str, body: str) -> str:
    """A whole page.

    Args:
        title: As text.
        body: As HTML.
    """
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        "<meta name='color-scheme' content='light dark'>"
        "<link rel='icon' href='data:,'>"  # else browsers ask for one
        f"<title>{html.escape(title)}</title><style>{asset('page.css')}</style></head>\n"
        f"<body>{body}<script>{asset('page.js')}</script></body></html>\n"
    )


def require_new(file: str | Path, overwrite: bool) -> Path:
    """The path of a page that may be written.

    Raises:
        SinklensError: The file exists.
    """
    target = path_of(file)
    if target.exists() and not overwrite:
        raise SinklensError(
            f"{target} exists; choose another name, or use --overwrite (overwrite=True)"
        )
    return target


def write_page(content: str, target: Path) -> Path:
    """Write a page completely or not at all.

    Raises:
        SinklensError: It cannot be written.
    """
    partial = target.with_name(f".{target.name}.partial")
    try:
        partial.write_text(content, encoding="utf-8")
        os.replace(partial, target)
    except OSError as error:
        raise SinklensError(f"cannot write {target}: {error}") from error
    return target
