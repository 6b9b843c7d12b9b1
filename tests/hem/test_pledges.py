"""Promises: made once, counted while they hold, gone when they are decided or past."""

from __future__ import annotations

import pytest

from hem.ems.pledges import Pledge, Pledges, by_slot
from runtime.store import MemoryStore

SLOT = 1_980_000
OPERATION = {"op": "post-offer"}


def pledge(energy_wh, start=SLOT, end=SLOT, source="forecast", **more):
    return Pledge(
        start_slot=start, end_slot=end, energy_wh=energy_wh, source=source, operation=OPERATION,
        **more,
    )  # fmt: skip


@pytest.fixture
def pledges():
    made = Pledges(MemoryStore())
    made.add("offer/1", pledge(500, end=SLOT + 2))
    made.add("accept/o", pledge(-200))
    made.add("accept/o/1", pledge(-50, start=SLOT + 1, end=SLOT + 1))
    made.add("accept/other", pledge(-7))
    made.add("auction/a", pledge(100, source="battery"))
    return made


def totals(pledges, source="forecast", now_ms=0):
    standing = pledges.standing(source, now_ms)
    return [by_slot(standing).get(SLOT + n, 0) for n in range(4)]


def test_promises_add_up_per_slot_and_kind(pledges):
    assert totals(pledges) == [293, 450, 500, 0]
    assert totals(pledges, "battery") == [100, 0, 0, 0]


def test_what_is_released_promises_nothing_with_all_its_parts_and_is_remembered(pledges):
    pledges.release("accept/o")
    assert totals(pledges) == [493, 500, 500, 0]
    assert pledges.find("accept/o").energy_wh == 0
    assert pledges.find("accept/p") is None


def test_a_promise_lapses_by_itself(pledges):
    pledges.add("lot/x", pledge(40, until_ms=5_000))
    assert totals(pledges, now_ms=4_999)[0] == 333
    assert totals(pledges, now_ms=5_000)[0] == 293


def test_the_ledgers_name_leads_to_the_promise(pledges):
    pledges.name("offer/1", "hg1me-7-0")
    assert pledges.key_of("hg1me-7-0") == "offer/1"
    assert pledges.key_of("hg1me-8-0") == ""
    assert pledges.key_of("") == "", "those without a name are not meant"


def test_a_promise_is_kept_with_its_parts():
    store = MemoryStore()
    made = Pledges(store)
    for key in ("auction/a", "auction/a/1", "auction/ab"):
        made.add(key, pledge(1))
    assert [key for key, _ in made.kept("auction/a")] == ["auction/a", "auction/a/1"]
    made.release("auction/a", parts=False)
    again = Pledges(store)
    assert {key: one.energy_wh for key, one in again.kept()} == {
        "auction/a": 0, "auction/a/1": 1, "auction/ab": 1,
    }  # fmt: skip


def test_promises_end_with_their_last_slot(pledges):
    pledges.forget_before(SLOT + 1)
    assert totals(pledges) == [500, 450, 500, 0]
    pledges.forget_before(SLOT + 3)
    assert totals(pledges) == [0, 0, 0, 0]
