"""The console and the report in a real browser: no errors, no scrolling sideways, real charts."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest
from support.console_preview import Preview

from analytics.report import write_report

SIZES = [(1440, 900, False), (390, 844, True)]


@pytest.fixture(scope="module")
def driver(shots: ModuleType) -> Iterator[object]:
    with shots.browser(1440, 900) as browser:
        yield browser


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height", "dark"), SIZES)
def test_the_console_shows_the_evening(shots, driver, console, tmp_path, width, height, dark):
    shots.set_view(driver, width, height, dark=dark)
    driver.get(console + "/")
    shots.wait_ready(driver)
    text = {
        name: driver.find_element("id", name).text
        for name in ("time", "traded", "sufficiency", "price", "height", "finality", "refused")
    }
    assert text["time"] == "19:24"
    assert text["traded"].endswith("kWh")
    assert all(word and word != "–" for word in text.values()), text
    assert len(driver.find_elements("css selector", "#homes tr")) == 10
    for chart in ("power", "price", "blocks", "leaders"):
        assert driver.find_elements("css selector", f"#chart-{chart} svg g.trace"), chart
    _assert_fits(driver, width)
    if width > 1000:
        tall = driver.execute_script("return document.documentElement.scrollHeight")
        assert tall <= height, "one screen"
    assert driver.save_screenshot(str(tmp_path / "page.png"))
    assert shots.complaints(driver) == []


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height", "dark"), SIZES)
def test_the_report_opens_from_a_file(shots, driver, whole_day, tmp_path, width, height, dark):
    page = write_report(whole_day.report(), tmp_path)
    shots.set_view(driver, width, height, dark=dark)
    driver.get(page.as_uri())
    shots.wait_ready(driver)
    for chart in ("power", "price", "bills", "parts", "finality", "leaders"):
        assert driver.find_elements("css selector", f"#chart-{chart} svg g.trace"), chart
    _assert_fits(driver, width)
    assert shots.complaints(driver) == []


@pytest.mark.slow
def test_what_a_home_calls_its_devices_stays_text(shots, driver, tmp_path, serve):
    preview = Preview(6.0, tmp_path)
    evil = "<img src=x onerror=alert(1)>"
    home = next(preview.rollup.homes.values())
    preview.rollup.revision += 1
    preview.rollup.homes.put(home["id"], {**home, "lost": [evil]}, preview.rollup.revision)
    with serve(preview.app()) as url:
        driver.get(url + "/")
        shots.wait_ready(driver)
        dots = driver.find_elements("css selector", "#homes .dot")
        assert any(evil in dot.get_attribute("title") for dot in dots)
        assert driver.find_elements("css selector", "#homes img") == []
    preview.store.close()


def _assert_fits(driver, width: int) -> None:
    wide = driver.execute_script("return document.documentElement.scrollWidth")
    assert wide <= width, "nothing is cut off or scrolls sideways"
