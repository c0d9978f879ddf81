"""Headless Chromium over a dashboard, axe-core in it, and how both come to a machine (`make browser`)."""

from __future__ import annotations

import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

#: Where `make browser` puts axe-core.
AXE = Path(__file__).parents[3] / ".browser" / "package" / "axe.min.js"
#: Debian's.
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
#: It calls home for updates and more, which no test may.
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--force-device-scale-factor=1",
)  # fmt: skip
#: What axe-core is asked: WCAG 2.2 at levels A and AA.
ASK_AXE = """
const done = arguments[arguments.length - 1];
axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa']}).then(r => done(r.violations.map(
  v => [v.impact, v.id, v.nodes.slice(0, 3).map(n => n.html.slice(0, 200) + ' ' + n.failureSummary)])));
"""


def is_here() -> bool:
    """Whether a browser and axe-core are on this machine."""
    return bool(CHROMIUM and DRIVER) and AXE.exists()


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """The address of the application on a free port of this machine, while the block runs."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [door]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + 30
        while not server.started:
            assert time.monotonic() < deadline, "the dashboard did not start"
            time.sleep(0.02)
        try:
            yield f"http://127.0.0.1:{door.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)


@contextmanager
def chromium(width: int = 1200, height: int = 900) -> Iterator[Any]:
    """A fresh browser of that size."""
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = Options()
        options.binary_location = str(CHROMIUM)
        for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
        driver.set_script_timeout(60)
        try:
            yield driver
        finally:
            driver.quit()


def prefer(driver: Any, scheme: str) -> None:
    """Let pages believe that their reader prefers `dark` or `light`."""
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})


def failings(driver: Any) -> list[Any]:
    """What axe-core finds wrong on the page that stands open: (impact, rule, places)."""
    # The page's own policy allows no script; the driver's runs beside it.
    driver.execute_script(AXE.read_text(encoding="utf-8"))
    return driver.execute_async_script(ASK_AXE)


def said_by(driver: Any) -> list[str]:
    """What the browser's console holds since it was last asked."""
    return [entry["message"] for entry in driver.get_log("browser")]


@contextmanager
def sized(driver: Any, width: int, height: int) -> Iterator[None]:
    """Let the page believe that it stands on a screen of that size; a window is never narrower than 500."""
    asked = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": True}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", asked)
    try:
        yield
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
