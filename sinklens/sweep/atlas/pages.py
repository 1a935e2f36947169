"""The pages of an atlas: what all have in common, the table of models, the first page."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from ...core.terminal import printable
from ...results.page import asset, packed, page
from ...results.wording import written
from .checkpoints import Cell, Checkpoint
from .comparing import ATTRIBUTES, BOS, SIZE, UNKNOWN
from .figure import in_words
from .headlines import Headline, Measured

REORDERING = re.compile("[\u202a-\u202e\u2066-\u2069]")
"""What would show the text after it in another order, which stands as its code."""
TITLE = "Atlas of attention sinks"
FIRST = "index.html"
MODELS, DATA = "models", "data"
DOWNLOADS = {
    "effects.parquet": "all effects (Parquet)",
    "effects.csv": "all effects (CSV)",
    "models.csv": "the table of models (CSV)",
    "models.json": "the table of models (JSON)",
}
FILTERED = ("position_encoding", "norm_placement", "bos", "family")
"""Attributes by which the table is narrowed."""


@dataclass(frozen=True)
class Atlas:
    """What pages are made of.

    Attributes:
        measured: The measures.
        checkpoints: The lines.
        files: By model the name of its page.
        comparisons: By attribute the name of its page.
        versions: The versions of sinklens that measured.
        left_out: Rows without a finite value.
    """

    measured: Sequence[Measured]
    checkpoints: Sequence[Checkpoint]
    files: Mapping[str, str]
    comparisons: Mapping[str, str]
    versions: Sequence[str]
    left_out: int


def framed(atlas: Atlas, title: str, about: str, sections: Mapping[str, str], up: str = "") -> str:
    """A page with the links of all pages.

    Args:
        atlas: The atlas.
        title: As text.
        about: As text, below the title.
        sections: By title as text their content as HTML.
        up: The way to the folder of the first page.
    """
    links = {f"{up}{FIRST}": "Models"}
    links |= {f"{up}{file}": f"By {ATTRIBUTES[name]}" for name, file in atlas.comparisons.items()}
    listed = "".join(
        f'<li><a href="{quote(link)}">{html.escape(words)}</a></li>'
        for link, words in links.items()
    )
    parts = "".join(
        f'<section id="part-{number}"><h2>{html.escape(words)}</h2>{content}</section>'
        for number, (words, content) in enumerate(sections.items(), 1)
    )
    content = page(
        title,
        f"<style>{asset('atlas.css')}</style>"
        '<a class="skip" href="#part-1">Skip to the content</a>'
        f"<header><h1>{html.escape(title)}</h1><p>{html.escape(about)}</p></header>"
        f'<nav aria-label="Pages"><ul>{listed}</ul></nav><main>{parts}</main>'
        f"<script>{asset('library.js')}\n{asset('atlas.js')}</script>",
    )
    return printable(REORDERING.sub(lambda found: ascii(found[0])[1:-1], content))


def first_page(atlas: Atlas, data: Mapping[str, bytes]) -> str:
    """The table of all models, what its columns are, and the downloads.

    Args:
        atlas: The atlas.
        data: The downloads by name, of which the page holds those that a browser would open.
    """
    models, lines = len(atlas.files), len(atlas.checkpoints)
    versions = ", ".join(atlas.versions)
    about = f"{_count(models, 'model')}, {_count(lines, 'checkpoint')}; measured by sinklens "
    note = ""
    if atlas.left_out:
        note = f"<p>Left out: {_count(atlas.left_out, 'row')} without a finite value.</p>"
    columns = "".join(
        f"<dt>{html.escape(one.headline.title)}</dt><dd>{html.escape(one.about())}</dd>"
        for one in atlas.measured
    )
    read = (
        "<p>Means over prompts, averaged over seeds and texts, with 95 % intervals. Grey: the "
        "interval holds the null. A name leads to the page of the model.</p>"
    )
    downloads = "".join(
        f'<li><a href="{DATA}/{name}" download{_inside(name, data[name])}>{html.escape(words)}</a>'
        f" <small>{len(data[name]) / 1000:,.0f} kB</small></li>"
        for name, words in DOWNLOADS.items()
    )
    sections = {
        "Models": f"{_filters(atlas)}{table(atlas, atlas.checkpoints)}",
        "Columns": f"{read}<dl>{columns}</dl>{note}",
        "Downloads": f"<ul>{downloads}</ul>",
    }
    return framed(atlas, TITLE, f"{about}{versions}.", sections)


def _inside(name: str, content: bytes) -> str:
    return f' data-packed="{packed(content)}"' if name.endswith(".json") else ""


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _filters(atlas: Atlas) -> str:
    """A search for words, and a choice for each attribute that differs."""
    choices = []
    for name in FILTERED:
        values = sorted({value_of(one, name) for one in atlas.checkpoints})
        if len(values) > 1:
            options = "".join(
                f'<option value="{html.escape(value)}">{html.escape(value)}</option>'
                for value in values
            )
            choices.append(
                f"<label>{html.escape(ATTRIBUTES[name])} "
                f'<select data-name="{name}"><option value="">all</option>{options}</select>'
                "</label>"
            )
    return (
        '<form class="filters" role="search"><label>search '
        '<input type="search" autocomplete="off" spellcheck="false"></label>'
        f'{"".join(choices)}<output aria-live="polite"></output></form>'
    )


def table(atlas: Atlas, checkpoints: Sequence[Checkpoint], *, linked: bool = True) -> str:
    """A table of checkpoints that is sorted by its heads.

    Args:
        atlas: The atlas.
        checkpoints: The lines.
        linked: Whether models lead to their pages and stand with what kind they are; else
            checkpoints lead to their part of the page.
    """
    kinds = [*ATTRIBUTES] if linked else []
    first = "model" if linked else "checkpoint"
    titles = [one.headline.title for one in atlas.measured]
    words_of = [first, *titles, *(ATTRIBUTES[name] for name in kinds)]
    head = "".join(
        f'<th scope="col" aria-sort="none"><button type="button">{html.escape(words)}</button></th>'
        for words in words_of
    )
    body = "".join(
        _line(atlas, one, kinds, number, linked) for number, one in enumerate(checkpoints, 1)
    )
    return (
        '<div class="scrolls" tabindex="0" role="region" aria-label="Table of models">'
        f'<table class="atlas"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _line(atlas: Atlas, one: Checkpoint, kinds: Sequence[str], number: int, linked: bool) -> str:
    if linked:
        name = f'<a href="{MODELS}/{quote(atlas.files[one.model])}">{html.escape(one.model)}</a>'
        name += f" <small>{html.escape(one.name)}</small>" if one.name else ""
    else:
        name = f'<a href="#{anchor(number)}">{html.escape(title_of(one))}</a>'
    cells = [f'<th scope="row" data-sort="{number}">{name}</th>']
    cells += [cell(item.headline, one.cells.get(item.headline.key)) for item in atlas.measured]
    for kind in kinds:
        size = one.known[SIZE] if kind == SIZE else None
        sort = "" if size is None else f' data-sort="{size}"'
        cells.append(f'<td data-name="{kind}"{sort}>{html.escape(value_of(one, kind))}</td>')
    return f"<tr>{''.join(cells)}</tr>"


def anchor(number: int) -> str:
    """The name of the part of a page that is about a checkpoint."""
    return f"part-{number + 1}"


def title_of(one: Checkpoint) -> str:
    """What names a checkpoint among those of its model."""
    return one.name or one.model


def value_of(one: Checkpoint, attribute: str) -> str:
    """An attribute in words."""
    value: Any = one.known[attribute]
    if value is None:
        return UNKNOWN
    if attribute == SIZE:
        return in_words(float(value))
    return BOS[bool(value)] if attribute == "bos" else str(value)


def cell(headline: Headline, measured: Cell | None) -> str:
    """A measure of a checkpoint, its interval, null and reference."""
    if measured is None:
        return '<td data-sort=""></td>'
    form = headline.form
    beside = f"null {html.escape(written(measured.null, form))}"
    if measured.reference is not None and headline.against is not None:
        words = headline.against.replace("_", " ")
        beside += f"<br>{html.escape(f'{words} {written(measured.reference, form)}')}"
    grey = "" if measured.is_beyond_null else ' class="grey"'
    return (
        f'<td data-sort="{measured.value!r}"{grey}><b>{measured.text(form)}</b> '
        f"{measured.interval(form)}<small>{beside}</small></td>"
    )
