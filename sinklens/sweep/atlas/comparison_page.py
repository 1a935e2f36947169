"""The page of one attribute: every measure by it, each with a figure and what can be said."""

from __future__ import annotations

import html
from collections.abc import Sequence

from ...results.notebook import folded, sentences
from ...results.wording import written
from .comparing import ATTRIBUTES, SIZE, Comparison
from .figure import in_words, pictures
from .pages import Atlas, framed


def comparison_page(atlas: Atlas, attribute: str, found: Sequence[Comparison]) -> str:
    """The page.

    Args:
        atlas: The atlas.
        attribute: The column.
        found: Every measure by it.
    """
    about = (
        "The unit is the model, by its last checkpoint; seeds and texts are averaged. Pooled "
        "effects are random-effects means over at least five models; intervals are over models."
    )
    parts = {one.measured.headline.title: _part(one) for one in found}
    return framed(atlas, f"Sinks by {ATTRIBUTES[attribute]}", about, parts)


def _part(one: Comparison) -> str:
    about = html.escape(one.measured.about())
    return (
        f'<p class="grey">{about}</p>{sentences(one.sentences)}{pictures(one)}'
        f"{folded('The numbers', _numbers(one))}"
    )


def _numbers(one: Comparison) -> str:
    """The models of the figure, for those who do not see it."""
    form = one.measured.headline.form.removeprefix("+")
    lines = []
    for unit in one.units.itertuples(index=False):
        value = getattr(unit, one.attribute)
        said = in_words(float(value)) if one.attribute == SIZE else str(value)
        low, high = (written(end, form) for end in (unit.ci_low, unit.ci_high))
        cells = (str(unit.label), said, written(unit.effect, f"+{form}"), f"[{low}, {high}]")
        lines.append(f"<tr>{''.join(f'<td>{html.escape(text)}</td>' for text in cells)}</tr>")
    heads = ("model", ATTRIBUTES[one.attribute], "effect", "95 % CI")
    head = "".join(f'<th scope="col">{html.escape(text)}</th>' for text in heads)
    return (
        f'<div class="scrolls"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )
