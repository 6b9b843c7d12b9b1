"""The `aggregator` command and its configuration file."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys

import msgspec
import pytest
from support.brokers import REPOSITORY, Authority, make_key, running_broker
from support.feeders import SUPERVISOR, make_genesis
from support.patience import PATIENCE_S

from aggregator.config import load_config
from aggregator.core import AdjustmentPolicy, FlexibilityPolicy
from aggregator.day_ahead import DayAhead
from aggregator.grid_limits import GridPolicy, Works
from aggregator.process import (
    adjustment_policy,
    check_funding,
    flexibility_policy,
    grid_policy,
    schedule_policy,
)
from aggregator.scheduler import SchedulePolicy
from aggregator.store import AggregatorStore
from csmdb.setup import create
from ledger.approvals import Approval
from ledger.genesis import Privacy, genesis_bytes, seal_genesis
from runtime.keyfiles import write_secret
from wire.certificates import dump_text
from wire.day_ahead import Change, ScheduleAnswer
from wire.errors import ConfigError
from wire.keys import BoxKey, to_text

DSO_BOX = BoxKey(make_key("dso-box").seed)


@pytest.fixture
def folder(tmp_path):
    """Everything an operator prepares for an aggregator."""
    with create(tmp_path / "csmdb", "test") as csmdb:
        authority = Authority("test", csmdb.issuing_key)
        genesis = make_genesis(authority, dso_box_key=to_text(DSO_BOX.public))
        certificate = csmdb.issue_service_certificate(SUPERVISOR.public, ["aggregator", "dso"])
        box = to_text(csmdb.box.public)
    (tmp_path / "genesis.json").write_bytes(genesis_bytes(genesis))
    (tmp_path / "certificate.json").write_text(dump_text(certificate))
    write_secret(tmp_path / "service.key", SUPERVISOR.seed)
    write_secret(tmp_path / "dso-box.key", DSO_BOX.seed)
    text = f'[market]\ngenesis = "genesis.json"\ncsmdb_box = "{box}"\n'
    (tmp_path / "aggregator.toml").write_text(text)
    return tmp_path, authority


def command(*words):
    return [sys.executable, "-m", "aggregator.cli", *map(str, words)]


def run(*words):
    return subprocess.run(
        command(*words),
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
        timeout=PATIENCE_S,
    )


def write(folder, text):
    path = folder / "changed.toml"
    path.write_text((folder / "aggregator.toml").read_text() + text)
    return path


def test_a_configuration_needs_little_and_its_paths_are_relative_to_it(folder):
    config = load_config(folder[0] / "aggregator.toml")
    assert config.service.key == folder[0] / "service.key"
    assert config.market.genesis == folder[0] / "genesis.json"
    assert config.funding.deposit_uc == 100_000_000


def test_deviations_known_beforehand_reach_the_policy(folder):
    text = "[[flexibility.deviation]]\nslot_of_day = 78\nenergy_wh = 1500\n"
    policy = flexibility_policy(load_config(write(folder[0], text)).flexibility)
    assert isinstance(policy, FlexibilityPolicy)
    assert policy.known_wh == {78: 1_500}
    assert policy.cap_uc_per_kwh == 280_000


def test_what_the_grid_carries_and_what_is_agreed_with_reach_the_desk(folder):
    text = """
