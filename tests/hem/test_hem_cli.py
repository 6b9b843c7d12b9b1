"""The `hem` command: helps, shows what is on disk, and says in one line what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import structlog
from support.chain_builder import make_genesis

from hem import cli
from hem.controller.bidding import Decision, OrderIntent
from hem.ems.decisions import DecisionLog
from hem.ems.pledges import Pledge, Pledges
from hem.ems.wallet import Wallet
from ledger.genesis import genesis_bytes
from runtime.clock import SystemClock
from runtime.store import SqliteStore
from wire.canonical import encode
from wire.keys import SigningKey, to_text

KEY = SigningKey(bytes(32))
ME = SigningKey(b"a" * 32).id
SLOT = 1_978_080  # 2026-06-01T00:00Z in slots of 900 s


@pytest.fixture
def home(tmp_path):
    """A provisioned home that has not run."""
    key = to_text(KEY.public)
    (tmp_path / "genesis.json").write_bytes(genesis_bytes(make_genesis(dso_box_key=key)))
    (tmp_path / "provisioning.toml").write_text(f"""
[home]
name = "home-01"
claim_code = "x"
data_dir = "data"
[broker]
port = 1883
[market]
name = "demo"
genesis = "genesis.json"
csmdb = "{KEY.id}"
csmdb_key = "{key}"
csmdb_box = "{key}"
[gateway]
socket = "/tmp/gw.sock"
[[devices]]
name = "meter"
kind = "sunspec-meter"
""")
    return tmp_path


@pytest.fixture
async def lived_in(home):
    """The same home after a while."""
    folder = home / "data"
    folder.mkdir()
    store, queue = SqliteStore(folder / "ems.sqlite"), SqliteStore(folder / "outbox.sqlite")
    wallet = Wallet(store, ME)
    row = {
        "address": ME, "netWh": 400, "boughtWh": 380, "soldWh": 0, "residualWh": 20,
        "amountUc": 6_000,
    }  # fmt: skip
    for event in (
        {"event": "address-registered", "address": ME},
        {"event": "balance", "address": ME, "balanceUc": 12_500_000, "lockedUc": 250_000},
        {"event": "settled", "slot": SLOT, "rows": [row], "missing": []},
    ):
        await wallet.take_event(1, event)
    order = OrderIntent("buy", 380, 250_000)
    DecisionLog(store).add(SLOT, 0, Decision((order,), 0, "expected deficit 420 Wh"))
    with queue.atomic():
        waiting = {"key": "bid/1/0", "operation": {"op": "bid"}}
        queue.put("wait/000000000000001", encode(waiting))
    store.close()
    queue.close()
    return home


@pytest.fixture
def hem(capsys, monkeypatch):
    """Runs `hem …` in this process; returns exit code, output and errors."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["hem", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    yield run
    structlog.reset_defaults()  # `run` sent the log to this test's standard error


def test_every_command_has_help(hem):
    code, out, _ = hem("--help")
    assert code == 0
    for command in (
        "run", "gateway", "enroll", "status", "wallet", "why", "policy", "backup", "restore",
        "dump", "detect", "device", "setup",
    ):  # fmt: skip
        assert command in out
        code, text, _ = hem(command, "--help")
        assert code == 0
        assert "Usage" in text


def test_status_tells_wallet_and_what_waits(hem, lived_in):
    code, out, _ = hem("status", lived_in / "provisioning.toml", "--json")
    assert code == 0
    facts = json.loads(out)
    assert facts["address"] == ME
    assert (facts["balanceUc"], facts["lockedUc"]) == (12_500_000, 250_000)
    assert (facts["waitingReadings"], facts["waitingOperations"]) == (0, 1)
    assert facts["registered"] is True


def test_wallet_tells_money_and_the_last_slots(hem, lived_in):
    code, out, _ = hem("wallet", lived_in / "provisioning.toml")
    assert code == 0
    assert "balance 12.500000 ¤, locked 0.250000 ¤" in out
    assert f"slot {SLOT}: net 400 Wh, bought 380, sold 0, residual 20" in out
    _, out, _ = hem("wallet", lived_in / "provisioning.toml", "--json")
    assert json.loads(out)["settlements"][0]["netWh"] == 400


def test_why_answers_in_words(hem, lived_in):
    code, out, _ = hem("why", lived_in / "provisioning.toml", "00:00")
    assert code == 0
    assert out == (f"00:00 (slot {SLOT}): buy 380 Wh at 0.250 ¤/kWh. expected deficit 420 Wh\n")
    _, out, _ = hem("why", lived_in / "provisioning.toml", "--json")
    assert json.loads(out)[0]["orders"][0]["energyWh"] == 380
    assert hem("why", lived_in / "provisioning.toml", "03:00")[1] == (
        "no decision is kept for that\n"
    )


