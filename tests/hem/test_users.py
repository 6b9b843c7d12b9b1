"""On a home's computer every private key is read by one user, and the meter key not by the EMS."""

import asyncio
import base64
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
from functools import cache
from pathlib import Path

import pytest
from support.homes import REPOSITORY, Site
from support.patience import PATIENCE_S

from runtime.keyfiles import read_secret

pytestmark = pytest.mark.slow
DEPLOY = REPOSITORY / "deploy"
GATEWAY, EMS, OTHER = 61_001, 61_002, 61_003
HOME_GROUP = 61_010
"""Users and group of deploy/pi/hearthgrid.sysusers, by numbers that nobody has."""

ATTACK = """
import ctypes, json, os, socket, sys
folder, pid, sock = sys.argv[1], int(sys.argv[2]), sys.argv[3]
got = {"files": [], "memory": [], "answers": {}}

def attempt(path, kind):
    try:
        with open(path, "rb") as file:
            if kind == "memory":
                file.seek(4096)
            file.read(1)
        got[kind].append(path)
    except (OSError, ValueError):
        pass

for path in json.loads(sys.argv[4]):
    attempt(path, "files")
    for trick in (lambda: os.chmod(path, 0o644), lambda: os.rename(path, path + ".mine"),
                  lambda: os.unlink(path)):
        try:
            trick()
            got["files"].append("changed " + path)
        except OSError:
            pass
for trick in (lambda: os.listdir(folder), lambda: os.rename(folder, folder + "2"),
              lambda: os.rmdir(folder)):
    try:
        trick()
        got["files"].append(folder)
    except OSError:
        pass
for name in ("mem", "environ", "maps", "auxv"):
    attempt(f"/proc/{pid}/{name}", "memory")
try:
    os.listdir(f"/proc/{pid}/fd")
    got["memory"].append("fd")
except OSError:
    pass
libc = ctypes.CDLL(None, use_errno=True)
if libc.ptrace(16, pid, 0, 0) == 0:
    got["memory"].append("ptrace")
try:
    os.kill(pid, 19)
    got["memory"].append("kill")
except OSError:
    pass
asked = [("public_keys", {}), ("state", {}), ("meter_key", {}), ("export_key", {}),
         ("sign", {"message": "00"}), ("sign_reading", {"slot": 5}),
         ("sign_reading", {"slot": 10**9}), ("sign_reading", {"slot": 5, "import_wh": 10**6}),
         ("sign_receipt", {"address": "hg1" + "a" * 32, "slot": 5}),
         ("attest_cpf", {"validator": "hg1" + "a" * 32, "start_slot": 1, "end_slot": 8})]
try:
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(30)
        line.connect(sock)
        lines = line.makefile("rb")
        for number, (method, params) in enumerate(asked):
            line.sendall(json.dumps({"id": number, "method": method, "params": params}).encode()
                         + b"\\n")
            said = json.loads(lines.readline())
            key = f"{number} {method}"
            got["answers"][key] = said["error"]["code"] if "error" in said else said["result"]
except (OSError, ValueError) as error:
    got["answers"]["socket"] = type(error).__name__
print(json.dumps(got))
"""


PATHS = os.pathsep.join((str(REPOSITORY), sysconfig.get_path("purelib")))
PYTHONS = (sys.executable, "/usr/bin/python{}.{}".format(*sys.version_info))
"""The first may lie in root's own folder."""


def as_user(uid, *, group=HOME_GROUP):
    return {"user": uid, "group": group, "extra_groups": [], "cwd": "/",
            "env": {"PATH": os.environ["PATH"], "PYTHONPATH": PATHS, "HOME": "/"},
            "umask": 0o077}  # fmt: skip


@cache
def interpreter():
    """A Python that other users can run, with this checkout; None where there is none."""
    for found in PYTHONS:
        try:
            command = [found, "-c", "import wire.keys, hem.cli"]
            done = subprocess.run(command, **as_user(OTHER), capture_output=True, check=False)
            if done.returncode == 0:
                return found
        except OSError:
            continue
    return None


