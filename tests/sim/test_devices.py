"""The devices process serves every home of a feeder, keeps its word, and survives a crash."""

import asyncio
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.patience import PATIENCE_S

from hem.config import Device
from hem.gateway.devices import Site
from runtime.clock import write_clock
from sim.battery_physics import WMS_PER_WH
from sim.devices import load_folder, physics_of
from sim.homes import generate_homes, save_home
from sim.sunspec_server import BATTERY_ID, INVERTER_ID, METER_ID
from wire.errors import ConfigError

NOON_MS = 1_780_315_200_000
HOMES = generate_homes(10, 7, NOON_MS - 12 * 3_600_000)


class Silent:
    def info(self, event, **facts):
        pass

    warning = info


def feeder(tmp_path, speed=0.001):
    (tmp_path / "homes").mkdir()
    for home in HOMES:
        save_home(home, tmp_path / "homes" / f"{home.name}.json")
    write_clock(tmp_path / "clock.json", [(time.time(), NOON_MS, speed)])


@contextmanager
def devices(tmp_path, *more, port=0):
    words = ["--homes", tmp_path / "homes", "--ports-file", tmp_path / "ports.json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "sim.devices", *map(str, words), "--base-port", str(port), *more],
        env=os.environ | {"HEARTHGRID_CLOCK": str(tmp_path / "clock.json")},
        stderr=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(5)


async def ports_of(tmp_path, process):
    deadline = time.monotonic() + PATIENCE_S
    while not (tmp_path / "ports.json").exists() and process.poll() is None:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    return json.loads((tmp_path / "ports.json").read_text())


def site_of(row):
    return Site([Device(**device) for device in row["devices"]], 1.0, Silent())


async def state_of(site):
    """Poll until everything answers (a restarted process needs a moment)."""
    deadline = time.monotonic() + PATIENCE_S
    for attempt in itertools.count(1):
        state = await site.poll(1e6 * attempt)
        if set(state.devices.values()) == {"ok"}:
            return state
        assert time.monotonic() < deadline, state
        await asyncio.sleep(0.05)


async def test_one_process_serves_all_homes_with_what_they_have(tmp_path):
    feeder(tmp_path)
    with devices(tmp_path) as process:
        listing = await ports_of(tmp_path, process)
        assert list(listing) == [home.name for home in HOMES]
        for home in HOMES:
            kinds = {METER_ID} | ({INVERTER_ID} if home.has_pv else set())
            kinds |= {BATTERY_ID} if home.battery else set()
            assert {d["device_id"] for d in listing[home.name]["devices"]} == kinds
            site = site_of(listing[home.name])
            state = await state_of(site)
            assert abs(state.load_w - home.load_at(NOON_MS)) <= 1
            assert state.pv_w == home.pv_at(NOON_MS)
            if home.battery:
                assert state.battery.capacity_wh == home.battery.capacity_wh
                assert state.soc_permille == home.battery.soc0_permille
            site.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 0
        assert process.stderr.read() == b""


async def test_registers_and_ports_survive_kill_9(tmp_path):
    feeder(tmp_path, speed=600.0)
    home = next(home for home in HOMES if home.battery)
    with devices(tmp_path, "--state", str(tmp_path / "state")) as process:
        listing = await ports_of(tmp_path, process)
        site = site_of(listing[home.name])
        await state_of(site)
        await site.battery.command(1_500, 30, time.monotonic())
        await asyncio.sleep(0.5)
        before = await state_of(site)
        assert before.battery_w == 1_500
        process.kill()
        process.wait()
    with devices(tmp_path, "--state", str(tmp_path / "state")):
        after = await state_of(site)
        assert after.import_wh >= before.import_wh
        assert after.export_wh >= before.export_wh
        assert after.generation_wh >= before.generation_wh > 0
        assert after.battery_w != 1_500
        site.close()


def test_a_port_in_use_is_one_line_and_exit_code_2(tmp_path):
    feeder(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with devices(tmp_path, port=port) as process:
            assert process.wait(10) == 2
            lines = process.stderr.read().decode().splitlines()
            assert lines == [f"sim.devices: 127.0.0.1:{port} is taken"]
    assert not (tmp_path / "ports.json").exists()


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no home files"):
        load_folder(tmp_path)


@given(st.integers(0, 9), st.integers(0, 7_200_000), st.lists(st.integers(1, 900_000), max_size=20))
def test_registers_agree_with_the_profiles_exact_energies(index, after_ms, pauses_ms):
    home = HOMES[index]
    start_ms = home.start_ms + after_ms
    physics = physics_of(home, start_ms)
    for pause_ms in pauses_ms:
        physics.advance(physics.time_ms + pause_ms)
    end_ms = physics.time_ms
    assert physics.generation_wms == home.pv_wms(start_ms, end_ms)
    grid_wms = physics.import_wms - physics.export_wms
    other_wms = home.load_wms(start_ms, end_ms) - home.pv_wms(start_ms, end_ms)
    if home.battery is None:
        assert grid_wms == other_wms
    else:
        given_wms = other_wms - grid_wms
        capacity_wms = home.battery.capacity_wh * WMS_PER_WH
        assert -2 * capacity_wms < given_wms <= capacity_wms
