"""Registers that wear out: a bounded number of writes a day, and always some left for neutral."""

from collections import Counter
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.crashes import FragileStore, PowerCut

from hem.gateway.write_budget import DAY_MS, DAYS_KEPT, Verdict, WriteBudget
from runtime.store import MemoryStore, SqliteStore

NOON_MS = 20_000 * DAY_MS + DAY_MS // 2


def budget(store=None, per_day=5, reserve=2, device="battery"):
    return WriteBudget(store or MemoryStore(), device, per_day, reserve)


def test_setpoints_end_before_the_reserve_and_neutral_after_it():
    made = budget()
    verdicts = [made.admit([n], [0], NOON_MS) for n in range(1, 6)]
    assert verdicts == [Verdict.WRITE] * 3 + [Verdict.SPENT] * 2
    verdicts = [made.admit([0], [1], NOON_MS, neutral=True) for _ in range(3)]
    assert verdicts == [Verdict.WRITE] * 2 + [Verdict.SPENT]
    assert made.left(NOON_MS) == made.left(NOON_MS, neutral=True) == 0


def test_what_is_there_already_costs_nothing():
    made = budget(per_day=1, reserve=0)
    for _ in range(100):
        assert made.admit([1, 2], (1, 2), NOON_MS) is Verdict.UNCHANGED
    assert made.admit([1, 2], [1, 3], NOON_MS) is Verdict.WRITE
    assert made.admit([1, 3], [1, 2], NOON_MS) is Verdict.SPENT
    assert made.admit([1, 2], [1, 2], NOON_MS) is Verdict.UNCHANGED, "also when nothing is left"


def test_registers_that_cannot_be_read_are_written():
    assert budget().admit([1], None, NOON_MS) is Verdict.WRITE


def test_a_new_day_has_a_new_budget():
    made = budget()
    for _ in range(9):
        made.admit([1], None, NOON_MS)
    assert made.admit([1], None, NOON_MS) is Verdict.SPENT
    assert made.admit([1], None, NOON_MS + DAY_MS) is Verdict.WRITE


def test_a_restart_gives_nothing_back_and_devices_are_apart(tmp_path):
    store = SqliteStore(tmp_path / "registers.sqlite")
    for _ in range(3):
        assert budget(store).admit([1], None, NOON_MS) is Verdict.WRITE
    store.close()
    store = SqliteStore(tmp_path / "registers.sqlite")
    assert budget(store).admit([1], None, NOON_MS) is Verdict.SPENT
    assert budget(store, device="other").admit([1], None, NOON_MS) is Verdict.WRITE
    store.close()


def test_a_write_is_counted_before_it_goes_out(tmp_path):
    """A power cut after the verdict finds the write counted; one before it was never admitted."""
    for lives in range(4):
        store = FragileStore(tmp_path / f"{lives}.sqlite", lives)
        admitted = False
        with suppress(PowerCut):
            admitted = budget(store).admit([1], None, NOON_MS) is Verdict.WRITE
        store.close()
        again = SqliteStore(tmp_path / f"{lives}.sqlite")
        left = budget(again).left(NOON_MS)
        assert left == 2 if admitted else left in (2, 3)
        again.close()
    assert admitted, "the last one had lives enough"


def test_a_clock_that_steps_buys_nothing():
    made = budget()
    for _ in range(20):
        for now_ms in (0, NOON_MS, NOON_MS + 400 * DAY_MS):
            made.admit([1], None, now_ms, neutral=True)
    assert all(made.left(day, neutral=True) == 0 for day in (0, NOON_MS, NOON_MS + 400 * DAY_MS))


@pytest.mark.parametrize(("per_day", "reserve"), [(0, 0), (3, 3), (3, 4), (3, -1)])
def test_a_budget_without_a_setpoint_is_refused(per_day, reserve):
    with pytest.raises(ValueError, match=r"^reserve: "):
        budget(per_day=per_day, reserve=reserve)


@pytest.mark.parametrize("row", [b"", b"{}}", b"[1]", b"null", b"[[1]]", b'[["a", 1]]'])
def test_a_row_that_is_not_ours_is_no_crash(row):
    store = MemoryStore()
    store.put("writes:battery", row)
    assert budget(store).left(NOON_MS) == 3


writes = st.lists(
    st.tuples(
        st.integers(0, DAYS_KEPT - 1),
        st.lists(st.integers(0, 2), min_size=1, max_size=2),
        st.booleans(),
        st.booleans(),
    ),
    max_size=120,
)


@given(writes, st.integers(1, 6), st.integers(0, 5))
def test_no_day_ever_sees_more_than_its_budget(steps, per_day, reserve):
    """Whatever the clock, the values and the restarts do."""
    if reserve >= per_day:
        reserve = per_day - 1
    store, present = MemoryStore(), [0]
    made = budget(store, per_day, reserve)
    setpoints, every = Counter(), Counter()
    for day, values, neutral, restart in steps:
        if restart:
            made = budget(store, per_day, reserve)
        before = made.left(day * DAY_MS, neutral=True)
        verdict = made.admit(values, present, day * DAY_MS + 1, neutral=neutral)
        assert (verdict is Verdict.UNCHANGED) == (values == present)
        if verdict is Verdict.WRITE:
            present = values
            every[day] += 1
            setpoints[day] += not neutral
        else:
            assert made.left(day * DAY_MS, neutral=True) == before
        if verdict is Verdict.SPENT:
            assert every[day] >= per_day - (0 if neutral else reserve)
    assert all(count <= per_day for count in every.values())
    assert all(count <= per_day - reserve for count in setpoints.values())
