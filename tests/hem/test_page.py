"""The household's page over a real server: the way in, the views, who should not get in."""

from __future__ import annotations

import http.client
import re
from dataclasses import replace
from urllib.parse import urlencode, urlsplit

import pytest
from starlette.requests import Request
from support.http import serving
from support.page_household import PASSWORD, WELL, MadeUpHome, page_of, troubled
from support.patience import PATIENCE_S

from hem.web.access import GUESSES, SESSION_S, Credentials
from hem.web.app import BODY_BYTES_MAX, HERE, on_this_machine
from runtime.store import MemoryStore

VIEWS = (
    "/", "/today", "/wallet", "/trades", "/decisions", "/rank", "/devices", "/policy", "/backup",
)  # fmt: skip
DATA = ("/wallet.csv", "/api/now", "/api/today")
EVIL = "<img src=x onerror=alert(1)>"


class Visitor:
    """A browser without a screen: keeps cookies, sends the Origin, finds the form's token."""

    def __init__(self, url: str) -> None:
        self.host = urlsplit(url).netloc
        self.cookies: dict[str, str] = {}

    def ask(self, method, path, body=None, **headers):
        line = http.client.HTTPConnection(self.host, timeout=PATIENCE_S)
        cookie = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        head = {"Host": self.host, "Cookie": cookie, **headers}
        if method == "POST":
            head.setdefault("Origin", f"http://{self.host}")
            head.setdefault("Content-Type", "application/x-www-form-urlencoded")
        line.request(method, path, body=body, headers={k: v for k, v in head.items() if v})
        answer = line.getresponse()
        raw = answer.read()
        for said in answer.headers.get_all("set-cookie") or []:
            name, _, value = said.partition(";")[0].partition("=")
            self.cookies[name] = value
            assert "HttpOnly" in said and "SameSite=strict" in said
        line.close()
        return answer.status, dict(answer.headers), raw.decode(errors="replace")

    def get(self, path, **headers):
        return self.ask("GET", path, **headers)

    def post(self, path, fields, form="", headers=None):
        _, _, text = self.get(form or path)
        token = re.search(r'name="t" value="([0-9a-f]+)"', text)[1]
        body = urlencode({"t": token, **fields})
        return self.ask("POST", path, body, **(headers or {}))

    def log_in(self, password=PASSWORD):
        return self.post("/login", {"password": password})


@pytest.fixture
def home(tmp_path):
    made = MadeUpHome(tmp_path)
    made.policy_file.write_text("reserve_permille = 200\n")
    return made


@pytest.fixture
def clock():
    return [1_000.0]


@pytest.fixture
def url(home, clock):
    with serving(page_of(home, now_s=lambda: clock[0])) as address:
        yield address


@pytest.fixture
def owner(url):
    visitor = Visitor(url)
    assert visitor.log_in()[0] == 303
    return visitor


# --- The way in ----------------------------------------------------------------------------------


def test_the_first_password_needs_the_code_and_nothing_else_is_served(home):
    credentials = Credentials(MemoryStore())
    with serving(page_of(home, credentials)) as url:
        stranger = Visitor(url)
        for path in VIEWS + DATA:
            status, headers, text = stranger.get(path)
            assert status == 401 if path.startswith("/api") else headers["location"] == "/start"
            assert home.name not in text
        fields = {"password": PASSWORD, "again": PASSWORD}
        assert stranger.post("/start", {**fields, "code": "0000-0000-0000"})[0] == 403
        assert credentials.password is None
        short = {"code": credentials.code, "password": "short", "again": "short"}
        assert stranger.post("/start", short)[0] == 422
        status, headers, _ = stranger.post("/start", {**fields, "code": credentials.code})
        assert (status, headers["location"]) == (303, "/")
        assert stranger.get("/")[0] == 200
        late = Visitor(url)
        late.get("/login")
        assert late.get("/start")[1]["location"] == "/login", "it cannot be set a second time"
        token = re.search(r'name="t" value="(\w+)"', late.get("/login")[2])[1]
        again = {"t": token, "code": "", "password": "taken over now", "again": "taken over now"}
        assert late.ask("POST", "/start", urlencode(again))[1]["location"] == "/login"
        assert Visitor(url).log_in()[0] == 303


@pytest.mark.parametrize("path", VIEWS + DATA)
def test_without_a_session_no_view_is_shown(url, path):
    status, headers, _ = Visitor(url).get(path)
    assert status == 401 if path.startswith("/api") else headers["location"] == "/login"


