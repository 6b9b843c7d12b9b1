"""The console over real HTTP."""

from __future__ import annotations

import base64
import json
import re
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.console_preview import Preview
from support.patience import PATIENCE_S

import analytics
from analytics.live import Situation
from analytics.web import GUESS_EVERY_S, GUESSES, build_app

PACKAGE = Path(analytics.__file__).parent


def get(url: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            return answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, {k.lower(): v for k, v in error.headers.items()}, error.read()


@pytest.mark.parametrize("path", ["/", "/api/live", "/report", "/static/console.js", "/nowhere"])
def test_every_answer_is_confined(console: str, path: str):
    _, headers, _ = get(console + path)
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert not re.search(r"script-src[^;]*unsafe", policy)
    assert "http" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"


def test_the_page_asks_nobody_else_for_anything(console: str):
    _, _, page = get(console + "/")
    for link in re.findall(r'(?:src|href)="([^"]+)"', page.decode()):
        assert link.startswith("/")
        status, _, body = get(console + link)
        assert status == 200
        assert body
    for source in (PACKAGE / "static").iterdir():
        addresses = re.findall(r"https?://[^\s\"']+", source.read_text())
        assert addresses in ([], ["http://www.w3.org/2000/svg"]), source.name


def test_scripts_never_make_html_from_text():
    for script in (PACKAGE / "static").glob("*.js"):
        forbidden = re.search(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|eval", script.read_text()
        )
        assert not forbidden, script.name


def test_a_page_called_by_a_foreign_name_is_refused(console: str):
    assert get(console + "/api/live", Host="evil.example")[0] == 400
    assert get(console + "/api/live", Host="localhost")[0] == 200


def test_a_poll_with_a_cursor_is_short(console: str):
    _, _, everything = get(console + "/api/live")
    cursor = json.loads(everything)["cursor"]
    _, _, change = get(f"{console}/api/live?since={cursor}")
    assert len(change) < 1500 < len(everything)
    assert get(console + "/api/live?since=" + "x" * 5000)[0] == 200


def test_the_summary_has_what_progress_displays_need(console: str):
    summary = json.loads(get(console + "/api/summary")[2])
    assert {"timeMs", "height", "tradedWh", "finalityP50Ms", "funded"} <= summary.keys()
    assert summary["funded"] == 10


def test_prometheus_can_read_the_metrics(console: str):
    _, headers, body = get(console + "/metrics")
    families = {f.name: f for f in text_string_to_metric_families(body.decode())}
    assert families["hearthgrid_homes_online"].samples[0].value == 10
    traded_wh = families["hearthgrid_day_traded_wh"].samples[0].value
    by_market = {s.labels["market"]: s.value for s in families["hearthgrid_day_market_wh"].samples}
    assert by_market["market"] == traded_wh > 0
    assert headers["content-type"].startswith("text/plain")


def test_the_report_so_far_is_served_as_page_and_json(console: str):
    status, headers, page = get(console + "/report")
    assert status == 200
    nonce = re.search(r"'nonce-([^']+)'", headers["content-security-policy"])
    assert nonce is not None
    assert page.decode().count(f'nonce="{nonce[1]}"') == 3
    assert json.loads(get(console + "/api/report")[2])["market"] == "demo"


def test_writing_is_not_possible(console: str):
    request = urllib.request.Request(console + "/api/live", data=b"{}", method="POST")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=PATIENCE_S)
    assert refused.value.code == 405


def test_static_files_stay_in_their_folder(console: str):
    for path in ("/static/../web.py", "/static/%2e%2e/web.py", "/static/..%2fweb.py"):
        assert get(console + path)[0] in (400, 404)


def test_healthz_says_503_without_a_broker(evening: Preview, serve):
    cut = Situation(evening.now_ms(), 1.0, connected=False, uptime_s=1.0)
    with serve(build_app(evening.view, lambda: cut, evening.report)) as url:
        status, _, body = get(url + "/healthz")
    assert status == 503
    assert json.loads(body)["reasons"] == ["no connection to the broker"]


@pytest.mark.parametrize(
    ("given", "status"),
    [("", 401), ("Basic ???", 401), ("Basic " + base64.b64encode(b"x:wrong").decode(), 401),
     ("Basic " + base64.b64encode(b"x:a long password").decode(), 200), ("Bearer a", 401)],
)  # fmt: skip
def test_a_password_is_asked_for_where_one_is_set(evening: Preview, serve, given, status):
    app = build_app(evening.view, evening.situation, evening.report, password="a long password")
    with serve(app) as url:
        headers = {"Authorization": given} if given else {}
        assert get(url + "/api/live", **headers)[0] == status
        assert get(url + "/static/console.js", **headers)[0] == status


def test_guessing_the_password_is_slowed_and_the_right_one_waits_too(evening: Preview, serve):
    """Ten wrong ones at once, then none is looked at, right or wrong, until time has passed."""
    now_s = 0.0
    app = build_app(
        evening.view, evening.situation, evening.report, password="a long password",
        monotonic_s=lambda: now_s,
    )  # fmt: skip
    wrong, right = (
        {"Authorization": "Basic " + base64.b64encode(b"x:" + password).decode()}
        for password in (b"a wrong password", b"a long password")
    )
    with serve(app) as url:
        known = [get(url + "/healthz", **right)[0] for _ in range(GUESSES + 5)]
        tried = [get(url + "/healthz", **wrong)[0] for _ in range(GUESSES + 2)]
        assert 429 not in known
        assert tried == [401] * GUESSES + [429] * 2
        assert get(url + "/healthz", **right)[0] == 429
        assert get(url + "/healthz")[0] == 401
        now_s += GUESS_EVERY_S
        assert get(url + "/healthz", **right)[0] != 429
