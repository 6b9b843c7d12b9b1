"""
Takes pictures of a running console (or of a report file) with headless Chromium.

    python docs/qa/screenshots.py URL [--out docs/assets/demo-page.png] [--size 1440x900] [--dark]
        [--fill ID=VALUE …] [--click ID]

Prints what the browser's console said, and exits with 1 when that was an error: a picture of a
broken page is not worth keeping.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.wait import WebDriverWait

CHROMIUM = Path("/usr/bin/chromium")
CHROMEDRIVER = Path("/usr/bin/chromedriver")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--force-device-scale-factor=1",
)  # fmt: skip
READY_TIMEOUT_S = 30.0


@contextmanager
def browser(width: int, height: int, *, dark: bool = False) -> Iterator[webdriver.Chrome]:
    """A fresh headless browser whose page area measures `width` × `height`."""
    profile = tempfile.mkdtemp(prefix="hearthgrid-browser-")
    options = Options()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(CHROMEDRIVER)))
    try:
        set_view(driver, width, height, dark=dark)
        yield driver
    finally:
        driver.quit()
        shutil.rmtree(profile, ignore_errors=True)


def set_view(driver: webdriver.Chrome, width: int, height: int, *, dark: bool) -> None:
    """Give the page a size and a colour scheme."""
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
        "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 640,
    })  # fmt: skip
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})


def wait_ready(driver: webdriver.Chrome) -> None:
    """
    Wait until the page says that it shows something.

    Raises:
        TimeoutError: not within 30 s.
    """
    deadline_s = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if driver.execute_script("return document.body.dataset.ready") == "yes":
            time.sleep(0.8)
            return
        time.sleep(0.1)
    raise TimeoutError("the page did not become ready")


def complaints(driver: webdriver.Chrome) -> list[str]:
    """Errors and warnings that the browser's console has collected."""
    return [
        entry["message"]
        for entry in driver.get_log("browser")
        if entry["level"] in ("SEVERE", "WARNING")
    ]


def fill(driver: webdriver.Chrome, field: str, value: str) -> None:
    """Give a field of a form a value, as somebody who types or chooses."""
    driver.execute_script(
        "const field = document.getElementById(arguments[0]); field.value = arguments[1];"
        "field.dispatchEvent(new Event('change', { bubbles: true }));",
        field,
        value,
    )


def take(
    url: str,
    out: Path,
    width: int,
    height: int,
    *,
    dark: bool = False,
    whole: bool = False,
    filled: Sequence[tuple[str, str]] = (),
    clicked: str = "",
) -> list[str]:
    """
    Save a picture of `url`; the whole page when `whole`, else what fits the view.

    Args:
        filled: fields of a form by id, and what to put into them
        clicked: what to press then, by id; the picture is taken when it is enabled again

    Returns:
        What the browser complained about.
    """
    with browser(width, height, dark=dark) as driver:
        driver.get(url)
        wait_ready(driver)
        for field, value in filled:
            fill(driver, field, value)
        if clicked:
            button = driver.find_element("id", clicked)
            button.click()
            WebDriverWait(driver, READY_TIMEOUT_S).until(lambda _: button.is_enabled())
        if whole:
            tall = driver.execute_script("return document.documentElement.scrollHeight")
            set_view(driver, width, max(height, int(tall)), dark=dark)
            time.sleep(0.8)
        out.parent.mkdir(parents=True, exist_ok=True)
        driver.save_screenshot(str(out))
        return complaints(driver)


def main() -> int:
    """Command line."""
    default = Path(__file__).parents[1] / "assets" / "demo-page.png"
    parser = argparse.ArgumentParser(description="Take a picture of a running console.")
    parser.add_argument("url", help="for example http://127.0.0.1:8080/")
    parser.add_argument("--out", type=Path, default=default)
    parser.add_argument("--size", default="1440x900", help="width x height in pixels")
    parser.add_argument("--dark", action="store_true", help="dark colour scheme")
    parser.add_argument("--whole", action="store_true", help="the whole page, however tall")
    parser.add_argument("--fill", action="append", default=[], help="ID=VALUE of a form's field")
    parser.add_argument("--click", default="", help="ID of what is pressed then")
    options = parser.parse_args()
    filled = [(each.partition("=")[0], each.partition("=")[2]) for each in options.fill]
    width, height = (int(part) for part in options.size.split("x"))
    try:
        heard = take(
            options.url,
            options.out,
            width,
            height,
            dark=options.dark,
            whole=options.whole,
            filled=filled,
            clicked=options.click,
        )
    except (WebDriverException, TimeoutError, OSError) as error:
        sys.stderr.write(f"screenshots: {str(error).partition(chr(10))[0]}\n")
        return 2
    for message in heard:
        sys.stderr.write(f"browser: {message}\n")
    return 1 if heard else 0


if __name__ == "__main__":
    sys.exit(main())
