"""Pages as a reader has them: two widths, light and dark, on paper, with the network cut."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.keys import Keys

import sinklens
from sinklens.hooks import replace_bos_embedding
from sinklens.results.report import Report
from sinklens.runner.methods import methods_of
from sinklens.views import views_of
from tests.browser.chromium import WIDTHS, Browser
from tests.results.test_report import HOSTILE
from tests.test_views import ODD, view_of

pytestmark = pytest.mark.browser

READABLE = 5.0
ROOM = 6  # a busy machine
LIGHT, DARK = "rgb(255, 255, 255)", "rgb(22, 22, 22)"

OVERPRINTED = """
const found = [];
for (const figure of document.querySelectorAll(".figure")) {
  const texts = [...figure.querySelectorAll("text")].filter((text) => text.textContent.trim());
  const boxes = texts.map((text) => text.getBoundingClientRect());
  for (let i = 0; i < texts.length; i++) for (let j = 0; j < i; j++) {
    const [a, b] = [boxes[i], boxes[j]];
    const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (across > 2 && down > 3) found.push([texts[i].textContent, texts[j].textContent]);
  }
}
return found;
"""
DRAWN = """
return [...document.querySelectorAll(".figure")].map((figure) => [
  figure.querySelectorAll(".main-svg .trace, .main-svg .hm").length,
  figure.querySelector(".main-svg").getBoundingClientRect().width,
]);
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of `rope`, with few prompts."""
    model = sinklens.load("rope")
    prompts = sinklens.prompts(model, n=4, length=32)
    card = sinklens.diagnose(model, prompts, draws=2, null_models=0, progress=False)
    views = views_of(model, prompts[0])
    made = Report(card.results, card, methods_of(card.results), views)
    return made.save(tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An attention view of all 64 tokens, before and after."""
    model = sinklens.load("rope")
    edit = replace_bos_embedding(model, with_="mean")
    made = sinklens.attention_view(model, sinklens.prompts(model, n=1, length=64), edit=edit)
    return made.save(tmp_path_factory.mktemp("view") / "view.html")


@pytest.fixture
def silent(chromium: Browser) -> Iterator[Browser]:
    """The browser; whatever a test does, nothing fails and nothing is asked for."""
    yield chromium
    assert chromium.failures() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["report", "view"])
def test_nothing_is_clipped(
    name: str, width: int, scheme: str, silent: Browser, request: pytest.FixtureRequest
) -> None:
    seconds = silent.open(request.getfixturevalue(name), width, scheme)
    assert seconds < READABLE * ROOM
    assert silent.overflowing() == []
    silent.ask("for (const folded of document.querySelectorAll('details')) folded.open = true")
    assert silent.overflowing() == []
    assert silent.ask(OVERPRINTED) == []
    background = silent.ask("return getComputedStyle(document.body).backgroundColor")
    assert background == {"light": LIGHT, "dark": DARK}[scheme]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(scheme: str, report: Path, silent: Browser) -> None:
    """Also in figures, whose text has the colour of the page's, against its background."""
    silent.open(report, scheme=scheme)
    colours = silent.ask(
        "const fill = (text) => getComputedStyle(text).fill;"
        "const texts = [...document.querySelectorAll('.figure text:not(.heatmap-label *)')];"
        "return [...new Set(texts.map(fill))]"
    )
    background = luminance({"light": LIGHT, "dark": DARK}[scheme])
    for colour in colours:
        lighter, darker = sorted([luminance(colour), background], reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) > 4.5, colour


