"""The `csmdb` command."""

import asyncio
import json
import os
import signal
import subprocess
import sys

import pytest
from support.brokers import REPOSITORY, Authority, make_key, running_broker
from support.enrolment import AskingHome, connected_lane
from support.patience import PATIENCE_S

from csmdb.setup import open_csmdb
from wire.certificates import Certificate, load
from wire.keys import to_text


def csmdb(*words, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "csmdb.cli", *map(str, words)],
        capture_output=True,
        check=False,
        text=True,
        cwd=REPOSITORY,
        timeout=PATIENCE_S,
    )
    assert done.returncode == code, done.stderr
    return done.stderr if code else done.stdout


def test_an_operator_makes_a_database_and_hands_out_claims_and_certificates(tmp_path):
    folder = tmp_path / "db"
    facts = json.loads(csmdb("init", folder, "--market", "test", "--json"))
    assert (folder / "issuing.key").stat().st_mode & 0o077 == 0
    words = ["--roles", "prosumer", "--max-import-w", 9000, "--max-export-w", 5000]
    line = csmdb("claim", "add", folder, *words, "--feeder", "f1", "--json")
    assert len(json.loads(line)["claimCode"]) == 19
    key = make_key("aggregator")
    public = to_text(key.public)
    text = csmdb("service-cert", folder, "--key", public, "--roles", "aggregator,dso")
    with open_csmdb(folder) as opened:
        certificate = load(Certificate, text.strip(), opened.issuing_key.public, "test")
        assert facts["id"] == opened.id
    assert (certificate.subject, certificate.roles) == (key.id, ["aggregator", "dso"])
    assert [row["id"] for row in json.loads(csmdb("list", folder, "--json"))][1] == key.id
    assert json.loads(csmdb("show", folder, key.id, "--json"))["certificate"]["signature"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["list", "nowhere"], "csmdb init"),
        (["init", "{}", "--market", "Not A Market"], "market name"),
        (["show", "{db}", "hg1nobody"], "nobody has this identity"),
        (["service-cert", "{db}", "--key", "short", "--roles", "dso"], "base64url"),
        (["service-cert", "{db}", "--key", to_text(bytes(32)), "--roles", "king"], "roles"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, words, message):
    folder = tmp_path / "db"
    if "{db}" in words:
        csmdb("init", folder, "--market", "test")
    words = [str(folder) if word in ("{}", "{db}") else word for word in words]
    error = csmdb(*words, code=2)
    assert message in error
    assert error.startswith("csmdb: ")
    assert error.count("\n") == 1


async def test_the_process_serves_until_it_is_told_to_stop(tmp_path):
    folder = tmp_path / "db"
    csmdb("init", folder, "--market", "test")
    with open_csmdb(folder) as opened:
        code = opened.add_claim(["consumer"], 5_000, 0, "f1")
        authority = Authority("test", opened.issuing_key)
        async with running_broker(authority) as broker:
            words = ["run", folder, "--port", broker.port]
            process = subprocess.Popen(  # noqa: ASYNC220
                [sys.executable, "-m", "csmdb.cli", *map(str, words)],
                cwd=REPOSITORY,
                env={**os.environ, "HEARTHGRID_LOG": "warning"},
            )
            try:
                home = AskingHome("home-1")
                bus = await connected_lane(authority, broker.port, home.ems)
                client = home.client(bus, "test", opened.issuing_key.public, opened.box.public)
                answer = await client.ask("enroll", home.enrolment(code), 20)
                assert answer["certificate"]["roles"] == ["consumer"]
                await bus.stop()
            finally:
                process.send_signal(signal.SIGTERM)
                code = await asyncio.to_thread(process.wait, 10)
            assert code == 0
