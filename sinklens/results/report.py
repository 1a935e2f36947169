"""One HTML page from results: findings, tables and figures, readable without a network."""

from __future__ import annotations

import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..core.errors import SinklensError
from .result import ExperimentResult


def write_report(
    results: Mapping[str, ExperimentResult],
    file: str | Path,
    *,
    findings: Sequence[str] = (),
    overwrite: bool = False,
) -> Path:
    """Write a page with every result's summary, table, notes and figure.

    Args:
        results: Results by experiment.
        file: The HTML file, which is written completely or not at all.
        findings: The page of a diagnosis, put first.
        overwrite: Replace a file that is there already.

    Raises:
        SinklensError: The file exists, or cannot be written.
    """
    target = Path(file)
    if target.exists() and not overwrite:
        raise SinklensError(
            f"{target} exists; choose another name, or use --overwrite (overwrite=True)"
        )
    parts = [f"<pre>{html.escape(chr(10).join(findings))}</pre>"] if findings else []
    for number, result in enumerate(results.values()):
        # The library for the figures goes into the page once.
        drawn = result.plot().to_html(full_html=False, include_plotlyjs=number == 0)
        parts += [result._repr_html_(), drawn]
    page = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>sinklens</title>"
        "<style>body {font-family: sans-serif; max-width: 75em; margin: 2em auto}"
        "pre {white-space: pre-wrap}</style></head><body>" + "\n".join(parts) + "</body></html>\n"
    )
    partial = target.with_name(f".{target.name}.partial")
    try:
        partial.write_text(page, encoding="utf-8")
        os.replace(partial, target)
    except OSError as error:
        raise SinklensError(f"cannot write {target}: {error}") from error
    return target