def test_a_session_ends_with_logout_with_time_and_with_the_password(home, clock):
    credentials = Credentials(MemoryStore())
    with serving(page_of(home, credentials, now_s=lambda: clock[0])) as url:
        owner = Visitor(url)
        fields = {"code": credentials.code, "password": PASSWORD, "again": PASSWORD}
        owner.post("/start", fields)
        kept = dict(owner.cookies)
        owner.post("/logout", {}, form="/")
        owner.cookies = kept
        assert owner.get("/")[0] == 303
        clock[0] += 60
        owner.log_in()
        clock[0] += SESSION_S - 1
        assert owner.get("/")[0] == 200
        clock[0] += 2
        assert owner.get("/")[0] == 303
        owner.log_in()
        credentials.forget_password()
        assert owner.get("/")[1]["location"] == "/start"


def test_guessing_is_slowed_and_the_right_password_waits_too(url, clock):
    thief = Visitor(url)
    for _ in range(GUESSES):
        assert thief.log_in("guess")[0] == 403
    status, headers, text = thief.log_in(PASSWORD)
    assert (status, headers["retry-after"]) == (429, "30")
    assert "wait" in text
    clock[0] += 31
    assert thief.log_in("guess")[0] == 403
    assert thief.log_in(PASSWORD)[0] == 429
    clock[0] += 31
    assert thief.log_in(PASSWORD)[0] == 303


# --- Attacks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["evil.example", "hem.local.evil.example", "127.0.0.1.nip.io"])
def test_a_name_that_is_not_ours_is_not_answered(owner, host):
    status, _, text = owner.get("/", Host=host)
    assert status == 421
    assert "lime" not in text
    assert owner.get("/static/page.css", Host=host)[0] == 421
    assert owner.get("/", Host="hem.local")[0] == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "", "http://127.0.0.1"])
@pytest.mark.parametrize("path", ["/policy", "/backup", "/logout", "/login", "/start"])
def test_a_form_from_elsewhere_does_nothing(home, owner, path, origin):
    before = home.policy_file.read_text()
    token = re.search(r'name="t" value="(\w+)"', owner.get("/policy")[2])[1]
    body = urlencode({"t": token, "do": "save", "text": "", "password": PASSWORD})
    assert owner.ask("POST", path, body, Origin=origin)[0] == 403
    assert home.policy_file.read_text() == before
    assert home.backups == []
    assert owner.get("/")[0] == 200


@pytest.mark.parametrize("token", [None, "", "0" * 64, "é"])
@pytest.mark.parametrize("path", ["/policy", "/backup", "/logout", "/login"])
def test_a_form_without_its_token_does_nothing(home, owner, path, token):
    fields = {"do": "save", "text": "", "password": PASSWORD}
    if token is not None:
        fields["t"] = token
    assert owner.ask("POST", path, urlencode(fields))[0] == 403
    assert owner.get("/")[0] == 200
    assert home.backups == []


def test_anothers_token_is_no_token(url, owner):
    other = Visitor(url)
    other.log_in()
    token = re.search(r'name="t" value="(\w+)"', other.get("/policy")[2])[1]
    assert owner.ask("POST", "/logout", urlencode({"t": token}))[0] == 403


def test_a_body_is_bounded_and_a_broken_one_has_an_answer(owner):
    assert owner.ask("POST", "/policy", "t=" + "x" * BODY_BYTES_MAX)[0] == 413
    for body in (b"\xff\xfe", "&".join(f"a{n}=1" for n in range(20)), "", "%zz=%zz"):
        assert owner.ask("POST", "/policy", body)[0] in (400, 403)
    assert owner.get("/")[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/static//etc/passwd",
        "/static/%2fetc/passwd", "/static/....//app.py", "/static/", "/static/..%5capp.py",
    ],
)  # fmt: skip
def test_nothing_but_static_files_is_served(owner, path):
    assert (HERE / "app.py").exists()
    status, _, text = owner.get(path)
    assert status in (404, 405, 400)
    assert "import" not in text and "root:" not in text


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
def test_other_methods_do_nothing(owner, method):
    assert owner.ask(method, "/policy", Origin=f"http://{owner.host}")[0] in (403, 405)


