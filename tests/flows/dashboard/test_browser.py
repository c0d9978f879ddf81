"""Headless Chromium over real nights: pages render, search finds, the console is silent, and axe-core finds nothing wrong."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from flows.dashboard.app import create_app
from tests.flows.dashboard.browser import chromium, failings, is_here, prefer, said_by, served, sized
from tests.flows.dashboard.conftest import Shown
from tests.flows.dashboard.test_pages import NAMES

pytestmark = [
    pytest.mark.integration,
    # CI has installed them: there, their absence is a failure.
    pytest.mark.skipif(not is_here() and not os.environ.get("CI"), reason="no Chromium or no axe-core: `make browser`"),
]


@pytest.fixture(scope="module")
def site(real_nights: Shown) -> Iterator[str]:
    with served(create_app(real_nights.settings)) as url:
        yield url


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.mark.parametrize("name", NAMES)
def test_a_page_renders_and_axe_finds_nothing_wrong(driver: Any, site: str, real_nights: Shown, name: str) -> None:
    for scheme in ("light", "dark"):
        prefer(driver, scheme)
        driver.get(site + real_nights.addresses()[name])
        assert driver.find_element("tag name", "h1").text
        assert failings(driver) == [], scheme
    assert said_by(driver) == []


def test_axe_finds_what_is_wrong(driver: Any, site: str) -> None:
    prefer(driver, "light")
    driver.get(site + "/")
    driver.execute_script("document.querySelector('h1').style.color = '#ccc'; document.querySelector('nav a').textContent = ''")
    assert {rule for _, rule, _ in failings(driver)} >= {"color-contrast", "link-name"}


def test_a_search_is_typed_and_found(driver: Any, site: str) -> None:
    driver.get(site + "/facts")
    field = driver.find_element("id", "q")
    field.send_keys("adalbert")
    field.submit()
    driver.find_element("link text", "Adalbert of Prague").click()
    assert driver.find_element("tag name", "h1").text == "Adalbert of Prague"
    assert "errata revert" in driver.find_element("tag name", "pre").text


def test_a_label_that_is_markup_runs_nothing(driver: Any, site: str) -> None:
    driver.get(site + "/nights/main/night-02")
    assert "<script>alert(1)</script>" in driver.find_element("tag name", "main").text
    assert not driver.find_elements("css selector", "main script")


def test_pages_are_used_by_keyboard(driver: Any, site: str) -> None:
    from selenium.webdriver.common.keys import Keys

    driver.get(site + "/")
    driver.find_element("tag name", "body").send_keys(Keys.TAB)
    first = driver.switch_to.active_element
    assert first.text == "Skip to the content" and first.is_displayed()
    first.send_keys(Keys.ENTER)
    assert driver.current_url.endswith("#main")
    driver.get(site + "/")
    seen = set()
    for _ in range(60):
        driver.switch_to.active_element.send_keys(Keys.TAB)
        now = driver.switch_to.active_element
        seen.add(now.get_attribute("href") or now.tag_name)
        if now.tag_name == "a":
            assert driver.execute_script("return getComputedStyle(arguments[0]).outlineStyle", now) == "solid"
    assert any("/nights/main/night-01" in place for place in seen)


@pytest.mark.parametrize("name", ["overview", "night", "fact", "leaderboards"])
def test_a_page_fits_a_phone(driver: Any, site: str, real_nights: Shown, name: str) -> None:
    with sized(driver, 390, 844):
        driver.get(site + real_nights.addresses()[name])
        assert driver.execute_script("return document.documentElement.scrollWidth") <= 390


def test_a_page_prints_without_its_navigation(driver: Any, site: str) -> None:
    driver.get(site + "/nights/main/night-01")
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    hidden = driver.execute_script("return [...document.querySelectorAll('nav, form')].every(e => !e.checkVisibility())")
    pdf = driver.execute_cdp_cmd("Page.printToPDF", {})["data"]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert hidden and len(pdf) > 10_000


def test_the_evidently_page_draws_in_its_sandbox(driver: Any, site: str) -> None:
    driver.get(site + "/nights/main/night-01")
    driver.find_element("partial link text", "Evidently").click()
    driver.implicitly_wait(30)
    assert driver.find_elements("css selector", "h1, h2, h3, h4, h5, h6, svg, canvas")
    driver.implicitly_wait(0)
    assert driver.execute_script("return window.origin") == "null"
    said_by(driver)
