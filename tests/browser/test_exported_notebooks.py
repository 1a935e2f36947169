"""Notebooks as `jupyter nbconvert --to html` leaves them, opened with the network cut.

nbconvert's own page asks for require.js, MathJax and Mermaid, whatever the notebook; these are
replaced by nothing here (as `docs/howto/results.md` has it), so that what is asked for besides is a
fault of the notebook. The text of all, and with what is shown the first, under `--heavy` each; that
they keep their figures is in `tests/test_notebooks.py`.
"""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbconvert import HTMLExporter

from tests.browser.chromium import WIDTHS, Browser
from tests.test_notebooks import NOTEBOOKS, PLOTLY, every_notebook, execute

pytestmark = pytest.mark.browser

NOTHING = "data:,"
READY = (
    "<script>addEventListener('load', () => document.documentElement.dataset.ready = 1)</script>"
)
DRAWN = """
const figures = document.querySelectorAll(".js-plotly-plot .main-svg, .jp-RenderedSVG img");
const outputs = new Set([...figures].map((figure) => figure.closest(".jp-OutputArea-output")));
return [...outputs].map((output) => output.getBoundingClientRect().height);
"""
CUT = """
const page = document.querySelector("main").getBoundingClientRect();
const within = (element) => element.closest(".jp-OutputArea-output");  // which scrolls if it has to
const texts = [...document.querySelectorAll("h1, h2, h3, p, li, summary")];
const figures = document.querySelectorAll(".js-plotly-plot .main-svg, .jp-RenderedSVG img");
return [...texts.filter((text) => !within(text)), ...figures]
  .filter((element) => element.getBoundingClientRect().right > page.right + 1)
  .filter((element) => !within(element) || getComputedStyle(within(element)).overflowX !== "auto")
  .map((element) => element.outerHTML.slice(0, 120));
"""


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(path, marks=[pytest.mark.heavy] if number else [], id=path.stem)
        for number, path in enumerate(NOTEBOOKS)
    ],
)
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, int]:
    """The page of a notebook that ran, and how many figures it holds."""
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as monkeypatch:
        ran = execute(request.param, folder, monkeypatch)
    return export(ran, folder / "notebook.html")


def export(ran: nbformat.NotebookNode, page: Path) -> tuple[Path, int]:
    exporter = HTMLExporter(
        mathjax_url=NOTHING, require_js_url=NOTHING, mermaid_js_url=NOTHING, sanitize_html=False
    )
    text, _ = exporter.from_notebook_node(ran)
    page.write_text(text.replace("<head>", f"<head>{READY}", 1), "utf-8")
    outputs = [output for cell in ran.cells for output in cell.get("outputs", [])]
    return page, sum(PLOTLY in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("width", WIDTHS)
def test_an_exported_notebook_is_whole(
    exported: tuple[Path, int], width: int, chromium: Browser
) -> None:
    page, figures = exported
    chromium.open(page, width)
    heights = chromium.ask(DRAWN)
    assert len(heights) >= figures > 0 and min(heights) > 100
    assert chromium.ask("return document.querySelectorAll('table').length") > 0
    chromium.ask("for (const folded of document.querySelectorAll('details')) folded.open = true")
    assert chromium.ask(CUT) == []
    assert chromium.failures() == []


@every_notebook
def test_the_text_of_a_notebook_is_whole(path: Path, tmp_path: Path, chromium: Browser) -> None:
    page, _ = export(nbformat.read(path, as_version=4), tmp_path / "notebook.html")
    for width in WIDTHS:
        chromium.open(page, width)
        chromium.ask("for (const folded of document.querySelectorAll('details')) folded.open = 1")
        assert chromium.ask(CUT) == []
        assert chromium.failures() == []
