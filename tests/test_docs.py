"""README, AGENTS and docs: their Python runs, their numbers are measured, their site is complete.

The Python blocks of a page are one session, offline, in an empty folder. A block that needs more
says so in its title, which readers see: ```` ```python title="needs a GPU" ````.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

import sinklens
from sinklens.runner import registry
from tests.first_screen import PICTURE, text_of, without_time
from tests.numbers import assert_same_text

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "AGENTS.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python(?P<title>[^\n]*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)
NEEDS = {"needs a GPU", "needs the Hub", "needs SAELens", "needs duckdb and polars"}


def blocks(page: Path) -> list[tuple[int, str, str]]:
    """Line, title and code of each Python block."""
    text = page.read_text("utf-8")
    found = []
    for match in BLOCK.finditer(text):
        title = match["title"].strip().removeprefix("title=").strip('"')
        found.append((text[: match.start()].count("\n") + 1, title, match["code"]))
    return found


def session(page: Path, monkeypatch: pytest.MonkeyPatch, folder: Path) -> ModuleType:
    """The names that a page defines when its blocks are run one after the other."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(registry, "_experiments", dict(registry.all_experiments()))
    module = ModuleType("page_of_the_docs")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for line, title, code in blocks(page):
        if not title:
            exec(compile("\n" * line + code, str(page), "exec"), module.__dict__)
    return module


WITH_CODE = [page for page in PAGES if blocks(page)]


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_python_of_a_page_runs(
    page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ran = session(page, monkeypatch, tmp_path)
    if page.name == "README.md":
        assert f"]({PICTURE.relative_to(ROOT)})" in page.read_text("utf-8")
        drawn = text_of(PICTURE.read_text("utf-8"))
        assert_same_text(without_time(str(ran.card)), without_time(drawn))


def test_a_block_that_is_not_run_says_what_it_needs() -> None:
    titles = {title for page in PAGES for _, title, _ in blocks(page) if title}
    assert titles == NEEDS
    assert len(WITH_CODE) >= 10


def test_links_between_pages_lead_somewhere() -> None:
    """As they are read in a checkout; pages that the site generates are checked by its build."""
    generated = re.compile(
        r"(experiments|changelog|contributing|assistants)\.md|tutorials/.*|"
        r"reference/(index|hooks|probes|commands)\.md|atlas/index\.html"
    )
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:\s]+)\)", page.read_text("utf-8")):
            target = (page.parent / link).resolve()
            inside = target.relative_to(ROOT / "docs") if "docs" in target.parts else target
            assert target.exists() or generated.fullmatch(str(inside)), f"{page.name}: {link}"


def test_the_readme_is_one_screen() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 70


def test_the_citation_is_of_this_version() -> None:
    assert f"\nversion: {sinklens.__version__}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
