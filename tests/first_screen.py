"""The picture in the README: `python -m tests.first_screen` draws it anew.

It is what `sinklens diagnose` prints for `rope`, line by line, and the overview of the same
diagnosis below it. The text is text, so that it can be searched and is compared with what is
printed (`tests.test_docs`).
"""

from __future__ import annotations

import html
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import sinklens
from sinklens.results.drawing import to_svg

PICTURE = Path(__file__).parents[1] / "docs" / "assets" / "first_screen.svg"
COMMAND = "$ sinklens diagnose"
WIDTH, EDGE, LINE, LETTER = 1000, 12, 20, 8.4
STYLE = """
svg { color: #1f2328; background: #ffffff }
.screen { font: 14px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; fill: currentColor }
.verdict { font-weight: bold }
@media (prefers-color-scheme: dark) { svg { color: #e6edf3; background: #161616 } }
"""


def picture(card: sinklens.Diagnosis) -> str:
    """The first screen of a diagnosis and its overview as SVG."""
    printed = [COMMAND, *str(card).split("\n")]
    rows = [
        f'<text x="{EDGE}" y="{EDGE + LINE * (number + 1)}" class="{kind}" xml:space="preserve" '
        f'textLength="{LETTER * len(line):.1f}">{html.escape(line)}</text>'
        for number, line in enumerate(printed)
        for kind in ["screen verdict" if number == 1 else "screen"]
    ]
    overview = to_svg(card.plot(width=WIDTH, title=""))
    assert overview is not None
    above = 2 * EDGE + LINE * len(printed)
    inner = ElementTree.fromstring(overview)
    height = above + int(inner.attrib["height"])
    placed = overview.replace("<svg ", f'<svg y="{above}" ', 1)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}"><style>{STYLE}</style>'
        f"{''.join(rows)}{placed}</svg>\n"
    )


def without_time(text: str) -> str:
    """What is printed, without how long it took, which no two runs share."""
    return re.sub(r"; \d+ s;", ";", text)


def text_of(svg: str) -> str:
    """What is printed in a picture."""
    rows = ElementTree.fromstring(svg).findall("{*}text")
    first, *printed = ("".join(row.itertext()) for row in rows)
    assert first == COMMAND
    return "\n".join(printed)


if __name__ == "__main__":
    model = sinklens.load("rope")
    PICTURE.write_text(picture(sinklens.diagnose(model)), "utf-8")
    print(PICTURE.name)
