"""How an experiment works, for pages: its question, its source, and its module's docstring."""

from __future__ import annotations

import html
import inspect
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CITED = re.compile(r"\b(\d{4}\.\d{4,5})\b")


@dataclass(frozen=True)
class Method:
    """What an experiment declares about itself.

    Attributes:
        question: One line.
        paper: What it follows, by author, year and arXiv number.
        text: The docstring of its module, with formulas.
        defaults: Its settings by default, as results record them.
    """

    question: str
    paper: str
    text: str
    defaults: Mapping[str, Any] = field(default_factory=dict)


def as_html(text: str) -> str:
    """A docstring as HTML: paragraphs, lists, formulas as they are set, papers as links.

    Args:
        text: As Python has it, its first line not indented.
    """
    parts = re.split(r"\n\s*\n", inspect.cleandoc(text))
    return "".join(map(_part, parts))


def linked(text: str) -> str:
    """Text as HTML with links to the papers of arXiv that it names."""
    return CITED.sub(r'<a href="https://arxiv.org/abs/\1">\1</a>', html.escape(text))


def _part(part: str) -> str:
    """A paragraph, a list with its first line before it, or what is indented as it stands."""
    if part.startswith("    "):
        return f"<pre>{linked(textwrap.dedent(part))}</pre>"
    lead, *items = re.split(r"(?m)^- ", part)
    if items:
        listed = "".join(f"<li>{_line(item)}</li>" for item in items)
        return f"{_paragraph(lead)}<ul>{listed}</ul>"
    first, _, rest = part.partition("\n    ")
    return _paragraph(first) + (
        f"<pre>{linked(textwrap.dedent('    ' + rest))}</pre>" if rest else ""
    )


def _paragraph(text: str) -> str:
    return f"<p>{_line(text)}</p>" if text.strip() else ""


def _line(text: str) -> str:
    """Running text, its code marked."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", linked(" ".join(text.split())))
