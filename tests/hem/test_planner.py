"""The home's outlook, by a real child process; and what happens when the child fails."""

from __future__ import annotations

import asyncio
import math
import sys
from dataclasses import replace
from functools import partial

import msgspec
import pytest
from structlog.testing import capture_logs

from hem.controller.battery import Battery
from hem.controller.plan import SLOTS_MAX
from hem.ems.planner import USED_FOR_SLOTS, Planner, Prospect
from hem.ems.value_worker import Question, answer
from runtime.child import ChildError, ask_child
from runtime.store import MemoryStore

HOUR_S = 3_600
FIRST = 400_000
BATTERY = Battery(6_400, 3_000, 3_000, soc_min_permille=100)
DAY = range(24)


def used_wh(hour):
    return 900 if 17 <= hour % 24 < 22 else 300


def made_wh(hour):
    return max(round(2_500 * math.sin((hour % 24 - 6) / 12 * math.pi)), 0)


def planner_of(days, ask=None, store=None):
    made = Planner(store or MemoryStore(), 24, HOUR_S, **({} if ask is None else {"ask": ask}))
    for slot in range(FIRST, FIRST + 24 * days):
        made.observe(slot, used_wh(slot), made_wh(slot))
    return made


def prospect(first_slot, battery=BATTERY, count=48):
    evening = [17 <= slot % 24 < 21 for slot in range(first_slot, first_slot + count)]
    return Prospect(
        first_slot=first_slot,
        import_price=tuple(450_000 if dear else 250_000 for dear in evening),
        export_price=(80_000,) * count,
        battery=battery,
        wear=60_000,
        reluctance=10_000,
    )


async def in_process(question):
    return msgspec.json.encode(answer(msgspec.json.decode(question, type=Question)))


async def failing(_):
    raise ChildError("late: no answer within 20 s")


async def test_a_real_child_says_what_stored_energy_is_worth_and_what_to_expect():
    planner, now = planner_of(10), FIRST + 240
    await planner.look(prospect(now))
    assert planner.why_not == ""
    for slot in range(now, now + 24):
        curve = planner.value_after(slot, now)
        assert curve.floor_wh == BATTERY.floor_wh
        assert 0 <= curve.marginals[-1] <= curve.marginals[0] <= 450_000
    path = planner.path(3_000)
    assert [row.slot for row in path] == list(range(now, now + 48))
    for row in path[3:]:
        assert abs(row.load_wh - used_wh(row.slot)) < 60
        assert abs(row.pv_wh - made_wh(row.slot)) < 300
    assert any(row.battery_wh > 0 for row in path if row.slot % 24 in range(17, 21))
    assert all(BATTERY.floor_wh <= row.soc_wh <= BATTERY.ceiling_wh for row in path)
    first, bands = planner.bands()
    assert (first, len(bands.net_wh), len(bands.net_wh[0])) == (now, 9, 48)


async def test_a_home_of_one_day_knows_no_value():
    planner = planner_of(1, in_process)
    await planner.look(prospect(FIRST + 24))
    assert planner.value_after(FIRST + 24, FIRST + 24) is None
    assert planner.why_not == "the home knows fewer than two days"


async def test_without_a_battery_there_is_a_forecast_and_no_value():
    planner, now = planner_of(5, in_process), FIRST + 120
    await planner.look(prospect(now, battery=None))
    assert planner.value_after(now, now) is None
    assert len(planner.path(None)) == 48


async def test_a_child_that_fails_is_told_once_and_its_last_word_is_used_for_two_hours():
    planner, now = planner_of(5, in_process), FIRST + 120
    await planner.look(prospect(now))
    planner._ask = failing
    with capture_logs() as logs:
        for late in (1, 2, 3):
            await planner.look(prospect(now + late))
        assert planner.value_after(now + 3, now + 3) is not None
        assert planner.value_after(now + USED_FOR_SLOTS, now + USED_FOR_SLOTS) is None
        planner._ask = in_process
        await planner.look(prospect(now + 4))
    assert [line["event"] for line in logs] == [
        "no value of stored energy, by the state of charge",
        "stored energy has a value again",
    ]


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"{}",
        b"[1, 2]",
        b'{"load_wh": [1], "pv_wh": [1], "bands": {"load_wh": [], "pv_wh": [], "net_wh": []},'
        b' "curves": []}',
    ],
)
async def test_nonsense_of_a_child_is_no_value(said):
    async def nonsense(_):
        return said

    planner, now = planner_of(5, nonsense), FIRST + 120
    await planner.look(prospect(now))
    assert planner.why_not
    assert planner.value_after(now, now) is None


