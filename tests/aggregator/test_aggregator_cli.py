"""The `aggregator` command and its configuration file."""

import asyncio
import json
import os
import signal
import subprocess
import sys

import pytest
from support.brokers import REPOSITORY, Authority, make_key, running_broker
from support.feeders import SUPERVISOR, make_genesis
from support.patience import PATIENCE_S

from aggregator.config import load_config
from aggregator.core import FlexibilityPolicy
from aggregator.process import flexibility_policy
from csmdb.setup import create
from ledger.genesis import genesis_bytes
from runtime.keyfiles import write_secret
from wire.certificates import dump_text
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[flexibility]\nahead_slots = 1\n", "flexibility.ahead_slots"),
        ("[flexibility]\ncap_uc_per_kwh = 1\nfloor_uc_per_kwh = 2\n", "floor_uc_per_kwh"),
        ('[flexibility]\npricing = "free"\n', "flexibility.pricing"),
        ("[funding]\ndeposit = 1\n", "funding.deposit"),
        ("[broker]\nport = 0\n", "broker.port"),
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