def test_text_from_outside_stays_text(home, owner):
    home.name = "plain"
    device = replace(home.device_facts[0], name=EVIL, kind=EVIL, where=EVIL, status=EVIL)
    home.device_facts = [device]
    row = {"slot": 1, "timeMs": 0, "reason": EVIL, "batteryWh": 0, "codes": {"0": EVIL}}
    order = {"side": "buy", "energyWh": 1, "priceUcPerKwh": 1}
    home.told = [{**row, "orders": [order]}]
    home.moment_now = troubled()
    reason = replace(home.moment_now.health.reasons[0], text=EVIL)
    home.moment_now = replace(
        home.moment_now, health=replace(home.moment_now.health, reasons=(reason,))
    )
    pages = [owner.get(path)[2] for path in VIEWS]
    problem = owner.post("/policy", {"do": "check", "stamp": "", "text": f'"{EVIL}" = 1'})
    assert problem[0] == 422
    for text in (*pages, problem[2]):
        assert "<img src=x" not in text
    assert sum("&lt;img src=x" in text for text in (*pages, problem[2])) >= 5


def test_every_answer_has_a_strict_policy_and_nothing_secret(owner, url):
    for path in (*VIEWS, *DATA, "/login", "/nothing", "/static/page.css", "/plotly.min.js"):
        _, headers, text = owner.get(path)
        policy = headers["content-security-policy"]
        assert "unsafe" not in policy and "default-src 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert "argon2" not in text or path == "/plotly.min.js"
        if "text/html" in headers.get("content-type", ""):
            assert "<script>" not in text and " style=" not in text and "onclick" not in text
            assert not re.search(r'(?:src|href)="(?![/#])', text), "nothing from elsewhere"


AWAY = {"X-Forwarded-For": "192.168.1.9"}
"""A visitor elsewhere, as a proxy on this machine tells it."""


def test_monitoring_asks_for_no_session_on_this_machine_and_has_its_own_headers(url):
    for path in ("/api/health", "/metrics"):
        status, headers, text = Visitor(url).get(path)
        assert (status, text) == (200, "monitored")
        assert "content-security-policy" not in headers


def test_monitoring_answers_under_our_names_only(url):
    """A page elsewhere that binds its own name to this address reads nothing (DNS rebinding)."""
    for path in ("/api/health", "/metrics"):
        for host, status in (("evil.example", 421), ("hem.local", 200), ("192.168.1.5:8100", 200)):
            assert Visitor(url).get(path, Host=host)[0] == status


def test_the_balance_is_told_to_this_machine_and_to_who_is_logged_in(owner, url):
    status, _, text = Visitor(url).get("/metrics", **AWAY)
    assert status == 403
    assert "monitored" not in text and "http.metrics" in text
    assert Visitor(url).get("/api/health", **AWAY)[0] == 200
    assert owner.get("/metrics", **AWAY)[0] == 200
    owner.post("/logout", {}, form="/")
    assert owner.get("/metrics", **AWAY)[0] == 403


def test_metrics_that_the_owner_opened_are_for_all_under_our_names(home):
    with serving(page_of(home, metrics_open=True)) as address:
        assert Visitor(address).get("/metrics", **AWAY)[0] == 200
        assert Visitor(address).get("/metrics", Host="evil.example", **AWAY)[0] == 421


@pytest.mark.parametrize(
    ("address", "here"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("::ffff:127.0.0.1", True),
     ("192.168.1.9", False), ("::ffff:192.168.1.9", False), ("unix:", False), (None, False)],
)  # fmt: skip
def test_this_machine_is_the_loopback_interface(address, here):
    client = None if address is None else (address, 1)
    assert on_this_machine(Request({"type": "http", "client": client})) is here


# --- Views ---------------------------------------------------------------------------------------


def test_now_says_what_flows_where(home, owner):
    _, _, text = owner.get("/")
    for part in ("3.48", "0.72", "charging", "exporting", "12.43", "16.80", "0.31 kWh sold"):
        assert part in text
    home.moment_now = replace(WELL, fresh=False, soc_permille=-1, price_uc_per_kwh=None)
    _, _, text = owner.get("/")
    assert "may be old" in text and "no battery" in text


def test_devices_says_how_to_set_one_up(owner):
    _, _, text = owner.get("/devices")
    assert 'href="#set-up"' in text and 'id="set-up"' in text
    assert "hem setup provisioning.toml" in text


def test_today_says_when_there_is_no_plan(home, owner):
    assert "There is no plan" not in owner.get("/today")[2]
    home.planned = False
    assert "There is no plan" in owner.get("/today")[2]


def test_the_wallet_comes_as_csv_in_whole_numbers(home, owner):
    _, headers, text = owner.get("/wallet.csv")
    assert headers["content-disposition"] == 'attachment; filename="lime-street-7-settled.csv"'
    lines = text.split("\r\n")
    assert lines[0].startswith("start_utc,slot,net_wh")
    assert len(lines) == len(home.settlements(None)) + 2
    first = home.settlements(None)[0]
    assert lines[1].split(",")[1:3] == [str(first["slot"]), str(first["netWh"])]


