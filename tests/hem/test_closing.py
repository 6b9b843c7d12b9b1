"""No receipt is lost: whatever is away, refuses or dies, a slot is closed later, and once."""

import pytest
from home_at_hand import ADDRESS, SLOT, FakeGateway, Outbox, begin, opened, register, sunny
from structlog.testing import capture_logs

from hem.ems.closing import LATE_SLOTS, SlotsToClose
from hem.ems.pledges import by_slot
from hem.ems.wallet import Wallet
from hem.service import HomeEnergyManager
from ledger.contracts.context import TRUE_UP_SLOTS
from runtime.rng import SystemRng


async def tick(home, slot, offset_s=300):
    home.clock.to(slot, offset_s)
    await home._tick(slot)


def restarted(home):
    """The same home after `kill -9`: what was on disk is all it has."""
    home.store.close()
    made = HomeEnergyManager(home.config, home.clock, SystemRng())
    made.gateway, made.outbox, made.addresses.grant = home.gateway, home.outbox, home.grant
    made.wallet, made.client = Wallet(made.store, ADDRESS.id), home.client
    made.take_up_trade()
    return made


def receipts(home):
    return [key for key in home.outbox.operations if key.startswith("receipt/")]


@pytest.fixture
async def running(home):
    """A home that has closed its first slots."""
    await register(home)
    await begin(home, SLOT)
    await begin(home, SLOT + 1)
    assert receipts(home) == [f"receipt/{SLOT}"]
    return home


def test_a_receipt_is_tried_for_as_long_as_the_ledger_takes_it():
    assert LATE_SLOTS == TRUE_UP_SLOTS


async def test_a_gateway_that_is_down_for_three_slots_costs_no_receipt(running):
    home = running
    home.gateway.silent = True
    for slot in (SLOT + 2, SLOT + 3, SLOT + 4):
        await tick(home, slot)
    assert receipts(home) == [f"receipt/{SLOT}"]
    home.gateway.silent = False
    await tick(home, SLOT + 4, 480)
    assert receipts(home)[1:] == [f"receipt/{SLOT + i}" for i in (1, 2, 3)]
    assert home.gateway.signed[-3:] == [SLOT + 1, SLOT + 2, SLOT + 3], "the meter goes forward"


async def test_a_slot_that_is_late_is_closed_before_the_one_that_has_just_ended(running):
    running.gateway.silent = True
    await tick(running, SLOT + 2)
    running.gateway.silent = False
    await begin(running, SLOT + 3)
    assert receipts(running)[1:] == [f"receipt/{SLOT + 1}", f"receipt/{SLOT + 2}"]


async def test_what_a_late_reading_carries_is_not_learned_as_one_slots_energy(running, monkeypatch):
    learned = []
    monkeypatch.setattr(running.forecaster, "observe", lambda slot, *_: learned.append(slot))
    running.gateway.silent = True
    await tick(running, SLOT + 2)
    running.gateway.silent = False
    for slot in (SLOT + 3, SLOT + 4):
        await begin(running, slot)
    assert learned == [SLOT + 3]


async def test_slots_that_ended_while_the_home_was_off_are_closed_at_its_start(running):
    home = restarted(running)
    home.clock.to(SLOT + 4, 100)
    await home._catch_up()
    assert receipts(home)[1:] == [f"receipt/{SLOT + i}" for i in (1, 2, 3)]
    home.store.close()


async def test_killed_between_signing_and_submitting_the_receipt_goes_out_once(running):
    class Killed(BaseException):
        pass

    def die(_operations, _slot):
        raise Killed

    add, running.outbox.add = running.outbox.add, die
    with pytest.raises(Killed):
        await begin(running, SLOT + 2)
    assert running.gateway.receipts.count(SLOT + 1) == 1, "it was signed"
    running.outbox.add = add
    home = restarted(running)
    await home._catch_up()
    await tick(home, SLOT + 2)
    assert receipts(home)[1:] == [f"receipt/{SLOT + 1}"]
    home.store.close()