[schedule]
net_wh_by_slot = [1, 2]
history_days = 3
lead_hours = 24
[dso]
rating_import_w = 20000
[[dso.limit]]
first_slot_of_day = 32
last_slot_of_day = 48
export_w = 0
[flexibility]
sealed = true
[adjustment]
automatic = true
[[approve]]
path = "template.*"
value = true
"""
    config = load_config(write(folder[0], text))
    assert schedule_policy(config.schedule) == SchedulePolicy([1, 2], 3, 24)
    expected = GridPolicy(20_000, None, [Works(32, 48, None, 0)])
    assert grid_policy(config.dso) == expected
    assert flexibility_policy(config.flexibility).sealed
    assert adjustment_policy(config.adjustment) == AdjustmentPolicy(automatic=True, margin_s=60)
    assert config.approve == [Approval(path="template.*", value=True)]


def test_the_example_of_the_documentation_loads(folder):
    page = (REPOSITORY / "docs/concepts/aggregator.md").read_text()
    [example] = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    config = load_config(write(folder[0], example))
    assert config.dso.limit[0].export_w == 10_000


def test_without_these_sections_nothing_is_limited_approved_or_reopened(folder):
    config = load_config(folder[0] / "aggregator.toml")
    assert grid_policy(config.dso) == GridPolicy(None, None, [])
    assert config.approve == []
    assert not adjustment_policy(config.adjustment).automatic
    assert not flexibility_policy(config.flexibility).sealed
    assert config.schedule.lead_hours == 12


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[flexibility]\nahead_slots = 1\n", "flexibility.ahead_slots"),
        ("[flexibility]\ncap_uc_per_kwh = 1\nfloor_uc_per_kwh = 2\n", "floor_uc_per_kwh"),
        ('[flexibility]\npricing = "free"\n', "flexibility.pricing"),
        ("[funding]\ndeposit = 1\n", "funding.deposit"),
        ("[broker]\nport = 0\n", "broker.port"),
        ("[schedule]\nlead_hours = 25\n", "schedule.lead_hours"),
        ("[dso]\nrating_import_w = -1\n", "dso.rating_import_w"),
        ("[[dso.limit]]\nfirst_slot_of_day = 2\nlast_slot_of_day = 1\n", "over midnight"),
        ("[[dso.limit]]\nfirst_slot_of_day = 1\nlast_slot_of_day = 2\n", "import_w or export_w"),
        ('[[approve]]\npath = "prices.*"\nleast = 2\nmost = 1\n', "`least` 2 is above"),
        ("[adjustment]\nband_wh = 1\n", "adjustment.band_wh"),
        ("[broker\n", "not TOML"),
    ],
)
def test_a_mistake_in_the_file_is_named(folder, text, message):
    with pytest.raises(ConfigError, match=r"changed\.toml") as caught:
        load_config(write(folder[0], text))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("file", "message"),
    [("service.key", "not the supervisor's key"), ("dso-box.key", "not the DSO's box key")],
)
def test_keys_that_are_not_those_of_the_genesis_are_refused(folder, file, message):
    (folder[0] / file).unlink()
    write_secret(folder[0] / file, make_key("wrong").seed)
    done = run("run", folder[0] / "aggregator.toml")
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


MIDNIGHT = 20_000 * 96


@pytest.fixture
def scheduled(folder):
    """A day of which four slots were asked for, three approved, and two measured."""
    (folder[0] / "data").mkdir()
    store = AggregatorStore(folder[0] / "data" / "aggregator.sqlite")
    homes = {"a": [100, 100, -900, 5], "b": [100, 100, -900, 5]}
    with store.atomic():
        store.put_schedule(MIDNIGHT, DayAhead([200, 200, -1_800, 10], homes), MIDNIGHT)
        rows = [(MIDNIGHT, 200), (MIDNIGHT + 1, 200), (MIDNIGHT + 2, -500)]
        change = Change(MIDNIGHT + 2, -1_800, -500, "EXPORT_WORKS")
        store.put_approval(ScheduleAnswer(rows, [change]))
        for slot in (MIDNIGHT, MIDNIGHT + 1):
            for meter in ("a", "b"):
                store.db.execute(
                    "INSERT INTO readings VALUES (?, ?, ?, '', '', ?)",
                    [meter, slot, slot, 150 + slot - MIDNIGHT],
                )
    store.close()
    return folder[0]


def test_the_schedule_is_shown_beside_what_was_measured(scheduled):
    by_file = run("schedule", scheduled / "aggregator.toml", "--day", "2024-10-04", "--json")
    by_folder = run("schedule", scheduled, "--json")
    assert by_file.stdout == by_folder.stdout, by_file.stderr + by_folder.stderr
    found = json.loads(by_file.stdout)
    assert found["day"] == "2024-10-04"
    assert [list(row.values()) for row in found["slots"]] == [
        [MIDNIGHT, "2024-10-04T00:00:00+00:00", 200, 200, "", 300, 100],
        [MIDNIGHT + 1, "2024-10-04T00:15:00+00:00", 200, 200, "", 302, 102],
        [MIDNIGHT + 2, "2024-10-04T00:30:00+00:00", -1_800, -500, "EXPORT_WORKS", None, None],
        [MIDNIGHT + 3, "2024-10-04T00:45:00+00:00", 10, None, "", None, None],
    ]
    assert list(found["slots"][0]) == [
        "slot", "start", "askedWh", "approvedWh", "reason", "measuredWh", "deviationWh",
    ]  # fmt: skip


def test_the_schedule_is_a_table_for_people(scheduled):
    lines = run("schedule", scheduled).stdout.splitlines()
    assert lines[0] == "2024-10-04, net energy in Wh (+ import)"
    assert [line.split() for line in lines[1:]] == [
        ["UTC", "asked", "approved", "measured", "deviation"],
        ["00:00", "200", "200", "300", "100"],
        ["00:15", "200", "200", "302", "102"],
        ["00:30", "-1800", "-500", "–", "–", "EXPORT_WORKS"],
        ["00:45", "10", "–", "–", "–"],
    ]
    assert run("schedule", scheduled, "--day", "2024-10-05").stdout == "2024-10-05: no schedule\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["aggregator.toml"], "has not run yet"),
        (["aggregator.toml", "--day", "yesterday"], "yesterday: not a date"),
        (["nothing.toml"], "nothing.toml: cannot be read"),
        (["csmdb"], "csmdb/aggregator.toml: cannot be read"),
    ],
)
def test_a_schedule_that_cannot_be_shown_is_one_friendly_line(folder, words, message):
    done = run("schedule", folder[0] / words[0], *words[1:])
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_status_before_the_first_run_is_a_mistake(folder):
    done = run("status", folder[0] / "aggregator.toml", "--json")
    assert done.returncode == 2
    assert "has not run yet" in done.stderr


async def test_the_process_runs_until_it_is_told_to_stop_and_leaves_a_status(folder):
    path, authority = folder
    async with running_broker(authority) as broker:
        process = subprocess.Popen(  # noqa: ASYNC220
            command("run", path / "aggregator.toml", "--port", broker.port),
            cwd=REPOSITORY,
            env={**os.environ, "HEARTHGRID_LOG": "warning"},
        )
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not (path / "data" / "aggregator.sqlite").exists():
                    await asyncio.sleep(0.05)
                await asyncio.sleep(0.5)
        finally:
            process.send_signal(signal.SIGTERM)
            code = await asyncio.to_thread(process.wait, 10)
    assert code == 0
    done = await asyncio.to_thread(run, "status", path / "aggregator.toml", "--json")
    assert json.loads(done.stdout)["counts"]["readings"] == 0


def test_money_is_not_given_to_every_fresh_address(folder):
    """Where addresses change, an automatic gift to each would be money for nothing."""
    config = load_config(folder[0] / "aggregator.toml")
    genesis = make_genesis(folder[1], dso_box_key=to_text(DSO_BOX.public))
    check_funding(config, genesis)
    changing = seal_genesis(msgspec.structs.replace(genesis, privacy=Privacy(address_slots=4)))
    with pytest.raises(ConfigError, match=r"funding\.automatic"):
        check_funding(config, changing)
    text = "[funding]\nautomatic = false\n"
    check_funding(load_config(write(folder[0], text)), changing)