def test_policy_check_shows_what_will_be_in_force(hem, tmp_path):
    file = tmp_path / "policy.toml"
    file.write_text('participation = "TE"\nbuy_price_max = 250000\n')
    code, out, _ = hem("policy", "check", file, "--json")
    assert code == 0
    assert (json.loads(out)["participation"], json.loads(out)["buy_price_max"]) == ("TE", 250_000)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("buy_price_max = 1\nreserve_permil = 5\n", "line 2, reserve_permil"),
        ('\n\nparticipation = "all"\n', "line 3, participation"),
        ("reserve_permille = 1200\n", "line 1, reserve_permille"),
        ("reserve_permille = \n", "line 1"),
    ],
)
def test_a_wrong_policy_is_one_line_with_line_and_key(hem, tmp_path, text, told):
    file = tmp_path / "policy.toml"
    file.write_text(text)
    code, out, err = hem("policy", "check", file)
    assert (code, out) == (2, "")
    assert err.startswith(f"hem: {file}: ")
    assert told in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", 0), ("gateway", 0), ("enroll", 0), ("status", 0), ("wallet", 0), ("why", 0),
        ("policy", "check", 0), ("backup", 0, "to.tar"), ("restore", 0, "from.tar"),
        ("dump", 0, "to.tar.gz"), ("device", "test", 0), ("setup", 0),
    ],
)  # fmt: skip
def test_a_missing_file_is_one_line_and_exit_code_2(hem, tmp_path, arguments):
    file = tmp_path / "nothing.toml"
    code, out, err = hem(*(one or file for one in arguments))
    assert (code, out) == (2, "")
    assert err.startswith("hem: ")
    assert "nothing.toml" in err
    assert err.count("\n") == 1


def test_status_tells_positions_by_market_promises_and_withdrawals(hem, lived_in, monkeypatch):
    folder = lived_in / "data"
    store = SqliteStore(folder / "ems.sqlite")
    operation = {"op": "post-offer"}
    soon = {"start_slot": SLOT + 4, "source": "forecast", "operation": operation}
    pledges = Pledges(store)
    pledges.add("offer/1", Pledge(end_slot=SLOT + 7, energy_wh=300, **soon))
    pledges.add("take/x", Pledge(end_slot=SLOT + 4, energy_wh=-50, **soon))
    pledges.add("offer/2", Pledge(end_slot=SLOT + 9, energy_wh=0, **soon))  # over
    with store.atomic():
        row = {"market": [100, 0], "auction/a": [0, 30], "auction/b": [0, 5], "escrow/e": [7, 0]}
        store.put(f"position/{SLOT + 2:012d}", encode(row))
        store.put(f"funds/energy/{ME}", encode({"endSlot": SLOT + 90}))
        store.put(f"funds/money/{ME}", encode({"slot": SLOT}))
    store.close()
    monkeypatch.setattr(SystemClock, "now_ms", lambda _: SLOT * 900_000)
    code, out, _ = hem("status", lived_in / "provisioning.toml", "--json")
    assert code == 0
    facts = json.loads(out)
    assert facts["positions"] == [
        {
            "slot": SLOT + 2, "time": "00:30",
            "markets": {
                "auctions": {"boughtWh": 0, "soldWh": 35},
                "double-auction": {"boughtWh": 100, "soldWh": 0},
                "escrow": {"boughtWh": 7, "soldWh": 0},
            },
        }
    ]  # fmt: skip
    assert [(one["market"], one["energyWh"]) for one in facts["promises"]] == [
        ("escrow", -50), ("order-book", 300),
    ]  # fmt: skip
    assert facts["withdrawals"] == {"energyUntilSlot": SLOT + 90, "moneyAskedSlot": SLOT}
    _, out, _ = hem("status", lived_in / "provisioning.toml")
    assert f"position 00:30 (slot {SLOT + 2}): auctions sold 35 Wh" in out
    assert f"promise slots {SLOT + 4}…{SLOT + 7}: order-book (post-offer) gives 300 Wh" in out
    assert f"withdrawn: energyUntilSlot {SLOT + 90}" in out


def test_why_tells_what_was_contracted_in_which_market(hem, lived_in):
    store = SqliteStore(lived_in / "data" / "ems.sqlite")
    with store.atomic():
        row = {"market": [380, 0], "session/0": [0, 20]}
        store.put(f"position/{SLOT:012d}", encode(row))
    store.close()
    _, out, _ = hem("why", lived_in / "provisioning.toml", "00:00")
    assert "Contracted: double-auction bought 380 Wh; schedules sold 20 Wh" in out


