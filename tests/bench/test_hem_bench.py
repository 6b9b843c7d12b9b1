"""The HEM benchmark measures every part of a home that runs, and counts nothing twice."""

import json
import tempfile
from pathlib import Path

import pytest

from bench.hem import (
    AIMS,
    QUIET_AFTER_S,
    SHORT,
    Idle,
    Result,
    Spent,
    Start,
    facts,
    run,
    until_quiet_s,
)
from bench.hem_imports import Profile, package_of
from bench.hem_market import DEVICES, GATEWAY, OURS
from bench.hem_proc import Memory, together_bytes
from bench.hem_report import show
from wire.slots import SlotGrid

KB = 1024


@pytest.mark.long
def test_a_short_run_measures_every_part_of_a_home_that_trades(capsys):
    with tempfile.TemporaryDirectory(prefix="hg") as folder:  # short: a socket lies in it
        result = run(SHORT, Path(folder), lambda _: None)
    for start in (result.new_home, *result.restarts):
        assert start.gateway_s > 0 and 0 < start.trading_s < start.bid_s
        assert all(start.cpu_s[name] > 0 for name in OURS)
    idle = result.idle
    assert idle.polls >= 1 and result.devices == DEVICES == 5
    assert set(idle.spent) == set(idle.memory) == set(result.slots_spent) == set(OURS)
    for used in idle.memory.values():
        assert 5 < used.anonymous_mb <= used.rss_mb and used.uss_mb <= used.pss_mb <= used.rss_mb
    assert set(result.alone.spent) == {GATEWAY}
    assert result.alone.together_mb < idle.together_mb
    assert result.light == "same", "a light client that does nothing costs nothing"
    assert not result.page
    heaps_mb = sum(used.anonymous_mb for used in idle.memory.values())
    assert heaps_mb < idle.together_mb < sum(used.rss_mb for used in idle.memory.values())
    assert result.slots_spent["hem"].written_bytes > 0, "what was bid is on the disk"
    for profile in result.imports.values():
        assert profile["packages"][0]["own_mb"] > 0 and profile["imports_ms"] > 0
    brought = {row["package"] for row in result.imports["hem"]["packages"]}
    assert {"hem", "wire", "nacl", "standard library"} <= brought
    assert "pymodbus" not in brought, "only the gateway speaks Modbus"
    told = json.loads(json.dumps(facts(result)))
    assert [row["figure"] for row in told["aims"]] == [name for name, _ in AIMS]
    show(result)
    said = capsys.readouterr().out
    assert all(name in said for name in OURS) and "first bid final" in said


SMAPS = """\
55d0-55d8 r--p 00000000 fe:00 77   /usr/bin/python3
Rss:                {file} kB
Anonymous:             0 kB
55d8-55d9 rw-p 00008000 fe:00 77   /usr/bin/python3
Rss:                   8 kB
Anonymous:             8 kB
VmFlags: rd wr mr mw me ac
7f00-7f10 rw-p 00000000 00:00 0
Rss:                {heap} kB
Anonymous:          {heap} kB
"""


def test_together_every_heap_counts_and_every_file_once():
    one, other = (
        SMAPS.format(file=100, heap=1_000),
        SMAPS.format(file=140, heap=500),
    )
    assert together_bytes([one]) == (100 + 8 + 1_000) * KB
    assert together_bytes([one, other]) == (140 + 8 + 8 + 1_000 + 500) * KB


def test_an_import_is_its_packages_own_and_part_of_what_brought_it():
    """`a` imports json and `b`, which imports more of `a`; every module takes 10 kB and 1 s."""
    needs = {"a": ["json", "b"], "json": [], "b": ["a.more"], "a.more": []}
    used = {"kb": 100, "s": 0.0}

    def load(name, import_):
        for needed in needs[name]:
            profile.find_and_load(needed, import_)
        used["kb"] += 10
        used["s"] += 1

    profile = Profile(load, lambda: used["kb"], lambda: used["s"])
    profile.find_and_load("a", None)
    rows = {row.pop("package"): row for row in profile.facts()["packages"]}
    assert profile.facts()["imports_ms"] == 4_000
    assert (rows["a"]["own_ms"], rows["a"]["with_others_ms"]) == (2_000, 4_000)
    assert (rows["b"]["own_ms"], rows["b"]["with_others_ms"]) == (1_000, 2_000)
    assert rows["standard library"]["own_mb"] == rows["b"]["own_mb"] == 0.01


def test_modules_belong_to_packages():
    assert package_of("asyncio.events") == "standard library"
    assert package_of("pydantic_core._pydantic_core") == package_of("pydantic.main") == "pydantic"
    assert package_of("hem.service") == "hem"


@pytest.mark.parametrize("into_s", [0, 5, 129, 130, 400, 719, 721, 899])
def test_idle_time_is_measured_where_no_slot_begins(into_s):
    grid = SlotGrid(900)
    pause_s = until_quiet_s(grid, (900 * 7 + into_s) * 1000, 180)
    begins_s = (into_s + pause_s) % 900
    assert QUIET_AFTER_S <= begins_s <= 900 - 180
    assert pause_s == 0 or not QUIET_AFTER_S <= into_s <= 720


def made_up(slot_bytes, idle_bytes):
    used = Memory(rss_mb=60, pss_mb=40, uss_mb=30, anonymous_mb=30)
    start = Start(1.0, 2.0, 9.0, dict.fromkeys(OURS, 0.5))
    idle = Idle(
        seconds=100.0, polls=100, spent=dict.fromkeys(OURS, Spent(0.4, idle_bytes)),
        asking_cpu_s=0.1, memory=dict.fromkeys(OURS, used), together_mb=110.0,
    )  # fmt: skip
    return Result(
        cores=2, python="3", devices=5, page=False, light="same", new_home=start,
        restarts=[start], slots=10, slots_s=40.0,
        slots_spent=dict.fromkeys(OURS, Spent(0.2, slot_bytes)), idle=idle, alone=idle, imports={},
    )  # fmt: skip


def test_a_days_writes_are_the_idle_rate_and_96_slots():
    result = made_up(slot_bytes=1_040_000, idle_bytes=100_000)
    # 1 kB/s all day; ten slots wrote 40 kB of that, and 100 kB each of their own
    assert result.day_mb("hem") == pytest.approx(86.4 + 9.6)
    assert made_up(slot_bytes=0, idle_bytes=100_000).day_mb("hem") == pytest.approx(86.4)


def test_an_aim_is_met_below_it_and_asking_counts():
    met = {name: (value, met) for name, value, _, met in made_up(1_040_000, 0).aims()}
    assert met["memory together, MB"] == (110.0, False)
    assert met["idle, % of one core"] == (pytest.approx(0.9), True)
    assert met["written a day, MB"] == (pytest.approx(2 * 9.984), True)
    assert met["new home: start to first bid, s"] == (9.0, True)