def python(uid, *arguments, group=HOME_GROUP):
    done = subprocess.run(
        [interpreter(), *map(str, arguments)], **as_user(uid, group=group),
        capture_output=True, text=True, timeout=2 * PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture
def other_users():
    if os.geteuid() != 0:
        pytest.skip("only root may start processes of several users; run this test as root")
    if interpreter() is None:
        pytest.skip("other users cannot read this checkout or its interpreter; put it elsewhere")


async def installed(site):
    """A home laid out as deploy/pi/hearthgrid.tmpfiles says."""
    home = await site.home("home-01", load_w=2_000)
    data, gateway = home.folder / "data", home.folder / "data" / "gateway"
    run, genesis = home.folder / "run", home.folder / "genesis.json"
    shutil.copy(site.folder / "genesis.json", genesis)
    for folder, mode, owner in (
        (data, 0o1770, 0),
        (gateway, 0o700, GATEWAY),
        (run, 0o750, GATEWAY),
    ):
        folder.mkdir()
        os.chown(folder, owner, HOME_GROUP)
        folder.chmod(mode)
    text = home.file.read_text().replace(str(site.folder / "genesis.json"), str(genesis))
    text = text.replace('socket = "gw.sock"', f'socket = "run/gw.sock"\nems_uid = {EMS}')
    home.file.write_text(text)
    for path, mode in ((home.folder, 0o750), (home.file, 0o640), (genesis, 0o644)):
        os.chown(path, 0, HOME_GROUP)
        path.chmod(mode)
    return home


def spellings(seed):
    plain, web = base64.b64encode(seed), base64.urlsafe_b64encode(seed)
    return {seed, seed.hex().encode(), seed.hex().upper().encode(), plain.rstrip(b"="),
            web.rstrip(b"=")}  # fmt: skip


def holders_of(seed, *folders):
    """Files with a private key in them, however it is written."""
    words = spellings(seed)
    paths = [path for folder in folders for path in folder.rglob("*")]
    return [
        path for path in paths
        if stat.S_ISREG(path.lstat().st_mode) and any(w in path.read_bytes() for w in words)
    ]  # fmt: skip


async def test_no_user_reads_anothers_private_keys_and_the_ems_not_the_meters(
    tmp_path, other_users
):
    """
    Gateway and EMS run and enrol as users of their own; then each tries to get at the meter key.

    By its files, by the gateway's memory and environment, by ptrace, and by what the socket
    answers: it signs what was metered, and nothing that it is told.
    """
    site = await Site.open(tmp_path)
    home = await installed(site)
    log = home.log.open("wb")
    command = [interpreter(), "-m", "hem.cli", "gateway", str(home.file)]
    gateway = await asyncio.to_thread(
        subprocess.Popen, command, **as_user(GATEWAY), stdout=log, stderr=log
    )
    try:
        socket = home.folder / "run" / "gw.sock"
        async with asyncio.timeout(PATIENCE_S):
            while not socket.exists():
                assert gateway.poll() is None, home.log.read_text()
                await asyncio.sleep(0.05)
        enrolled = await asyncio.to_thread(
            python, EMS, "-m", "hem.cli", "enroll", home.file, "--no-gateway", "--json"
        )
        assert json.loads(enrolled)
        data = home.folder / "data"
        keys = {path: read_secret(path) for path in data.rglob("*.key")}
        meter = data / "gateway" / "meter.key"
        assert meter in keys and len(keys) >= 3

        for path, seed in keys.items():
            owner = GATEWAY if path == meter else EMS
            for holder in holders_of(seed, home.folder, tmp_path):
                facts = holder.stat()
                assert (stat.S_IMODE(facts.st_mode), facts.st_uid) == (0o600, owner), holder
        issuing = site.csmdb.issuing_key.seed
        for holder in holders_of(issuing, home.folder, tmp_path):
            assert stat.S_IMODE(holder.stat().st_mode) == 0o600, holder
            assert holder.stat().st_uid == 0

        def attack(uid, paths, group=HOME_GROUP):
            arguments = (data / "gateway", gateway.pid, socket, json.dumps([*map(str, paths)]))
            return json.loads(python(uid, "-c", ATTACK, *arguments, group=group))

        tried = await asyncio.to_thread(attack, EMS, [*(data / "gateway").iterdir()])
        assert tried["files"] == [] and tried["memory"] == []
        answers = tried["answers"]
        assert set(answers.pop("0 public_keys")) == {"meter"}
        assert "grid_w" in answers.pop("1 state")
        assert len(answers) == 8 and all(type(code) is str for code in answers.values()), answers
        stranger = await asyncio.to_thread(attack, OTHER, keys, OTHER)
        assert stranger["files"] == [] and stranger["memory"] == []
        assert set(stranger["answers"]) == {"socket"}
        # the attack would see an open door: to its own owner everything is open
        own = await asyncio.to_thread(attack, GATEWAY, [])
        assert data / "gateway" == Path(own["files"][0]) and own["memory"]
    finally:
        gateway.send_signal(18)
        gateway.terminate()
        await asyncio.to_thread(gateway.wait, PATIENCE_S)
        log.close()
        await site.close()


def units():
    return sorted((DEPLOY / "systemd").glob("*.service"))


@pytest.mark.parametrize("unit", units(), ids=lambda path: path.stem)
def test_units_are_well_formed_and_name_users_that_are_made(unit):
    text = unit.read_text()
    user = re.search(r"^User=(.+)$", text, re.MULTILINE).group(1)
    lists = (path.read_text() for path in DEPLOY.glob("*/*.sysusers"))
    assert user in re.findall(r"^u (\S+)", "".join(lists), re.M)
    for line in ("NoNewPrivileges=yes", "ProtectSystem=strict", "UMask=0077", "LimitCORE=0"):
        assert line in text.splitlines()
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed: the unit was not checked by systemd itself")
    checked = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False
    )
    wrong = [
        line for line in checked.stderr.splitlines()
        if unit.name in line and "is not executable" not in line
    ]  # fmt: skip
    assert not wrong


