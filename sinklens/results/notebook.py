"""A result and a diagnosis as HTML for Jupyter: verdict and figure first, all else folded.

It needs no program and no network. The figure is a picture (`drawing.to_svg`), which pages of
repositories and exported notebooks show too; styles stand on the elements themselves, since those
that stand apart are dropped from notebooks that are not trusted.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from .drawing import draw, overview_pictures, to_svg
from .figures import from_json
from .record import Record
from .shown import Shown, shown
from .table import by_size, text_of

VERDICT, PICTURE = 3, 760
ON_DEMAND = ["q", "q (difference)", "with random weights"]
WRAP = "white-space: pre-wrap"


def result_html(result: Record, notes: Sequence[str]) -> str:
    """A result: at most three sentences, the figure and the table; the rest folded.

    Args:
        result: The result.
        notes: The notes to its table.
    """
    first, rest = result.summary[:VERDICT], result.summary[VERDICT:]
    more = folded(f"{len(rest)} more", sentences(rest)) if rest else ""
    return (
        f"<h4>{html.escape(result.experiment)}</h4>{sentences(first)}{more}"
        f"{figure_html(result)}{short_table(result).html()}{below(result, notes)}"
    )


def figure_html(result: Record) -> str:
    """The figure as a picture; how to see it where it cannot be one."""
    picture = to_svg(draw(from_json(result.figure), result, width=PICTURE))
    return f"<div>{picture}</div>" if picture else "<p>The figure: <code>.plot()</code></p>"


def short_table(result: Record) -> Shown:
    """The largest effects first, without p and q, which `table()` has."""
    lines = by_size(result)
    table = text_of(lines)
    hidden = [name for name in ON_DEMAND if name in table]
    return shown(table.drop(columns=hidden), [line.is_grey for line in lines])


def below(result: Record, notes: Sequence[str]) -> str:
    """Notes, settings and where the numbers come from, folded."""
    settings = {name: value for name, value in result.settings.items() if name != "notes"}
    return "".join(
        (
            folded("Notes", sentences(notes)),
            folded("Settings", as_text(settings)),
            folded("Model, prompts and versions", as_text(result.provenance)),
        )
    )


def diagnosis_html(
    results: Mapping[str, Record],
    screen: Sequence[str],
    rows: str,
    page: Sequence[str],
    tables: Mapping[str, str],
) -> str:
    """A diagnosis: its first screen, its rows and the overview; findings and results folded.

    Args:
        results: Results by experiment.
        screen: The lines of the first screen.
        rows: The table of the rows that it rests on, as HTML.
        page: All findings.
        tables: Each result as HTML.
    """
    verdict, *lines = (html.escape(line) for line in screen)
    rest = html.escape("\n".join(page))
    return (
        f"<h4>{verdict}</h4><pre style='{WRAP}'>{chr(10).join(lines)}</pre>{rows}"
        f"{overview_html(results)}"
        + folded("All findings", f"<pre style='{WRAP}'>{rest}</pre>")
        + "".join(folded(name, table) for name, table in tables.items())
    )


def overview_html(results: Mapping[str, Record]) -> str:
    """The panels of the overview, beside each other where there is room."""
    pictures = "".join(f"<div>{picture}</div>" for picture in overview_pictures(results))
    return f"<div style='display: flex; flex-wrap: wrap; gap: 8px'>{pictures}</div>"


def sentences(lines: Sequence[str]) -> str:
    """Sentences as a list."""
    return f"<ul>{''.join(f'<li>{html.escape(line)}</li>' for line in lines)}</ul>"


def folded(summary: str, content: str) -> str:
    """What is opened by a click."""
    return f"<details><summary>{html.escape(summary)}</summary>{content}</details>"


def as_text(content: Mapping[str, Any]) -> str:
    """Names and values, one a line."""
    lines = (f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in content.items())
    return f"<pre style='{WRAP}'>{html.escape(chr(10).join(lines))}</pre>"
