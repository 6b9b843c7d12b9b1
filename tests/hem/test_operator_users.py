"""On the operators' servers every private key is read by its own service's user and no other."""

import base64
import json
import os
import socket
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest
from support.brokers import Authority, make_key
from support.feeders import SUPERVISOR, VALIDATORS, make_genesis
from support.patience import PATIENCE_S
from test_users import as_user, holders_of, interpreter, other_users  # noqa: F401

from csmdb.setup import create
from csmdb.tls import init_authority, write_server
from ledger.genesis import genesis_bytes
from runtime.keyfiles import read_secret, write_secret
from wire.certificates import dump_text
from wire.keys import BoxKey, to_text

pytestmark = pytest.mark.long
USERS = {"csmdb": 61_021, "broker": 61_022, "ledger": 61_023, "aggregator": 61_024,
         "analytics": 61_025}  # fmt: skip
TRY = """
import json, os, sys
got = []
for path in json.loads(sys.argv[1]):
    for trick in (lambda: open(path, "rb").read(1), lambda: os.chmod(path, 0o644),
                  lambda: os.rename(path, path + ".mine"), lambda: os.unlink(path),
                  lambda: os.listdir(os.path.dirname(path))):
        try:
            trick()
            got.append(path)
        except OSError:
            pass
for pid in json.loads(sys.argv[2]):
    for name in ("mem", "environ", "maps"):
        try:
            open(f"/proc/{pid}/{name}", "rb").read(1)
            got.append(f"/proc/{pid}/{name}")
        except PermissionError:
            pass
        except OSError:
            got.append(f"/proc/{pid}/{name}")
print(json.dumps(got))
"""
AGGREGATOR = """
[service]
key = "service.key"
certificate = "certificate.json"
box_key = "dso-box.key"
data_dir = "data"
[broker]
host = "127.0.0.1"
port = 1
[market]
genesis = "{genesis}"
csmdb_box = "{box}"
"""


class Servers:
    """The folders as deploy/operator says, with real keys in them; nobody listens anywhere."""

    def __init__(self, root):
        self.root = root
        for name in USERS:
            (root / name).mkdir(mode=0o700)
        with create(root / "csmdb" / "db", "test") as csmdb:
            init_authority(csmdb)
            write_server(csmdb, ["127.0.0.1"], root / "broker" / "tls")
            authority, box = Authority("test", csmdb.issuing_key), csmdb.box
        dso_box = BoxKey(make_key("dso-box").seed)
        genesis = make_genesis(authority, dso_box_key=to_text(dso_box.public))
        self.genesis = root / "genesis.json"
        self.genesis.write_bytes(genesis_bytes(genesis))
        (root / "issuing").write_text(to_text(authority.key.public))
        for name, key, roles in (
            ("ledger", VALIDATORS[0], ["validator"]),
            ("aggregator", SUPERVISOR, ["dso", "aggregator"]),
            ("analytics", make_key("analytics"), ["analytics"]),
        ):
            write_secret(root / name / "service.key", key.seed)
            certificate = dump_text(authority.certificate(key, roles))
            (root / name / "certificate.json").write_text(certificate)
        write_secret(root / "aggregator" / "dso-box.key", dso_box.seed)
        text = AGGREGATOR.format(genesis=self.genesis, box=to_text(box.public))
        (root / "aggregator" / "aggregator.toml").write_text(text)
        (root / "ledger" / "chain").mkdir()
        (root / "ledger" / "chain" / "genesis.json").write_bytes(genesis_bytes(genesis))
        for name, uid in USERS.items():
            for path in (root / name, *(root / name).rglob("*")):
                os.chown(path, uid, uid)
        for public in (self.genesis, root / "issuing"):
            public.chmod(0o644)

    def command(self, name):
        own = self.root / name
        files = ["--key-file", own / "service.key", "--certificate", own / "certificate.json"]
        lane = ["--host", "127.0.0.1", "--port", "1"]
        tls = own / "tls"
        return {
            "csmdb": ["run", own / "db", *lane],
            "broker": ["run", "--port", "0", "--genesis", self.genesis, "--state",
                       own / "broker.sqlite", "--certfile", tls / "server.crt", "--keyfile",
                       tls / "server.key", "--ca", tls / "ca.crt"],
            "ledger": ["run", own / "chain", *files, *lane],
            "aggregator": ["run", own / "aggregator.toml"],
            "analytics": ["run", *files, *lane, "--genesis", self.genesis, "--data-dir", own,
                          "--web-port", "0"],
        }[name]  # fmt: skip

    def start(self, name):
        """The service as its user; returns when it has said that it is ready."""
        told = self.root / f"notify-{name}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
            line.bind(str(told))
            told.chmod(0o666)
            line.settimeout(PATIENCE_S)
            how = as_user(USERS[name], group=USERS[name])
            how["env"] = {**how["env"], "NOTIFY_SOCKET": str(told)}
            words = [interpreter(), "-m", f"{name}.cli", *map(str, self.command(name))]
            process = subprocess.Popen(words, **how, stdout=subprocess.DEVNULL)
            assert line.recv(1000).startswith(b"READY=1")
        assert process.poll() is None
        return process

    def secrets(self):
        """Every private key: of the files `*.key`, and the DER inside the PEM ones."""
        found = {}
        for path in self.root.rglob("*.key"):
            text = path.read_text()
            if "PRIVATE KEY" in text:
                found[path] = base64.b64decode("".join(text.splitlines()[1:-1]))[-32:]
            else:
                found[path] = read_secret(path)
        return found


def test_no_service_reads_anothers_private_keys(other_users):  # noqa: F811
    """Five real processes under five users; each tries all keys of the others, and their memory."""
    with tempfile.TemporaryDirectory(prefix="hg") as name:
        root = Path(name)
        root.chmod(0o711)
        servers, running = Servers(root), {}
        try:
            for service in USERS:
                running[service] = servers.start(service)
            keys = servers.secrets()
            assert {path.relative_to(root).parts[0] for path in keys} == set(USERS)
            for path, seed in keys.items():
                owner = USERS[path.relative_to(root).parts[0]]
                for holder in {path, *holders_of(seed, root)}:
                    facts = holder.stat()
                    assert (stat.S_IMODE(facts.st_mode), facts.st_uid) == (0o600, owner), holder

            def attack(uid, paths, pids):
                done = subprocess.run(
                    [interpreter(), "-c", TRY, json.dumps(paths), json.dumps(pids)],
                    **as_user(uid, group=uid), capture_output=True, text=True, check=True,
                )  # fmt: skip
                return json.loads(done.stdout)

            for service, uid in USERS.items():
                others = [str(path) for path in keys if path.relative_to(root).parts[0] != service]
                pids = [each.pid for other, each in running.items() if other != service]
                assert attack(uid, others, pids) == [], service
            # the attack would see an open door: to its own owner everything is open
            own = [str(root / "ledger" / "service.key"), running["ledger"].pid]
            assert {own[0], f"/proc/{own[1]}/mem"} <= set(attack(USERS["ledger"], own[:1], own[1:]))
        finally:
            for process in running.values():
                process.terminate()
            for process in running.values():
                process.wait(PATIENCE_S)
