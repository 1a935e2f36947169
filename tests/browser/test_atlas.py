"""The atlas as a reader has it: from its files, with the network cut."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver.common.keys import Keys

from sinklens.sweep.atlas.site import make_atlas
from tests.browser.chromium import SECONDS, WIDTHS, Browser
from tests.sweep.tables import SHOWN, several

pytestmark = pytest.mark.browser

MASSES = """
const rows = document.querySelectorAll("tbody tr:not([hidden])");
return [...rows].map((row) => row.cells[1].dataset.sort)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The atlas of a table made by hand."""
    base = tmp_path_factory.mktemp("atlas")
    several().to_parquet(base / "effects.parquet")
    return make_atlas(base / "effects.parquet", base / "site").parent


@pytest.fixture
def silent(chromium: Browser) -> Iterator[Browser]:
    """The browser; whatever a test does, nothing fails and nothing is asked for."""
    yield chromium
    assert chromium.failures() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_clipped(width: int, scheme: str, site: Path, silent: Browser) -> None:
    for file in sorted(site.rglob("*.html")):
        silent.open(file, width, scheme)
        silent.ask("for (const folded of document.querySelectorAll('details')) folded.open = true")
        assert silent.overflowing() == [], file
        shown = (
            "return [...document.querySelectorAll('svg')].filter((one) => one.clientWidth).length"
        )
        assert silent.ask(shown) == silent.ask("return document.querySelectorAll('.wide').length")


def test_the_table_is_sorted_by_its_heads(site: Path, silent: Browser) -> None:
    silent.open(site / "index.html")
    button = silent.driver.find_elements("css selector", "thead button")[1]
    for order in ("descending", "ascending"):
        button.send_keys(Keys.ENTER)
        masses = [float(text) for text in silent.ask(MASSES)]
        assert masses == sorted(masses, reverse=order == "descending") and len(masses) == 8
        sorts = "return [...document.querySelectorAll('thead th')].map((head) => head.ariaSort)"
        assert silent.ask(sorts).count(order) == 1 and silent.ask(sorts)[1] == order
    silent.driver.find_elements("css selector", "thead button")[0].click()
    first = "return document.querySelector('tbody th a').textContent"
    assert silent.ask(first) == silent.ask(
        "return [...document.querySelectorAll('tbody th')]"
        ".find((head) => head.dataset.sort === '1').querySelector('a').textContent"
    )


def test_the_table_is_narrowed(site: Path, silent: Browser) -> None:
    silent.open(site / "index.html")
    said = "return document.querySelector('output').textContent"
    assert silent.ask(said) == "8 of 8 shown"
    search = silent.driver.find_element("css selector", "input[type=search]")
    search.send_keys("STEP trained")
    assert silent.ask(said) == "2 of 8 shown"
    search.send_keys(Keys.ENTER)  # sends nothing
    search.clear()
    search.send_keys("alert(1)")
    assert silent.ask(said) == "1 of 8 shown"
    search.clear()
    choice = silent.driver.find_element("css selector", "select[data-name=family]")
    silent.ask("arguments[0].focus()", choice)
    choice.send_keys(Keys.ARROW_DOWN)
    chosen = silent.ask("return arguments[0].value", choice)
    assert chosen == sorted([SHOWN, "llama"])[0]
    assert silent.ask(said) == "1 of 8 shown"


def test_links_lead_to_pages_and_back(site: Path, silent: Browser) -> None:
    silent.open(site / "index.html", 390)
    for name in (SHOWN, "m3"):
        links = silent.driver.find_elements("css selector", "tbody a")
        (link,) = [one for one in links if one.get_attribute("textContent") == name]
        silent.ask("arguments[0].click()", link)
        silent.wait("return document.documentElement.dataset.ready !== undefined")
        assert silent.ask("return document.querySelector('h1').textContent") == name
        silent.driver.find_element("css selector", "nav a").click()
        silent.wait("return document.querySelector('form.filters') !== null")


def test_downloads_are_saved(site: Path, chromium: Browser, tmp_path: Path) -> None:
    chromium.open(site / "index.html")
    chromium.command("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    links = chromium.driver.find_elements("css selector", "a[download]")
    files = {link.get_attribute("href").rpartition("/")[2]: link for link in links}
    assert files.keys() == {file.name for file in (site / "data").iterdir()}
    for name, link in files.items():
        link.send_keys(Keys.ENTER)
        end = time.perf_counter() + SECONDS
        while not (tmp_path / name).is_file():
            assert time.perf_counter() < end, name
            time.sleep(0.05)
        assert (tmp_path / name).read_bytes() == (site / "data" / name).read_bytes()
    assert chromium.ask("return location.pathname").endswith("index.html")
    assert set(chromium.failures()) <= {"failed: net::ERR_ABORTED"}  # a page that is saved
