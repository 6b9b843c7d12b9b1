"""The household's page in a real browser: the way in, every view on a desk and on a phone."""

from __future__ import annotations

import importlib.util
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from support.http import serving
from support.page_household import PASSWORD, WELL, MadeUpHome, page_of, troubled
from support.patience import PATIENCE_S

from hem.web.access import Credentials
from runtime.store import MemoryStore

DOCS = Path(__file__).parents[2] / "docs"
SIZES = [(1180, 760, False), (390, 844, True), (320, 600, False)]
VIEWS = ("", "today", "wallet", "trades", "decisions", "rank", "devices", "policy", "backup")
EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def driver(shots: ModuleType) -> Iterator[object]:
    with shots.browser(1180, 760) as browser:
        yield browser


@pytest.fixture
def home(tmp_path):
    made = MadeUpHome(tmp_path)
    made.policy_file.write_text("reserve_permille = 200\n")
    return made


@pytest.fixture
def page(shots, driver, home):
    """Open a page of the home as its owner."""
    with serving(page_of(home)) as url:
        driver.get(url + "/login")
        driver.find_element("id", "password").send_keys(PASSWORD)
        press(driver, "main button.main")

        def opened(place: str) -> str:
            driver.get(f"{url}/{place}")
            shots.wait_ready(driver)
            return driver.find_element("id", "main").text

        yield opened
    assert shots.complaints(driver) == []


def press(driver, selector: str) -> None:
    """Press a button that leads to another page, and wait for that."""
    old = driver.find_element("css selector", "main")
    button = driver.find_element("css selector", selector)
    driver.execute_script("arguments[0].scrollIntoView({block: 'nearest'})", button)
    button.click()
    wait(lambda: gone(old))


def gone(element) -> bool:
    from selenium.common.exceptions import WebDriverException  # noqa: PLC0415

    try:
        element.is_enabled()
    except WebDriverException:
        return True
    return False


def wait(true) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height", "dark"), SIZES)
def test_every_view_fits_and_nothing_complains(shots, driver, page, width, height, dark):
    shots.set_view(driver, width, height, dark=dark)
    for view in VIEWS:
        assert page(view), view
        wide = driver.execute_script("return document.documentElement.scrollWidth")
        assert wide <= width, f"{view} scrolls sideways"
        small = driver.execute_script(
            "return [...document.querySelectorAll('main *')].filter((e) => e.innerText && "
            "parseFloat(getComputedStyle(e).fontSize) < 13 && !e.closest('svg')).length"
        )
        assert small == 0, f"{view} has text too small to read"
    ground = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(17, 23, 21)") is dark


@pytest.mark.slow
def test_the_charts_are_drawn_under_the_strict_policy(driver, page):
    page("today")
    for chart, traces in (("energy", 4), ("battery", 4), ("price", 1)):
        found = driver.find_elements("css selector", f"#chart-{chart} svg g.trace")
        assert len(found) >= traces, chart


@pytest.mark.slow
def test_now_follows_the_home_and_says_when_it_cannot(shots, driver, home):
    with serving(page_of(home)) as url:
        driver.get(url + "/login")
        driver.find_element("id", "password").send_keys(PASSWORD)
        press(driver, "main button.main")
        shots.wait_ready(driver)
        home.moment_now = replace(troubled(), load_w=2_340, grid_w=620)
        sentence = driver.find_element("css selector", ".sentence")
        wait(lambda: "2.34" in sentence.text)
        assert (
            driver.find_element("css selector", "[data-flow=grid]").get_attribute("data-state")
            == "in"
        )
        assert "192.168.1.32" in driver.find_element("id", "reasons").text
    wait(lambda: driver.find_element("id", "offline").is_displayed())
    shots.complaints(driver)  # that the home is away is told by the browser, too


@pytest.mark.slow
def test_what_comes_from_outside_stays_text(driver, page, home):
    reason = replace(troubled().health.reasons[0], text=EVIL)
    home.moment_now = replace(WELL, health=replace(troubled().health, reasons=(reason,)))
    home.device_facts = [replace(home.device_facts[0], name=EVIL)]
    for view in ("", "devices"):
        assert EVIL in page(view)
        assert driver.find_elements("css selector", "main img") == []


@pytest.mark.slow
def test_the_editor_shows_the_line_and_saves_what_is_right(shots, driver, page, home):
    page("policy")
    editor = driver.find_element("id", "text")
    editor.clear()
    editor.send_keys("# mine\nreserve_permille = 2000")
    press(driver, "button[value=save]")
    problem = driver.find_element("css selector", "[data-line]")
    assert "line 2" in problem.text
    assert all("422" in said for said in shots.complaints(driver)), "the browser tells it, too"
    problem.click()
    chosen = driver.execute_script(
        "const e = document.activeElement; return e.value.slice(e.selectionStart, e.selectionEnd)"
    )
    assert chosen == "reserve_permille = 2000"
    editor = driver.find_element("id", "text")
    editor.clear()
    editor.send_keys("reserve_permille = 300")
    press(driver, "button[value=save]")
    assert "Saved" in driver.find_element("id", "main").text
    assert home.policy_file.read_text() == "reserve_permille = 300"


@pytest.mark.slow
def test_a_new_home_is_opened_with_its_code_by_keyboard_alone(shots, driver, home):
    from selenium.webdriver.common.keys import Keys  # noqa: PLC0415

    credentials = Credentials(MemoryStore())
    with serving(page_of(home, credentials)) as url:
        driver.get(url + "/")
        old = driver.find_element("css selector", "main")
        driver.find_element("id", "code").send_keys(
            credentials.code, Keys.TAB, PASSWORD, Keys.TAB, PASSWORD, Keys.ENTER
        )
        wait(lambda: gone(old))
        shots.wait_ready(driver)
        assert "The house uses" in driver.find_element("id", "main").text
        press(driver, ".logout button")
        assert "Log in" in driver.find_element("id", "main").text
        driver.get(url + "/wallet")
        assert driver.current_url == url + "/login"
    assert shots.complaints(driver) == []


def test_the_documentation_shows_the_pictures_that_are_taken_for_it_and_no_others(shots):
    spec = importlib.util.spec_from_file_location("hem_page", DOCS / "qa" / "hem_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    taken = {f"hem-{view}{suffix}.png" for suffix, views in module.SHOWN.items() for view in views}
    assert set(re.findall(r"hem-[a-z-]+\.png", (DOCS / "how-to/the-page.md").read_text())) == taken
    assert {path.name for path in (DOCS / "assets").glob("hem-*.png")} == taken