async def test_curves_of_another_battery_are_not_used():
    async def other(question):
        asked = msgspec.json.decode(question, type=Question)
        swapped = msgspec.structs.replace(asked, battery=Battery(9_000, 1, 1, soc_min_permille=500))
        return await in_process(msgspec.json.encode(swapped))

    planner, now = planner_of(5, other), FIRST + 120
    await planner.look(prospect(now))
    assert planner.why_not == "a value curve of another battery"


async def test_what_was_learnt_outlives_a_restart():
    store = MemoryStore()
    planner_of(5, in_process, store)
    again = Planner(store, 24, HOUR_S, in_process)
    assert again.knows_enough
    await again.look(prospect(FIRST + 120))
    assert again.value_after(FIRST + 120, FIRST + 120) is not None


async def test_a_broken_history_costs_the_history_and_no_more():
    store = MemoryStore()
    with store.atomic():
        store.put("history", b"HG rubbish")
        store.put("accuracy", b"\xff")
    with capture_logs() as logs:
        assert not Planner(store, 24, HOUR_S, in_process).knows_enough
    assert {line["event"] for line in logs} >= {"history lost"}


CHILD = partial(ask_child, deadline_s=30.0)


async def test_a_child_answers_crashes_talks_too_much_or_is_late():
    python = [sys.executable, "-c"]
    echo = "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read())"
    assert await CHILD([*python, echo], b"x" * 300_000) == b"x" * 300_000
    with pytest.raises(ChildError, match="exit code 3"):
        await CHILD([*python, "import sys; sys.exit(3)"], b"")
    with pytest.raises(ChildError, match="more than"):
        await CHILD([*python, "import sys; sys.stdout.write('x' * 2_000_000)"], b"")
    with pytest.raises(ChildError, match="late"):
        await ask_child([*python, "import time; time.sleep(60)"], b"", 0.5)
    with pytest.raises(ChildError, match="does not start"):
        await CHILD(["/nowhere/at/all"], b"")


async def test_a_child_that_talks_on_while_nobody_listens_is_ended_at_once():
    """Its output is left unread, and asyncio sees no end of a child before the end of that."""
    talks_on = """if True:
        import fcntl, sys
        fcntl.fcntl(1, fcntl.F_SETPIPE_SZ, 1 << 20)
        sys.stdout.write("x" * 4_000_000)
    """
    async with asyncio.timeout(60):
        with pytest.raises(ChildError, match="says more than 1000 bytes"):
            await ask_child([sys.executable, "-c", talks_on], b"", 50.0, bytes_max=1_000)


async def test_curves_of_a_battery_of_another_size_are_not_used():
    """Both may be emptied to the same charge: the range, not the floor, tells them apart."""

    async def other(question):
        asked = msgspec.json.decode(question, type=Question)
        small = replace(BATTERY, capacity_wh=BATTERY.capacity_wh // 2, soc_min_permille=200)
        return await in_process(msgspec.json.encode(msgspec.structs.replace(asked, battery=small)))

    planner, now = planner_of(5, other), FIRST + 120
    await planner.look(prospect(now))
    assert planner.why_not == "a value curve of another battery"


@pytest.mark.parametrize("minutes", [1, 3, 5, 15, 60])
def test_the_outlook_fits_into_a_plan_whatever_the_slot(minutes):
    count = Planner(MemoryStore(), 1_440 // minutes, 60 * minutes, in_process).count()
    assert count == min(2_880 // minutes, SLOTS_MAX)