def test_backup_and_restore_by_command(hem, lived_in):
    file, target = lived_in / "provisioning.toml", lived_in / "home.tar"
    code, out, err = hem("backup", file, target, "--json")
    assert code == 0
    assert json.loads(out)["files"] >= 2
    assert "keys" in err and err.count("\n") == 1
    code, _, err = hem("backup", file, target)
    assert code == 2 and "is there already" in err
    code, _, err = hem("restore", file, target)
    assert code == 2 and "move that folder away" in err
    (lived_in / "data").rename(lived_in / "old")
    code, out, _ = hem("restore", file, target, "--json")
    assert code == 0
    assert json.loads(out)["files"] >= 2
    assert json.loads(hem("status", file, "--json")[1])["address"] == ME


def test_dump_by_command(hem, lived_in):
    code, out, _ = hem("dump", lived_in / "provisioning.toml", lived_in / "d.tar.gz", "--json")
    assert code == 0
    assert "status.json" in json.loads(out)["parts"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[http]\nport = 70000\n", "http.port"),
        ("[local_broker]\nhots = 'x'\n", "local_broker.hots"),
        ("[local_broker]\npassword_file = 'p'\n", "add user"),
        ("[local_broker]\nuser = 'ha'\npassword_file = 'none'\n", "password_file cannot be read"),
    ],
)
def test_a_wrong_section_is_named_before_anything_connects(hem, home, text, told):
    file = home / "provisioning.toml"
    file.write_text(file.read_text() + text)
    code, _, err = hem("run", file)
    assert code == 2
    assert told in err
    assert err.splitlines()[-1].startswith("hem: ")


@pytest.mark.parametrize("command", ["status", "wallet", "why"])
def test_a_home_that_has_not_run_says_how_to_start_it(hem, home, command):
    code, _, err = hem(command, home / "provisioning.toml")
    assert code == 2
    assert "hem run" in err


def test_run_does_not_start_with_a_wrong_policy(hem, home):
    (home / "policy.toml").write_text("nonsense = 1\n")
    code, _, err = hem("run", home / "provisioning.toml")
    assert code == 2
    assert "line 1, nonsense" in err


def test_running_a_home_loads_neither_devices_nor_pages():
    """Ten homes start on two cores: the EMS does not load what only the gateway or a page needs."""
    code = "import sys, hem.process; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    heavy = {"pymodbus", "sunspec2", "plotly", "jinja2", "starlette", "amqtt", "numpy", "pandas"}
    assert not heavy & set(loaded)


def test_policy_show_tells_what_is_in_force_and_what_is_wrong(hem, home):
    file, provisioning = home / "policy.toml", home / "provisioning.toml"
    file.write_text("reserve_permille = 5 %\n")
    code, _, err = hem("policy", "show", provisioning)
    assert code == 2 and "line 1" in err, "there never was a good one"
    (home / "data").mkdir(exist_ok=True)
    (home / "data" / "policy.good.toml").write_text("reserve_permille = 300\n")
    code, out, _ = hem("policy", "show", provisioning, "--json")
    shown = json.loads(out)
    assert (code, shown["reserve_permille"]) == (0, 300) and "line 1" in shown["error"]
    code, out, err = hem("policy", "check", file, "--home", provisioning, "--json")
    assert code == 2 and "line 1" in err
    assert json.loads(out)["reserve_permille"] == 300, "what stays in force"
    file.write_text('[[never_sell]]\nfrom = "17:00"\nto = "20:00"\n')
    _, out, _ = hem("policy", "show", provisioning, "--json")
    shown = json.loads(out)
    assert (shown["never_sell"], shown["error"]) == ([{"from": "17:00", "to": "20:00"}], "")


def test_limit_by_command(hem, home):
    provisioning = home / "provisioning.toml"
    (home / "data").mkdir(exist_ok=True)
    assert hem("limit", provisioning)[1] == "no limit is set here\n"
    code, out, _ = hem("limit", provisioning, "--import-w", 4200, "--for", "60min")
    assert (code, out) == (0, "import: at most 4200 W for 60 min more\n")
    code, out, _ = hem("limit", provisioning, "--export-w", 0, "--for", "2h", "--json")
    assert [(row["side"], row["powerW"]) for row in json.loads(out)] == [
        ("import", 4200), ("export", 0),
    ]  # fmt: skip
    assert hem("limit", provisioning, "--lift")[1] == "no limit is set here\n"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--import-w", 4199), "--import-w: import of 4199 W; give 4200"),
        (("--import-w", 4200, "--for", "soon"), "--for: 'soon' is not a duration"),
        (("--export-w", -1), "--export-w: export of -1 W"),
        (("--export-w", 0, "--for", "800h"), "31 days"),
    ],
)
def test_a_limit_that_nobody_may_set_is_one_line(hem, home, options, told):
    (home / "data").mkdir(exist_ok=True)
    code, _, err = hem("limit", home / "provisioning.toml", *options)
    assert code == 2 and told in err and err.count("\n") == 1