async def test_a_slot_leaves_the_list_when_the_ledger_has_its_receipt(running):
    await tick(running, SLOT + 1)
    assert running.to_close.waiting() == [SLOT], "on its way is not there"
    running.outbox.codes[f"receipt/{SLOT}"] = "OK"
    await tick(running, SLOT + 1)
    assert running.to_close.waiting() == []
    assert running.gateway.receipts == [SLOT]


async def test_a_receipt_that_came_too_early_for_the_ledger_is_sent_again(running):
    running.outbox.codes[f"receipt/{SLOT}"] = "FUTURE_DATED"
    await tick(running, SLOT + 1)
    await tick(running, SLOT + 1, 480)
    assert receipts(running) == [f"receipt/{SLOT}", f"receipt/{SLOT}/1"]
    running.outbox.codes[f"receipt/{SLOT}/1"] = "OK"
    await tick(running, SLOT + 1, 660)
    assert running.to_close.waiting() == []


@pytest.mark.parametrize("why", ["refused for good", "too late for the ledger"])
async def test_a_receipt_that_nobody_will_take_is_given_up_with_one_line(running, why):
    later = SLOT + 1 if why == "refused for good" else SLOT + LATE_SLOTS + 1
    if why == "refused for good":
        running.outbox.codes[f"receipt/{SLOT}"] = "NOT_ALLOWED"
    running.to_close.reach(later - 1)
    with capture_logs() as lines:
        for offset_s in (180, 360):
            await tick(running, later, offset_s)
    given_up = [e for e in lines if e["event"] == "no receipt for a slot" and e["slot"] == SLOT]
    assert len(given_up) == 1
    assert SLOT not in running.to_close.waiting()


async def test_a_slot_that_the_gateway_closes_no_longer_does_not_hold_up_the_others(running):
    running.gateway.silent = True
    await tick(running, SLOT + 2)
    running.gateway.silent = False
    await tick(running, SLOT + 9)
    assert receipts(running)[1:] == [f"receipt/{SLOT + i}" for i in (6, 7, 8)]
    assert running.to_close.waiting() == [SLOT, SLOT + 6, SLOT + 7, SLOT + 8]


def test_the_list_goes_on_where_it_stood_and_never_doubles(home):
    listed = SlotsToClose(home.store)
    for ended in (SLOT, SLOT, SLOT + 3, SLOT + 2, SLOT + 3):
        listed.reach(ended)
    assert listed.waiting() == [SLOT, SLOT + 1, SLOT + 2, SLOT + 3]
    listed.done(SLOT + 1)
    again = SlotsToClose(home.store)
    again.reach(SLOT + 3)
    assert again.waiting() == [SLOT, SLOT + 2, SLOT + 3]


# --- promises in auctions -------------------------------------------------------------------------


def promised_wh(home, slot=SLOT + 1):
    return by_slot(home.trader.pledges.standing("battery", home.clock.now_ms())).get(slot, 0)


async def test_an_auction_told_twice_is_promised_once_and_after_a_restart_too(home):
    await register(home)
    sunny(home)
    home.clock.to(SLOT, 120)
    await home.trader.take_event(5, opened(SLOT + 1))
    first_wh = promised_wh(home)
    assert first_wh > 0
    await home.trader.take_event(5, opened(SLOT + 1))
    assert promised_wh(home) == first_wh
    again = restarted(home)
    again.outbox, again.gateway = Outbox(), FakeGateway(again.clock)
    again.take_up_trade()
    await again.trader.take_event(5, opened(SLOT + 1))
    assert promised_wh(again) == first_wh
    assert again.outbox.operations == home.outbox.operations, "the same answer"
    again.store.close()


async def test_an_answer_that_the_ledger_refused_promises_nothing(home):
    await register(home)
    sunny(home)
    home.clock.to(SLOT, 120)
    await home.trader.take_event(5, opened(SLOT + 1))
    home.trader.operation_done("auction/a-1", home.outbox.operations["auction/a-1"], "SLOT_CLOSED")
    assert promised_wh(home) == 0