def test_the_rank_names_this_home(home, owner):
    assert "Place 2 of 5" in owner.get("/rank")[2]
    home.validator = ""
    assert "hosts no validator" in owner.get("/rank")[2]


def test_a_policy_is_checked_and_only_a_valid_one_is_saved(home, owner):
    def stamp():
        return re.search(r'name="stamp" value="(\w*)"', owner.get("/policy")[2])[1]

    before = home.policy_file.read_text()
    for text in ("reserve_permille = 2000", "no_such = 1", "x = ]", "x = " + "[" * 5_000):
        fields = {"stamp": stamp(), "text": "# mine\r\n" + text, "do": "save"}
        status, _, page = owner.post("/policy", fields)
        assert status == 422
        assert "line 2" in page or "nested" in page
        assert home.policy_file.read_text() == before
    fields = {"stamp": stamp(), "text": "reserve_permille = 300\r\n", "do": "check"}
    assert "not saved yet" in owner.post("/policy", fields)[2]
    assert home.policy_file.read_text() == before
    old = stamp()
    assert owner.post("/policy", {**fields, "do": "save"})[1]["location"] == "/policy?saved"
    assert home.policy_file.read_text() == "reserve_permille = 300\n"
    assert (home.folder / "policy.toml.bak").read_text() == before
    assert "after a restart" in owner.get("/policy?saved")[2]
    home.policy_at_once = True
    assert "from now on" in owner.get("/policy?saved")[2]
    status, _, page = owner.post("/policy", {**fields, "stamp": old, "do": "save"})
    assert status == 422 and "somebody else" in page
    assert sorted(path.name for path in home.folder.iterdir()) == ["policy.toml", "policy.toml.bak"]


def test_a_backup_needs_the_password_again_and_leaves_nothing_behind(home, owner):
    assert owner.post("/backup", {"password": "guess"})[0] == 403
    assert home.backups == []
    status, headers, body = owner.post("/backup", {"password": PASSWORD})
    assert (status, body) == (200, "a backup")
    assert headers["content-disposition"] == 'attachment; filename="lime-street-7-2026-06-01.tar"'
    assert headers["cache-control"] == "no-store"
    (made,) = home.backups
    assert not made.exists() and not made.parent.exists()


# --- A real home ---------------------------------------------------------------------------------


async def test_a_real_home_has_a_page(tmp_path):
    import asyncio  # noqa: PLC0415

    from home_at_hand import SLOT, award, begin, make_home, register  # noqa: PLC0415

    living = make_home(tmp_path)
    file = tmp_path / "provisioning.toml"
    file.write_text(file.read_text() + "[http]\nport = 0\n")
    from hem.config import load_provisioning  # noqa: PLC0415

    living.config = load_provisioning(file)
    await register(living)
    await begin(living, SLOT)
    await award(living, SLOT, "buy", 400)
    await begin(living, SLOT + 1)
    (row,) = living.day.rows(SLOT - 5, SLOT + 5)
    assert (row.slot, row.import_wh, row.pv_wh, row.load_wh) == (SLOT, 500, 200, 700)
    assert row.price_uc_per_kwh == 150_000
    event = {"event": "cpf", "validator": "hg1x", "cpfQ16": 65_536, "endSlot": SLOT}
    await living.standings.take_event(3, {**event, "eligible": True})

    def look(url):
        owner = Visitor(url.rstrip("/"))
        code = Credentials(living.store).code
        fields = {"code": code, "password": PASSWORD, "again": PASSWORD}
        assert owner.post("/start", fields)[0] == 303
        pages = {path: owner.get(path) for path in (*VIEWS, *DATA)}
        backup = owner.post("/backup", {"password": PASSWORD})
        return pages, backup, owner.get("/api/health")

    url_file = living.config.home.data_dir / "http.url"
    async with living._serving():
        pages, backup, health = await asyncio.to_thread(look, url_file.read_text().strip())
    assert {path: page[0] for path, page in pages.items()} == dict.fromkeys(pages, 200)
    assert "2.00" in pages["/"][2] and "meter" in pages["/devices"][2]
    assert "1.00" in pages["/rank"][2]
    assert backup[0] == 200
    assert health[0] in (200, 503) and "reasons" in health[2]


def test_the_page_does_not_import_plotly(tmp_path):
    import subprocess  # noqa: PLC0415
    import sys  # noqa: PLC0415

    code = "import sys, hem.web.app, hem.web.living_home; print('plotly' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    code = "import sys, hem.service; print({'jinja2', 'starlette'} & set(sys.modules) or 'none')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "none"