def luminance(colour: str) -> float:
    """Of `rgb(...)`, as the Web Content Accessibility Guidelines have it."""
    channels = [int(number) / 255 for number in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_figures_are_drawn_on_the_screen_and_on_paper(
    report: Path, silent: Browser, tmp_path: Path
) -> None:
    silent.open(report)
    on_screen = silent.ask(DRAWN)
    assert len(on_screen) == 5 and all(traces for traces, _ in on_screen)
    pages = silent.pdf(tmp_path / "report.pdf").read_bytes()
    assert len(re.findall(rb"/Type\s*/Page\b", pages)) > 4
    silent.command("Emulation.setEmulatedMedia", media="print")
    silent.ask("dispatchEvent(new Event('beforeprint'))")
    printed = silent.ask(DRAWN)
    assert [traces for traces, _ in printed] == [traces for traces, _ in on_screen]
    assert all(width <= 681 for _, width in printed)
    assert silent.ask("return document.querySelectorAll('details:not([open])').length") == 0
    silent.ask("dispatchEvent(new Event('afterprint'))")
    silent.command("Emulation.setEmulatedMedia", media="")
    assert silent.ask("return document.querySelectorAll('details[open]').length") == 0


def test_an_attention_view_reacts_to_the_pointer(view: Path, silent: Browser) -> None:
    silent.open(view)
    silent.wait("return document.querySelectorAll('canvas').length === 2")
    canvas = "document.querySelector('canvas')"
    silent.wait(f"return {canvas}.getBoundingClientRect().height > 100")
    before = picture(silent, canvas)
    box = silent.ask(f"return {canvas}.getBoundingClientRect().toJSON()")
    x, y = box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.6
    for step in (0, 3):
        silent.command("Input.dispatchMouseEvent", type="mouseMoved", x=x + step, y=y)
    silent.wait(f"return {canvas}.toDataURL() !== {before!r}")


def picture(browser: Browser, canvas: str) -> str:
    """A canvas, when it is drawn whole."""
    last = ""
    while (drawn := browser.ask(f"return {canvas}.toDataURL()")) != last:
        last = drawn
        browser.ask("return new Promise((resolve) => setTimeout(resolve, 200))")
    return last


def test_heads_are_chosen_by_keyboard(view: Path, silent: Browser) -> None:
    silent.open(view)
    shown = (
        "return [...document.querySelectorAll('[data-side] > div:not([hidden])')]"
        ".map((pattern) => pattern.getAttribute('aria-label'))"
    )
    assert [label.split(", ")[1] for label in silent.ask(shown)] == ["before", "after"]
    first = silent.ask(shown)
    silent.driver.find_element("css selector", "input:checked").send_keys(Keys.ARROW_RIGHT)
    second = silent.ask(shown)
    assert not set(first) & set(second) and len(second) == 2
    silent.wait("return document.querySelectorAll('canvas').length === 4")


def test_the_report_is_read_by_keyboard(report: Path, silent: Browser) -> None:
    silent.open(report)
    focused = "return document.activeElement"
    page = silent.driver.find_element("css selector", "body")
    page.send_keys(Keys.TAB)
    assert silent.ask(f"{focused}.textContent") == "Skip to the results"
    for _ in range(2):
        silent.ask(focused).send_keys(Keys.TAB)
    silent.ask(focused).send_keys(Keys.ENTER)
    silent.wait("return location.hash === '#experiment-1'")
    folded = silent.driver.find_element("css selector", "#experiment-1 summary")
    folded.send_keys(Keys.ENTER)
    assert silent.ask("return arguments[0].parentElement.open", folded)


def test_the_pointer_finds_a_head_in_a_figure(report: Path, silent: Browser) -> None:
    silent.open(report)
    silent.ask("document.querySelector('#experiment-1 .figure').scrollIntoView()")
    box = silent.ask(
        "return document.querySelector('#experiment-1 .figure .nsewdrag')"
        ".getBoundingClientRect().toJSON()"
    )
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    for step in (0, 3):
        silent.command("Input.dispatchMouseEvent", type="mouseMoved", x=x + step, y=y)
    silent.wait("return document.querySelector('.hoverlayer .hovertext') !== null")


def test_hostile_text_runs_nothing(silent: Browser, tmp_path: Path) -> None:
    import torch

    size = len(ODD)
    patterns = torch.full((2, size, size), 1 / size)
    shown = view_of(list(ODD), patterns, causal=True, said=HOSTILE)  # tokens as they are
    silent.open(shown.save(tmp_path / "view.html"))
    assert silent.ask("return document.querySelector('figcaption').textContent") == "clean run"
    text: Any = silent.ask("return document.querySelector('.sinklens-attention p').textContent")
    assert text == f"a view {HOSTILE}"
