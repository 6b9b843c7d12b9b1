"""The operators' HTTP API over real HTTP, on both storages."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from support.brokers import REPOSITORY, Authority, running_broker
from support.csmdb_site import NOW_MS, StandingClock, enrolled, run_csmdb
from support.http import Reply, get, serving
from support.patience import PATIENCE_S

from csmdb.api import build_app
from csmdb.api_models import Problem
from csmdb.api_table import ENDPOINTS, MAX_BODY_BYTES, openapi
from csmdb.csaf import MAX_BYTES
from csmdb.setup import open_csmdb
from csmdb.tokens import ROLES, make_token
from sim.scenarios.vulnerable_meter import made_up

FUTURE = made_up().replace(b'"2026-01-05T00:00:00Z"', b'"2126-01-05T00:00:00Z"')
ALIAS = {"plateVendor": "Test", "plateModel": "M1", "vendor": "Made up", "model": "M1"}
BODIES = {
    "put_person": {"name": "Ann Example", "meterLocation": "cellar"},
    "ban": {"reason": "tampered with"},
    "set_meter": {"firmware": "2.0"},
    "import_advisory": json.loads(made_up()),
    "put_alias": ALIAS,
    "drop_alias": ALIAS,
    "re_enrol": {"reason": "lost"},
    "revoke": {"reason": "stolen"},
    "add_claim": {
        "roles": ["prosumer"], "maxImportW": 9000, "maxExportW": 5000, "feeder": "f1",
    },
}  # fmt: skip
GUARDED = [one for one in ENDPOINTS if one.roles]


def call(url, method="GET", token="", body=None, raw=None):
    data = raw if raw is not None else (json.dumps(body).encode() if body is not None else None)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(url, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            return Reply(answer.status, dict(answer.headers), answer.read())
    except urllib.error.HTTPError as error:
        return Reply(error.code, dict(error.headers), error.read())


class Site:
    """The API of a CSM-DB; each call comes while it is only looked at by us between calls."""

    def __init__(self, csmdb, url):
        self.csmdb, self.url = csmdb, url
        self.tokens = {role: make_token(csmdb, role) for role in ROLES}
        self.home = enrolled(csmdb)

    def ask(self, endpoint, role="", **more):
        path = re.sub(r"{\w+}", self.home.ems.id, endpoint.path)
        token = self.tokens.get(role, role)
        body = more.pop("body", BODIES.get(endpoint.name))
        return call(self.url + path, endpoint.method, token, body, **more)

    def log(self):
        return list(self.csmdb.repository.audit_rows())


@pytest.fixture
def site(csmdb):
    with (
        open_csmdb(csmdb.folder, clock=StandingClock()) as served,
        serving(build_app(served, burst=1000)) as url,
    ):
        yield Site(csmdb, url)


def one_of(name):
    return next(one for one in ENDPOINTS if one.name == name)


def test_every_endpoint_answers_as_openapi_says_and_every_call_is_in_the_log(site):
    for endpoint in ENDPOINTS:
        reply = site.ask(endpoint, endpoint.roles[0] if endpoint.roles else "")
        assert reply.status == endpoint.status, (endpoint.name, reply.body)
        if endpoint.model is not None:
            endpoint.model.model_validate_json(reply.body, strict=True)
            schema = openapi()["components"]["schemas"][endpoint.model.__name__]
            assert set(reply.json()) == set(schema["properties"])
    calls = [row for row in site.log() if row["action"].startswith("http ")]
    expected = [(f"http {one.method} {one.path}", "OK") for one in GUARDED]
    assert [(row["action"], row["outcome"]) for row in calls] == expected
    assert all(row["actor"].startswith("token/") for row in calls)
    about = [row for row in calls if "{participant}" in row["action"]]
    assert {row["subject"] for row in about} == {site.home.ems.id}
    site.csmdb.repository.check_audit()


def test_only_the_roles_of_an_endpoint_may_and_the_others_change_nothing(site):
    for endpoint in GUARDED:
        for role in set(ROLES) - set(endpoint.roles):
            before = len(site.log())
            reply = site.ask(endpoint, role)
            assert (reply.status, reply.json()["code"]) == (403, "NOT_ALLOWED")
            (row,) = site.log()[before:]
            assert (row["outcome"], row["actor"][:6]) == ("NOT_ALLOWED", "token/")


def test_without_a_token_that_counts_nothing_is_told(site):
    good = site.tokens["security"]
    for token in ("", "x", "hgt.", good[:-2], good.replace("hgt", "hgx"), good + "A", "hgt.ab.c"):
        for endpoint in GUARDED:
            reply = site.ask(endpoint, token)
            assert (reply.status, reply.json()["code"]) == (401, "NO_TOKEN"), token
    assert site.log()[-1]["outcome"] == "NO_TOKEN"
    assert site.log()[-1]["actor"] == "http"


def test_a_token_is_hashed_listed_and_can_be_ended(site):
    folder = site.csmdb.folder
    token = json.loads(run_csmdb("token", "new", folder, "viewer", "--name", "Eve", "--json"))
    token = token["token"]
    secret = token.rsplit(".", 1)[1]
    rows = [*site.csmdb.repository.db.query("SELECT * FROM tokens"), *site.log()]
    assert secret not in repr(rows)
    listed = json.loads(run_csmdb("token", "list", folder, "--json"))
    assert [row["name"] for row in listed if row["name"]] == ["Eve"]
    assert site.ask(one_of("claims"), token).status == 200
    with site.csmdb.repository.atomic():
        site.csmdb.repository.end_token(token.split(".")[1], NOW_MS)
    assert site.ask(one_of("claims"), token).status == 401
    run_csmdb("token", "revoke", folder, token.split(".")[1])
    assert "no such token" in run_csmdb("token", "revoke", folder, "nobody", code=2)
    assert "expected one of" in run_csmdb("token", "new", folder, "king", code=2)


@pytest.mark.parametrize(
    ("name", "raw", "status", "code"),
    [
        ("ban", b"", 400, "BAD_BODY"),
        ("ban", b"{", 400, "BAD_BODY"),
        ("ban", b'{"reason": ""}', 400, "BAD_BODY"),
        ("ban", b'{"reason": "x", "more": 1}', 400, "BAD_BODY"),
        ("ban", b'{"reason": "' + b"x" * 300 + b'"}', 400, "BAD_BODY"),
        ("ban", b"[" * 10_000, 400, "BAD_BODY"),
        ("ban", b" " * (MAX_BODY_BYTES + 1), 413, "OVERSIZED"),
        ("import_advisory", b"{}", 400, "MALFORMED"),
        ("import_advisory", b" " * (MAX_BYTES + 1), 413, "OVERSIZED"),
        ("import_advisory", FUTURE, 400, "FUTURE_DATED"),
        ("put_person", b'{"name": "a\\u0000b"}', 400, "BAD_PARAMETER"),
        ("put_person", b'{"name": "\\ud800"}', 400, "BAD_BODY"),
        ("add_claim", json.dumps({**BODIES["add_claim"], "roles": ["king"]}).encode(), 400,
         "BAD_PARAMETER"),
        ("add_claim", json.dumps({**BODIES["add_claim"], "maxImportW": 2**70}).encode(), 400,
         "BAD_PARAMETER"),
        ("add_claim", json.dumps({**BODIES["add_claim"], "feeder": "a\0"}).encode(), 400,
         "BAD_BODY"),
    ],
)  # fmt: skip
def test_a_body_that_is_wrong_is_refused_by_name_logged_and_not_quoted(
    site, name, raw, status, code
):
    before = site.csmdb.repository.participant(site.home.ems.id)
    reply = site.ask(one_of(name), one_of(name).roles[0], raw=raw)
    assert (reply.status, reply.json()["code"]) == (status, code)
    Problem.model_validate_json(reply.body)
    assert site.csmdb.repository.participant(site.home.ems.id) == before
    assert site.log()[-1]["outcome"] == code
    assert "king" not in json.dumps(site.log())


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/participants/hg1nobody", 404),
        ("/participants/" + "hg1" + "a" * 32, 404),
        ("/participants?limit=0", 400),
        ("/participants?limit=x", 400),
        ("/participants?after=%27", 400),
        ("/participants?more=1", 400),
        ("/nowhere", 404),
    ],
)
def test_a_path_or_parameter_that_is_wrong_is_refused_by_name(site, path, status):
    reply = call(site.url + path, token=site.tokens["viewer"])
    assert reply.status == status
    Problem.model_validate_json(reply.body)
    assert call(site.url + "/claims", "DELETE").status == 405


def test_an_advisory_bans_a_meter_and_a_new_firmware_ends_it_and_an_old_text_is_refused(site):
    again = made_up().replace(b'"version": "1"', b'"version": "2"')
    for raw, outcome in ((made_up(), "new"), (made_up(), "known"), (again, "updated")):
        reply = site.ask(one_of("import_advisory"), "security", raw=raw)
        assert (reply.status, reply.json()["outcome"]) == (200, outcome)
    reply = site.ask(one_of("import_advisory"), "security", raw=made_up())
    assert (reply.status, reply.json()["code"]) == (409, "ROLLED_BACK")
    assert site.ask(one_of("review"), "security").json() == {"meters": []}
    (meter,) = site.ask(one_of("put_alias"), "security").json()["meters"]
    assert (meter["participant"], meter["banned"], meter["changed"]) == (
        site.home.ems.id,
        True,
        True,
    )
    assert meter["findings"][0]["fixedIn"] == ["1.1"]
    assert site.ask(one_of("participant"), "viewer").json()["banned"]
    told = site.ask(one_of("set_meter"), "security", body={"firmware": "1.1"}).json()
    assert (told["banned"], told["changed"]) == (False, True)
    assert not site.ask(one_of("participant"), "viewer").json()["banned"]


def test_participants_come_in_pages_without_who_they_are(site):
    for number in range(5):
        enrolled(site.csmdb, f"more-{number}")
    site.ask(one_of("put_person"), "registrar")
    seen, after = [], ""
    while True:
        url = f"{site.url}/participants?limit=3&after={after}"
        page = call(url, token=site.tokens["viewer"])
        assert b"Ann" not in page.body
        seen += [one["id"] for one in page.json()["participants"]]
        after = page.json()["next"]
        if not after:
            break
    assert seen == sorted(set(seen))
    assert len(seen) == 7


def test_orders_are_carried_out(site):
    site.ask(one_of("put_person"), "registrar")
    assert site.csmdb.repository.person(site.home.ems.id).meter_location == "cellar"
    site.ask(one_of("ban"), "security")
    assert site.csmdb.repository.participant(site.home.ems.id).banned == "tampered with"
    site.ask(one_of("unban"), "security")
    assert site.csmdb.repository.participant(site.home.ems.id).banned == ""
    site.ask(one_of("erase"), "security")
    assert site.csmdb.repository.person(site.home.ems.id).name == ""
    code = site.ask(one_of("add_claim"), "registrar").json()["claimCode"]
    assert re.fullmatch(r"(\w{4}-){3}\w{4}", code)
    site.csmdb.repository.check_audit()


def test_the_description_is_whole_and_describes_every_route(csmdb):
    document = openapi()
    described = {
        (method.upper(), path) for path, item in document["paths"].items() for method in item
    }
    routes = {(method, route.path) for route in build_app(csmdb).routes for method in route.methods}
    assert described == {route for route in routes if route[0] != "HEAD"}
    names = [one["operationId"] for item in document["paths"].values() for one in item.values()]
    assert len(set(names)) == len(names)
    for name in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)):
        assert name in document["components"]["schemas"]
    for one in ENDPOINTS:
        operation = document["paths"][one.path][one.method.lower()]
        assert ("security" in operation) == bool(one.roles)
        assert ("requestBody" in operation) == (one.body is not None or one.document > 0)


@pytest.mark.parametrize("storage_url", ["sqlite"], indirect=True)
def test_who_asks_too_often_is_refused_and_does_not_fill_the_log(csmdb):
    with (
        open_csmdb(csmdb.folder, clock=StandingClock()) as served,
        serving(build_app(served, burst=5)) as url,
    ):
        replies = [call(url + "/claims") for _ in range(20)]
    assert [reply.status for reply in replies] == [401] * 5 + [429] * 15
    calls = [r for r in csmdb.repository.audit_rows() if r["action"].startswith("http")]
    assert len(calls) == 5


@pytest.mark.parametrize("storage_url", ["sqlite"], indirect=True)
def test_another_host_name_is_not_answered(site):
    """A page of somebody else that is given our address by its name server."""
    assert get(site.url + "/healthz", Host="evil.example").status == 400


async def test_the_process_serves_it_where_it_is_configured(tmp_path):
    folder = tmp_path / "db"
    run_csmdb("init", folder, "--market", "test")
    (folder / "csmdb.toml").write_text("[http]\nport = 0\n")
    token = run_csmdb("token", "new", folder, "viewer").strip()
    with open_csmdb(folder) as opened:
        authority = Authority("test", opened.issuing_key)
    async with running_broker(authority) as broker:
        words = ["run", str(folder), "--port", str(broker.port)]
        process = subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, "-m", "csmdb.cli", *words],
            cwd=REPOSITORY,
            env={**os.environ, "HEARTHGRID_LOG": "warning"},
        )
        try:
            deadline_s = time.monotonic() + PATIENCE_S
            while not (folder / "http.url").exists() and time.monotonic() < deadline_s:
                await asyncio.sleep(0.05)
            url = (folder / "http.url").read_text().strip()
            reply = await asyncio.to_thread(call, url + "participants", "GET", token)
            assert [one["roles"] for one in reply.json()["participants"]] == [["csmdb"]]
        finally:
            process.send_signal(signal.SIGTERM)
            code = await asyncio.to_thread(process.wait, PATIENCE_S)
        assert code == 0
        assert not (folder / "http.url").exists()
