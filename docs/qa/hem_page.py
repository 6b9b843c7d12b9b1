"""
Takes the pictures of the household's page, with a made-up home: every view, desktop and phone.

    python docs/qa/hem_page.py [--out docs/assets] [--all]

Without `--all` only those that the documentation shows. Exits with 1 when the browser's console had
something to say, or a page is wider than the phone.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]
from screenshots import browser, complaints, set_view, wait_ready  # noqa: E402
from support.http import serving  # noqa: E402
from support.page_household import PASSWORD, MadeUpHome, page_of  # noqa: E402

VIEWS = (
    "now", "today", "wallet", "trades", "decisions", "rank", "devices", "policy", "backup",
)  # fmt: skip
SIZES = (("", 1180, 760, False), ("-phone", 390, 844, True))
SHOWN = {"": ("now", "today"), "-phone": ("now", "wallet")}
"""Views that the documentation shows, by the size's suffix."""
ALL = {suffix: VIEWS for suffix, *_ in SIZES}
POLICY = """participation = "RE+TE"        # trade, and be rewarded for using one's own
reserve_permille = 200         # of the battery, never sold
sell_price_min = 120000        # µ¤/kWh
buy_price_max = 250000
markets = ["double-auction", "auctions", "order-book"]
"""


def take_all(url: str, out: Path, views: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Save the pictures of these views by size; what was wrong with the pages."""
    wrong = []
    for suffix, width, height, dark in SIZES:
        with browser(width, height, dark=dark) as driver:
            driver.get(url + "/login")
            driver.find_element("id", "password").send_keys(PASSWORD)
            driver.find_element("css selector", "main button.main").click()
            for view in views[suffix]:
                set_view(driver, width, height, dark=dark)
                driver.get(f"{url}/{'' if view == 'now' else view}")
                wait_ready(driver)
                wide = driver.execute_script("return document.documentElement.scrollWidth")
                if wide > width:
                    wrong.append(f"{view}{suffix}: {wide} px wide")
                if not suffix:
                    tall = driver.execute_script("return document.documentElement.scrollHeight")
                    set_view(driver, width, min(max(height, int(tall)), 1_700), dark=dark)
                    wait_ready(driver)
                driver.save_screenshot(str(out / f"hem-{view}{suffix}.png"))
            wrong += complaints(driver)
    return wrong


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Take pictures of the household's page.")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "assets")
    parser.add_argument("--all", action="store_true", help="every view")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        home = MadeUpHome(Path(folder))
        home.policy_file.write_text(POLICY, encoding="utf-8")
        with serving(page_of(home)) as url:
            wrong = take_all(url, options.out, ALL if options.all else SHOWN)
    for line in wrong:
        sys.stderr.write(f"page: {line}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
