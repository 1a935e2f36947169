"""Headless Chromium without a network, for the pages that sinklens writes.

Debian's packages `chromium` and `chromium-driver`, driven by Selenium. Every request that is not
for the page itself fails, and is found in the log.
"""

from __future__ import annotations

import base64
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

WIDTHS = (1280, 390)
HEIGHT = 900
SECONDS = 20.0
"""How long a page may take to be ready on a busy machine."""

OVERFLOWING = """
const scrolls = (element) => element && element !== document.body &&
  (/auto|scroll/.test(getComputedStyle(element).overflowX) || scrolls(element.parentElement));
const width = document.documentElement.clientWidth;
const found = [];
if (document.documentElement.scrollWidth > width) found.push("the page");
for (const element of document.body.querySelectorAll("*")) {
  const box = element.getBoundingClientRect();
  if (!box.width || scrolls(element.parentElement)) continue;
  if (box.right <= width + 1 && (box.left >= -1 || box.right <= 0)) continue;
  found.push(element.outerHTML.slice(0, 120));
}
return found;
"""


class Browser:
    """A page in Chromium: what it logged, how it looks, its PDF."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, file: Path, width: int = WIDTHS[0], scheme: str = "light") -> float:
        """Load a file, wait until all of it is drawn, and return the seconds that took."""
        self.command("Emulation.setEmulatedMedia", features=_scheme(scheme))
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=HEIGHT,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.failures()  # of the page before
        started = time.perf_counter()
        self.driver.get(file.absolute().as_uri())
        self.wait("return document.documentElement.dataset.ready !== undefined")
        return time.perf_counter() - started

    def command(self, name: str, **arguments: Any) -> Any:
        """A command of the DevTools protocol."""
        return self.driver.execute_cdp_cmd(name, arguments)

    def ask(self, script: str, *arguments: Any) -> Any:
        """What a script returns."""
        return self.driver.execute_script(script, *arguments)

    def wait(self, script: str) -> None:
        """Wait until a script returns something true."""
        end = time.perf_counter() + SECONDS
        while not self.ask(script):
            assert time.perf_counter() < end, f"never true: {script}"
            time.sleep(0.02)

    def failures(self) -> list[str]:
        """Errors and warnings of the console, and requests for anything but the page, so far."""
        found = [entry["message"] for entry in self.driver.get_log("browser")]
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                url = message["params"]["request"]["url"]
                if not url.startswith(("file:", "data:", "blob:")):
                    found.append(f"asks for {url}")
            if message["method"] == "Network.loadingFailed":
                found.append(f"failed: {message['params']['errorText']}")
        return found

    def overflowing(self) -> list[str]:
        """What reaches over the edge of the page, except within what scrolls."""
        found: list[str] = self.ask(OVERFLOWING)
        return found

    def picture(self, file: Path, whole: bool = True) -> Path:
        """A screenshot."""
        shot = self.command(
            "Page.captureScreenshot", captureBeyondViewport=whole, **self._clip(whole)
        )
        file.write_bytes(base64.b64decode(shot["data"]))
        return file

    def _clip(self, whole: bool) -> dict[str, Any]:
        if not whole:
            return {}
        size = self.command("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {**size, "scale": 1}}

    def pdf(self, file: Path) -> Path:
        """The page as it is printed on A4."""
        printed = self.command(
            "Page.printToPDF",
            paperWidth=8.27,
            paperHeight=11.69,
            preferCSSPageSize=True,
            printBackground=True,
        )
        file.write_bytes(base64.b64decode(printed["data"]))
        return file


def _scheme(name: str) -> list[dict[str, str]]:
    return [{"name": "prefers-color-scheme", "value": name}]


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser for several pages."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--host-resolver-rules=MAP * ~NOTFOUND",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    try:
        yield Browser(driver)
    finally:
        driver.quit()
