"""The `broker` command: what an operator sees when something is wrong, and when it is right."""

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.brokers import make_key
from support.patience import PATIENCE_S

from wire.keys import to_text

REPOSITORY = Path(__file__).resolve().parents[2]
KEY = to_text(make_key("issuing").public)


def command(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "broker.cli", *map(str, arguments)],
        capture_output=True, text=True, timeout=PATIENCE_S, cwd=cwd, check=False,
        env={"PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip


def write_genesis(folder, **changes):
    path = folder / "genesis.json"
    facts = {"market": "demo", "issuingKey": KEY, "slotLengthS": 900, "chainId": "x", **changes}
    path.write_text(json.dumps(facts))
    return path


def check_one_line(done, *words):
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr


def test_a_port_in_use_is_one_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        genesis = write_genesis(tmp_path)
        done = command("run", "--genesis", genesis, "--port", port, cwd=tmp_path)
    check_one_line(done, "cannot listen on", str(port))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--genesis", "nowhere.json"), ("nowhere.json", "No such file")),
        (("--market", "demo", "--issuing-key-file", "nowhere"), ("nowhere", "No such file")),
        ((), ("--genesis",)),
        (("--genesis", "bad.json"), ("bad.json", "not a genesis")),
        (("--genesis", "genesis.json", "--market", "other"), ("genesis.json", "demo")),
        (("--genesis", "short.json"), ("short.json", "issuing key")),
        (("--genesis", "genesis.json", "--state", "bad.json"), ("bad.json",)),
        (("--genesis", "genesis.json", "--certfile", "c.pem"), ("--keyfile",)),
        (("--genesis", "genesis.json", "--certfile", "c", "--keyfile", "k"), ("does not exist",)),
    ],
)
def test_a_mistake_is_one_line(tmp_path, arguments, words):
    write_genesis(tmp_path, issuingKey="AAAA").rename(tmp_path / "short.json")
    write_genesis(tmp_path)
    (tmp_path / "bad.json").write_text("neither JSON nor SQLite, " * 20)
    check_one_line(command("run", "--port", 0, *arguments, cwd=tmp_path), *words)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_where_it_listens_and_stops_when_told(tmp_path, number):
    port_file = tmp_path / "port"
    process = subprocess.Popen(
        [sys.executable, "-m", "broker.cli", "run", "--port", "0", "--json", "--memory",
         "--genesis", str(write_genesis(tmp_path)), "--port-file", str(port_file)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        env={"PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    facts = json.loads(process.stdout.readline())
    assert facts == {"host": "127.0.0.1", "market": "demo", "port": int(port_file.read_text())}
    with socket.create_connection(("127.0.0.1", facts["port"])):
        process.send_signal(number)
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert errors == ""
    assert not (tmp_path / "broker.sqlite").exists()


def test_mosquitto_gets_the_limits_and_identity_rules(tmp_path):
    text = command("render", "mosquitto", "--port", 18883, cwd=tmp_path).stdout
    for line in (
        "listener 18883", "use_identity_as_username true", "use_username_as_clientid true",
        "allow_anonymous false", "require_certificate true", "set_tcp_nodelay true",
        "autosave_interval 1", "autosave_on_changes false", "max_queued_messages 100000",
    ):  # fmt: skip
        assert line in text.splitlines()
    assert "per_listener_settings" not in text


def test_mosquittos_acl_says_what_the_embedded_broker_says(tmp_path):
    node = make_key("node").id
    done = command("render", "mosquitto", "acl", "--service", f"{node}=validator", cwd=tmp_path)
    common, special = done.stdout.split(f"user {node}\n")
    root = "hg/v1/demo"
    assert f"pattern readwrite {root}/tx/%u" in common.splitlines()
    assert f"pattern write {root}/csmdb/req/%u" in common.splitlines()
    assert f"pattern read {root}/csmdb/rsp/%u" in common.splitlines()
    assert f"pattern write {root}/hem/%u/reading" in common.splitlines()
    assert "/reading" not in special.replace(f"hem/{node}/reading", "")
    assert f"topic write {root}/sync/rsp/+" in special.splitlines()
    assert f"topic readwrite {root}/consensus/vote/{node}" in special.splitlines()
    assert not [li for li in common.splitlines() if "write" in li and ("+" in li or "prop" in li)]
    assert "#" not in "".join(li for li in done.stdout.splitlines() if not li.startswith("#"))


def test_a_service_needs_a_known_role(tmp_path):
    done = command("render", "mosquitto", "acl", "--service", "hg1x=boss", cwd=tmp_path)
    check_one_line(done, "boss", "validator")