def test_every_process_is_a_user_of_its_own_and_watched():
    """What syncs Mosquitto's revocations is Mosquitto's user and has no event loop to watch."""
    texts = {unit.stem: unit.read_text() for unit in units()}
    users = [re.search(r"^User=(.+)$", text, re.M).group(1) for text in texts.values()]
    assert len(users) == len(set(users)) == 8
    del texts["broker-sync"]
    for name, text in texts.items():
        assert re.search(r"^Type=notify$", text, re.M) and "\nWatchdogSec=" in text, name


@pytest.mark.parametrize("service", ["csmdb", "broker", "aggregator", "analytics", "ledger"])
def test_an_operators_folder_is_its_users_alone(service):
    text = (DEPLOY / "operator" / "hearthgrid-operator.tmpfiles").read_text()
    user = f"hearthgrid-{service}"
    assert re.search(rf"^d /var/lib/{user} +0700 {user} +{user} ", text, re.M)


LEDGER, CPF_GROUP = 61_004, 61_011
HAND_OVER = """
import sys
from pathlib import Path
from runtime.cpf_folder import put_attestation
put_attestation(Path(sys.argv[1]), 8, {"of": "grant"}, {"of": "attestation"})
"""
TAKE = """
import sys
from pathlib import Path
from runtime.cpf_folder import drop_waiting, read_waiting, waiting_slots
(slot,) = waiting_slots(Path(sys.argv[1]))
print(read_waiting(Path(sys.argv[1]), slot).decode())
drop_waiting(Path(sys.argv[1]), [slot])
"""
LOOK = """
import sys
try:
    print(open(sys.argv[1] + "/cpf/8.json").read())
except PermissionError:
    print("no")
"""


def test_an_attestation_is_read_by_the_ledgers_user_and_by_no_third(tmp_path, other_users):
    """The folder is as deploy/pi/hearthgrid.tmpfiles makes it, the umask as the units say."""
    made = re.search(
        r"^d /var/lib/hearthgrid-ledger/chain/cpf (\d+) hearthgrid-ledger +hearthgrid-cpf",
        (DEPLOY / "pi" / "hearthgrid.tmpfiles").read_text(), re.M,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="hg") as name:  # pytest's folder is root's alone
        node = Path(name)
        node.chmod(0o711)
        folder = node / "cpf"
        folder.mkdir()
        os.chown(folder, LEDGER, CPF_GROUP)
        folder.chmod(int(made[1], 8))

        def run(uid, code, groups=()):
            how = {**as_user(uid), "extra_groups": list(groups)}
            command = [interpreter(), "-c", code, str(node)]
            return subprocess.run(command, **how, capture_output=True, text=True, check=False)

        put = run(EMS, HAND_OVER, [CPF_GROUP])
        assert put.returncode == 0, put.stderr
        facts = (folder / "8.json").stat()
        assert (facts.st_uid, facts.st_gid) == (EMS, CPF_GROUP)
        assert stat.S_IMODE(facts.st_mode) == 0o640
        assert run(GATEWAY, LOOK).stdout == "no\n"
        taken = run(LEDGER, TAKE, [CPF_GROUP])
        assert json.loads(taken.stdout)["attestation"] == {"of": "attestation"}, taken.stderr
        assert list(folder.iterdir()) == []
