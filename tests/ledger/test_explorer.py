"""The explorer in a real browser: what it shows, how it searches, and that text stays text."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from selenium.common.exceptions import StaleElementReferenceException
from support.chain_builder import VALIDATORS
from support.http import get, serving
from support.little_chain import ANN, LittleNode, little_chain
from support.patience import PATIENCE_S

import ledger
from ledger.api import build_app
from ledger.checkpoint import genesis_checkpoint
from ledger.genesis import GenesisValidator
from ledger.proofs import decode_proof, verify
from runtime.clock import clock_from_environment
from wire.keys import to_text

STATIC = Path(ledger.__file__).parent / "static"
SIZES = [(1440, 900, False), (390, 844, True)]
EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def little(tmp_path_factory):
    """A chain on which somebody calls itself something evil."""
    folder = tmp_path_factory.mktemp("chain")
    validators = tuple(
        GenesisValidator(id=k.id, key=to_text(k.public), controller=EVIL if not i else f"home-{i}")
        for i, k in enumerate(VALIDATORS)
    )
    chain = little_chain(folder, validators=validators)
    yield chain, folder
    chain.store.close()


@pytest.fixture(scope="module")
def url(little):
    chain, folder = little
    live = LittleNode(chain)
    with serving(build_app(chain.genesis, folder, clock_from_environment(), live)) as address:
        yield address


@pytest.fixture(scope="module")
def driver(shots: ModuleType) -> Iterator[object]:
    with shots.browser(1440, 900) as browser:
        yield browser


@pytest.fixture
def page(shots, driver, url):
    """Open a page of the explorer; gives its text."""

    def opened(place: str = "/") -> str:
        driver.get("about:blank")
        driver.get(f"{url}/#{place}")
        shots.wait_ready(driver)
        return driver.find_element("id", "main").text

    yield opened
    assert shots.complaints(driver) == []


def search(driver, text: str) -> str:
    field = driver.find_element("id", "query")
    field.clear()
    field.send_keys(text)
    driver.find_element("css selector", "#search button").click()
    time.sleep(0.6)
    return driver.find_element("id", "main").text


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height", "dark"), SIZES)
@pytest.mark.parametrize("place", ["/", "/block/2", "/validators", "/evidence"])
def test_nothing_is_cut_off_on_a_screen_or_a_phone(shots, driver, page, place, width, height, dark):
    shots.set_view(driver, width, height, dark=dark)
    assert page(place)
    wide = driver.execute_script("return document.documentElement.scrollWidth")
    assert wide <= width
    ground = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(17, 23, 21)") is dark


@pytest.mark.slow
def test_blocks_are_listed_newest_first_beside_the_leaders(little, driver, page):
    page()
    tip = little[0].store.height
    heights = [
        int(cell.text)
        for cell in driver.find_elements("css selector", "[aria-label=Blocks] td:first-child")
    ]
    assert heights == list(range(tip, 0, -1))[:20]
    leaders = driver.find_elements("css selector", "[aria-label=Leaders] tbody tr")
    assert len(leaders) == 4
    assert "0.763" in leaders[0].text  # the best CPF leads most


@pytest.mark.slow
def test_a_new_block_appears_by_itself(little, driver, page):
    chain, _ = little
    page()
    chain.block(chain.ledger.time_ms + 1)
    deadline_s, first = time.monotonic() + PATIENCE_S, ""
    while time.monotonic() < deadline_s:
        with contextlib.suppress(StaleElementReferenceException):  # the list was just drawn anew
            first = driver.find_element("css selector", "[aria-label=Blocks] td:first-child").text
        if first == str(chain.store.height):
            return
        time.sleep(0.1)
    raise AssertionError(f"the list still begins with {first}")


@pytest.mark.slow
def test_search_finds_heights_transactions_and_addresses(little, driver, page):
    chain, _ = little
    page()
    assert search(driver, "2").startswith("Block 2")
    txid = chain.store.get_block(2).txids[0].hex()
    found = search(driver, txid)
    assert "add-energy-asset" in found
    assert "5,000 Wh" in found
    assert "can buy" in search(driver, ANN.id)
    search(driver, "what?")
    assert "Give a height" in driver.find_element("id", "message").text
    for item in driver.find_elements("id", "message"):
        assert item.is_displayed()


@pytest.mark.slow
def test_what_is_not_there_is_said(shots, driver, page):
    page("/block/99999")
    assert "not here" in driver.find_element("id", "message").text
    shots.complaints(driver)  # the browser reports every 404


@pytest.mark.slow
def test_what_a_controller_calls_itself_stays_text(driver, page):
    assert EVIL in page("/validators")
    assert driver.find_elements("css selector", "main img") == []


@pytest.mark.slow
def test_the_theme_can_be_switched_and_is_kept(shots, driver, page):
    shots.set_view(driver, 1440, 900, dark=False)
    page()
    driver.find_element("id", "theme").click()
    page()
    assert driver.execute_script("return document.documentElement.dataset.theme") == "dark"
    driver.find_element("id", "theme").click()


@pytest.mark.slow
def test_the_proof_that_is_downloaded_convinces(little, shots, driver, page, tmp_path):
    chain, _ = little
    driver.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)}
    )
    page(f"/address/{ANN.id}")
    driver.find_element("xpath", "//button[contains(., 'balance proof')]").click()
    deadline_s = time.monotonic() + PATIENCE_S
    while not (files := list(tmp_path.glob("*.proof"))) and time.monotonic() < deadline_s:
        time.sleep(0.1)
    fact = verify(decode_proof(files[0].read_bytes()), genesis_checkpoint(chain.genesis))
    assert fact.key == f"account/{ANN.id}"


def test_the_page_asks_nobody_else_for_anything(url):
    text = get(url + "/").body.decode()
    for target in re.findall(r'(?:src|href)="([^"#]+)"', text):
        assert target.startswith("/static/")
        assert get(url + target).status == 200
    for source in STATIC.iterdir():
        addresses = re.findall(r"https?://[^\s\"']+", source.read_text())
        assert addresses in ([], ["http://www.w3.org/2000/svg"]), source.name


def test_scripts_never_make_html_from_text():
    for script in STATIC.glob("*.js"):
        forbidden = re.search(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|eval|Function\(",
            script.read_text(),
        )
        assert not forbidden, script.name
