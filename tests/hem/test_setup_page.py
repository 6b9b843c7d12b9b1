"""`hem setup` in a real browser and over real sockets: who may, what is added, what stays."""

from __future__ import annotations

import http.cookiejar
import json
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from register_server import device_of
from support.patience import PATIENCE_S
from test_device_check import home, of  # noqa: F401  (a fixture)

import hem
from hem.config import load_provisioning
from hem.setup_file import add_device
from wire.errors import ConfigError

STATIC = Path(hem.__file__).parent / "static"
ENTRY = {"name": "pv", "kind": "sunspec", "host": "192.168.1.4"}


class Setup:
    """A running `hem setup`, and a client with a cookie jar."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hem.cli", "setup", str(file), "--port", "0"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self.entrance = self.process.stdout.readline().removeprefix("open ").strip()
        self.base = self.entrance.partition("/?")[0]
        self.csrf = ""
        jar = urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
        self._opener = urllib.request.build_opener(jar)

    def ask(self, path, body=None, **headers):
        """Status and body."""
        url = path if path.startswith("http") else self.base + path
        data = json.dumps(body).encode() if body is not None else None
        given = {"Content-Type": "application/json", "X-CSRF-Token": self.csrf} if body else {}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(url, data=data, headers=given)
        try:
            with self._opener.open(request, timeout=PATIENCE_S) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def enter(self):
        status, _ = self.ask(self.entrance)
        assert status == 200
        self.csrf = json.loads(self.ask("/api/form")[1])["csrf"]
        return self

    def close(self):
        self.process.terminate()
        self.process.wait(PATIENCE_S)


@pytest.fixture
def setup(home):  # noqa: F811
    made = Setup(home(of("eastron-sdm630", 9, "meter")))
    yield made
    made.close()


def sunspec(**more):
    answers = {"name": "pv", "connection": "tcp", "host": "127.0.0.1", "port": "9"} | more
    return {"product": "sunspec", "answers": answers}


def test_the_printed_address_works_once_and_nothing_works_without_it(setup):
    for path in ("/", "/api/form", "/?token=wrong"):
        assert setup.ask(path)[0] == 403
    assert setup.ask("/api/add", sunspec())[0] == 403
    setup.enter()
    another = urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
    setup._opener, mine = urllib.request.build_opener(another), setup._opener
    assert setup.ask(setup.entrance)[0] == 403, "the token is used"
    setup._opener = mine
    assert setup.ask("/")[0] == 200


def test_a_post_of_another_page_or_host_is_refused(setup):
    setup.enter()
    before = setup.file.read_bytes()
    assert setup.ask("/api/add", sunspec(), X_CSRF_Token="wrong")[0] == 403
    assert setup.ask("/api/add", sunspec(), Origin="http://evil.example")[0] == 403
    assert setup.ask("/api/add", sunspec(), Content_Type="text/plain")[0] == 415
    assert setup.ask("/api/form", Host="evil.example")[0] == 400
    assert setup.ask("/api/add", {"product": "sunspec", "answers": {"x": "y" * 20_000}})[0] == 413
    assert setup.ask("/api/add", {"product": 1, "answers": []})[0] == 400
    assert setup.file.read_bytes() == before
    assert not setup.file.with_name("provisioning.toml.bak").exists()


def test_it_is_served_to_this_machine_only_and_says_nothing_inline(setup):
    assert setup.base.startswith("http://127.0.0.1:")
    with setup.enter()._opener.open(setup.base + "/", timeout=PATIENCE_S) as answer:
        policy = answer.headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "default-src 'none'" in policy
        text = answer.read().decode()
    for target in re.findall(r'(?:src|href)="([^"#]+)"', text):
        assert target.startswith("/static/")
        assert setup.ask(target)[0] == 200
    assert not re.search(r"<script(?! src)|<style| style=| on\w+=", text)
    for source in STATIC.iterdir():
        addresses = re.findall(r"https?://[^\s\"']+", source.read_text())
        assert addresses in ([], ["http://www.w3.org/2000/svg"]), source.name
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval|Function\(",
        (STATIC / "setup.js").read_text(),
    )


def test_a_wildcard_is_no_address_to_serve_at(home):  # noqa: F811
    file = home(of("eastron-sdm630", 9, "meter"))
    done = subprocess.run(
        [sys.executable, "-m", "hem.cli", "setup", str(file), "--host", "0.0.0.0"],
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--host: 0.0.0.0 is every address" in done.stderr


def test_what_is_added_comes_last_and_the_rest_stays_byte_for_byte(setup):
    setup.enter()
    setup.file.chmod(0o640)
    before = setup.file.read_bytes()
    status, text = setup.ask("/api/add", sunspec(host="192.168.1.4", port="502"))
    assert (status, json.loads(text)["added"]) == (200, "pv")
    after = setup.file.read_bytes()
    assert after.startswith(before)
    assert after[len(before) :] == (
        b'\n[[devices]]\nname = "pv"\nkind = "sunspec"\nhost = "192.168.1.4"\n'
    )
    assert setup.file.with_name("provisioning.toml.bak").read_bytes() == before
    assert setup.file.stat().st_mode & 0o777 == 0o640
    assert [device.name for device in load_provisioning(setup.file).devices] == ["meter", "pv"]
    status, text = setup.ask("/api/add", sunspec())
    assert (status, "another device" in text) == (422, True)
    status, text = setup.ask("/api/add", sunspec(name="b", port="x", host=""))
    assert json.loads(text)["wrong"] == {"port": "is a whole number", "host": "has to be given"}


@pytest.mark.parametrize("ending", [b"", b"# the last word", b"\r\n# dos\r\n"])
def test_files_of_any_ending_take_a_device(home, ending):  # noqa: F811
    file = home(of("eastron-sdm630", 9, "meter"))
    file.write_bytes(file.read_bytes().rstrip() + ending)
    before = file.read_bytes()
    add_device(file, ENTRY)
    assert file.read_bytes().startswith(before)
    assert load_provisioning(file).devices[-1].name == "pv"


def test_a_file_that_would_not_load_is_left_as_it_was(home):  # noqa: F811
    file = home(of("eastron-sdm630", 9, "meter"))
    before = file.read_bytes()
    with pytest.raises(ConfigError, match="two devices are named 'meter'") as caught:
        add_device(file, ENTRY | {"name": "meter"})
    assert str(caught.value).startswith(f"{file}: ")
    assert file.read_bytes() == before
    assert sorted(one.name for one in file.parent.iterdir()) == ["genesis.json", file.name]


def test_a_link_to_the_file_stays_a_link(home, tmp_path):  # noqa: F811
    file = home(of("eastron-sdm630", 9, "meter"))
    link = tmp_path / "link.toml"
    link.symlink_to(file)
    add_device(link, ENTRY)
    assert link.is_symlink()
    assert load_provisioning(file).devices[-1].name == "pv"


# --- In the browser -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def driver(shots: ModuleType) -> Iterator[object]:
    with shots.browser(1120, 900) as browser:
        yield browser


@pytest.fixture(scope="module")
def meter_port():
    """A meter that answers while the browser is busy: its server has a thread of its own."""
    import asyncio  # noqa: PLC0415

    ready, stop, found = threading.Event(), threading.Event(), []

    async def serve():
        async with device_of("sungrow-sh") as (_template, _devices, port):
            found.append(port)
            ready.set()
            while not stop.is_set():
                await asyncio.sleep(0.02)

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert ready.wait(PATIENCE_S)
    yield found[0]
    stop.set()
    thread.join(PATIENCE_S)


def wait_for(driver, selector, text):
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        if text in driver.find_element("css selector", selector).text:
            return
        time.sleep(0.05)
    raise AssertionError(driver.find_element("css selector", selector).text)


def fill(driver, **answers):
    for name, value in answers.items():
        field = driver.find_element("id", f"f-{name}")
        field.clear()
        field.send_keys(str(value))


def choose(driver, product):
    driver.execute_script(
        "const s = document.getElementById('product'); s.value = arguments[0];"
        "s.dispatchEvent(new Event('change', {bubbles: true}));",
        product,
    )


@pytest.mark.slow
def test_a_product_is_chosen_tried_out_and_added(shots, driver, setup, meter_port):
    driver.get(setup.entrance)
    shots.wait_ready(driver)
    assert "token" not in driver.current_url
    choose(driver, "sungrow-sh")
    driver.find_element("id", "add").click()
    wait_for(driver, "#w-name", "has to be given")
    assert driver.switch_to.active_element.get_attribute("id") == "f-name"
    driver.execute_script("document.getElementById('more').open = true")
    fill(driver, name="hybrid", host="127.0.0.1", port=meter_port, max_charge_w=99)
    fill(driver, max_discharge_w=4000)
    driver.find_element("id", "test").click()
    wait_for(driver, "#w-max_charge_w", "lies between 100 and 30000 W")
    fill(driver, max_charge_w=5000)
    driver.find_element("id", "test").click()
    wait_for(driver, "#message", "answers as it ought to")
    assert "9,600 Wh" in driver.find_element("id", "result").text
    driver.find_element("id", "add").click()
    wait_for(driver, "#message", "Added hybrid")
    assert "hybrid: sungrow-sh" in driver.find_element("id", "devices").text
    (_, added) = load_provisioning(setup.file).devices
    assert (added.template, added.port, added.model_extra) == (
        "sungrow-sh", meter_port, {"max_charge_w": 5000, "max_discharge_w": 4000},
    )  # fmt: skip
    assert shots.complaints(driver) == []


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(1120, False), (390, True)])
def test_nothing_is_cut_off_on_a_screen_or_a_phone(shots, driver, setup, width, dark):
    shots.set_view(driver, width, 844, dark=dark)
    driver.get(setup.entrance)
    shots.wait_ready(driver)
    for product in ("sunspec", "deye-sg-3p", "eastron-sdm630"):
        choose(driver, product)
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    shown = driver.find_element("id", "b-path").is_displayed()
    assert shown, "a meter with a serial line only begins with that"
    unlabelled = driver.execute_script(
        "return [...document.querySelectorAll('input,select')].filter(e => !e.labels.length).length"
    )
    assert unlabelled == 0
    assert shots.complaints(driver) == []


@pytest.mark.slow
def test_the_form_works_by_keyboard_alone(shots, driver, setup):
    from selenium.webdriver.common.keys import Keys  # noqa: PLC0415

    driver.get(setup.entrance)
    shots.wait_ready(driver)
    driver.find_element("id", "product").send_keys(Keys.TAB)
    reached = []
    for _ in range(12):
        active = driver.switch_to.active_element
        reached.append(active.get_attribute("id"))
        active.send_keys(Keys.TAB)
    assert reached[:3] == ["f-name", "f-connection", "f-host"]
    assert {"test", "add"} <= set(reached)


def test_a_port_that_is_taken_is_one_line(home):  # noqa: F811
    file = home(of("eastron-sdm630", 9, "meter"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "hem.cli", "setup", str(file), "--port", str(port)],
            capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--port: cannot listen" in done.stderr


@pytest.mark.parametrize("host", ["nonsense.invalid", "192.0.2.1", "a..b"])
def test_a_host_that_is_none_of_this_machine_is_one_line_about_the_host(home, host):  # noqa: F811
    file = home(of("eastron-sdm630", 9, "meter"))
    done = subprocess.run(
        [sys.executable, "-m", "hem.cli", "setup", str(file), "--host", host],
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"--host: cannot listen on '{host}'" in done.stderr
    assert "give an address of this machine" in done.stderr


def test_a_second_meter_at_the_grid_is_refused_with_one_line(setup):
    """The gateway would disable it; what is not yet known of a device is no reason to refuse."""
    setup.enter()
    before = setup.file.read_bytes()
    status, text = setup.ask("/api/add", sunspec(name="meter-2", use=["grid"]))
    assert status == 409
    assert json.loads(text)["error"] == (
        "'meter-2' would not be used: the site already has 'meter' for grid; see provisioning.toml"
    )
    assert setup.file.read_bytes() == before
    assert setup.ask("/api/add", sunspec(name="hybrid"))[0] == 200
