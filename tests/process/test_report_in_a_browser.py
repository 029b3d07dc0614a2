"""The report as a reader sees it: in a real browser, on a wide screen and a telephone, light and dark."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spotrun.report.history import of
from spotrun.report.page import Prices, page
from tests.debian import bring
from tests.unit.test_report import LEDGER

PROGRAMS = ("chromium", "chromedriver")
SHAPES = "return [...document.querySelectorAll('svg')].map(it => [it.clientWidth, it.childElementCount])"


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    bring(PROGRAMS, ("chromium", "chromium-driver"))
    chromium, driver_program = map(shutil.which, PROGRAMS)
    options.binary_location = str(chromium)
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(word)
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # chromium makes a socket there, and ends where its path is too long for one.
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as short:
        service = webdriver.ChromeService(str(driver_program), env={**os.environ, "TMPDIR": short})
        driver = webdriver.Chrome(options=options, service=service)
        yield driver
        driver.quit()


@pytest.mark.timeout(600)  # with the installation of the browser
def test_the_page_fits_every_screen_in_the_colours_that_the_reader_wants(browser: Any, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    report.write_text(page("llm", of(LEDGER), Prices(3.6, 12.0)), encoding="utf-8")
    for width, scheme in ((1280, "light"), (1280, "dark"), (400, "light"), (400, "dark")):
        screen = {"width": width, "height": 1250, "deviceScaleFactor": 1, "mobile": width < 600}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        browser.get(report.as_uri())
        assert browser.execute_script("return innerWidth") == width
        assert (
            browser.execute_script("const it = document.documentElement; return it.scrollWidth - it.clientWidth") == 0
        )
        ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        red = int(ground.partition("(")[2].partition(",")[0])
        assert red > 200 if scheme == "light" else red < 60, ground
        shapes = browser.execute_script(SHAPES)
        assert len(shapes) == 7 and all(wide > 200 and drawn for wide, drawn in shapes), shapes
        assert browser.get_log("browser") == []
        if keep := os.environ.get("SPOTRUN_SCREENSHOTS"):  # for people who change the page
            browser.save_screenshot(f"{keep}/{width}-{scheme}.png")
