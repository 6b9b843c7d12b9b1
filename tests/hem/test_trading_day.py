"""
Homes use every market that their policies name, over the real contracts.

What is checked of each market: it was used, nothing that a home sent was refused for lack of energy
or money, the wallet knows exactly what the ledger has, and no home promised more than it has.
"""

from __future__ import annotations

import pytest
from support.chain_builder import FIRST_SLOT, SUPERVISOR, auction, key, slot_ms
from trading_day import ALL_MARKETS, TradingDay, TradingHome

from hem.controller.policy import EscrowPolicy, Policy, SchedulesPolicy
from ledger.approvals import Approval
from ledger.contracts import slots as slot_rows
from ledger.genesis import Auctions, Feeder, Governance, Zone

HARMLESS = {"NOT_FOUND", "DUPLICATE"}
"""Codes that a race makes: somebody else accepted the offer first."""


def home(name, load_wh, pv_wh, *markets, soc_permille=-1, **policy):
    owner = Policy(markets=markets or ("double-auction",), **policy)
    return TradingHome(key(name), load_wh, pv_wh, owner, soc_permille)


def neighbours(*markets, **policy):
    """Two with sun, three without, one with a battery that is nearly full."""
    return [
        home("sun 1", 100, 700, *markets, **policy),
        home("sun 2", 80, 420, *markets, **policy),
        home("load 1", 300, 0, *markets, **policy),
        home("load 2", 350, 0, *markets, **policy),
        home("load 3", 240, 0, *markets, **policy),
        home("battery", 120, 600, *markets, soc_permille=950, **policy),
    ]


def check(day):
    """What must hold after every day, whatever was traded."""
    assert {code for _, _, code in day.refused} <= HARMLESS, day.refused
    for one in day.homes:
        for slot, net_wh in one.wallet.net_wh().items():
            held = slot_rows.position(day.state, slot, one.key.id)
            position = one.wallet.position(slot)
            kept = (held["boughtWh"], held["soldWh"])
            pending = [
                amounts for source, amounts in one.wallet.contracted(slot).items()
                if source.startswith("escrow/")
            ]  # fmt: skip
            if not pending:
                assert (position.bought_wh, position.sold_wh) == kept
            # without a battery nobody sells or buys more than a slot's surplus or need
            if one.soc_permille < 0:
                surplus_wh = one.pv_wh - one.load_wh
                assert min(0, -surplus_wh) <= net_wh <= max(0, -surplus_wh)
    conserved_uc = sum(
        sum(day.chain.account(who)) for who in (SUPERVISOR, *(one.key for one in day.homes))
    )
    return conserved_uc


async def test_the_double_auction_alone_as_before():
    day = TradingDay(neighbours("double-auction"))
    await day.run(6)
    check(day)
    assert any(event["tradedWh"] for event in day.of("cleared"))
    assert not day.of("offer-posted") and not day.of("escrow-offered")


async def test_neighbours_sell_each_other_blocks_of_slots():
    day = TradingDay(neighbours("order-book"))
    await day.run(10)
    check(day)
    posted, accepted = day.of("offer-posted"), day.of("offer-accepted")
    assert posted and accepted
    assert any(event["endSlot"] > event["startSlot"] for event in posted)
    prices = day.chain.genesis.prices
    for event in accepted:
        assert prices.feed_in_uc_per_kwh < event["priceUcPerKwh"] < prices.retail_uc_per_kwh
    assert not day.of("bid-accepted")


async def test_what_no_neighbour_took_goes_to_the_double_auction():
    day = TradingDay(neighbours("double-auction", "order-book"))
    await day.run(10)
    check(day)
    assert day.of("offer-accepted")
    assert any(event["tradedWh"] for event in day.of("cleared"))


async def test_escrowed_lots_are_offered_taken_and_delivered():
    day = TradingDay(neighbours("escrow"))
    await day.run(10)
    check(day)
    ends = [event["state"] for event in day.of("escrow-ended")]
    assert ends.count("delivered") >= 3
    assert "failed" not in ends


async def test_a_dear_escrow_is_left_alone():
    frugal = EscrowPolicy(fee_max_uc=0)
    day = TradingDay(neighbours("escrow", escrow=frugal))
    await day.run(5)
    offered = day.of("escrow-offered")
    assert bool(offered) == (day.chain.genesis.escrow_rules.fee_uc == 0)


async def test_schedules_are_told_once_cleared_and_kept():
    day = TradingDay(neighbours("schedules"))
    await day.run(10)
    check(day)
    told = [(event["address"], event["slot"]) for event in day.of("schedule-submitted")]
    assert len(told) == len(set(told)) >= 3 * len(day.homes)
    assert any(share["energyWh"] for event in day.of("session-closed") for share in event["shares"])


class Congested(TradingDay):
    """The supervisor takes an interconnection out of service and reopens the session."""

    def _supervisors_word(self, slot):
        if slot == FIRST_SLOT + 1:
            return [
                {"op": "assign-zone", "address": self.homes[0].key.id, "zone": "east"},
            ]
        return []

    async def at(self, slot, offset_s, *extra):
        target = FIRST_SLOT + 6
        if slot == target - 1 and offset_s == 890:
            self.homes[0].pv_wh = 300  # a cloud
            for _ in range(8):
                self.homes[0].trader._parts.forecaster.observe(slot, 100, 300)
            await super().at(slot, offset_s - 60)
            extra = (
                {"op": "open-adjustment", "slot": target, "deadlineMs": slot_ms(target) - 1_000},
            )
        await super().at(slot, offset_s, *extra)


async def test_a_session_that_is_reopened_gets_back_what_cannot_be_kept():
    zones = (Zone(name="east", rating_w=50_000),)
    day = Congested(neighbours("schedules"), feeder=Feeder(rating_w=100_000, zones=zones))
    await day.run(7)
    adjusted = [event for event in day.of("session-closed") if event["round"] == 1]
    assert [event["slot"] for event in adjusted] == [FIRST_SLOT + 6]
    mine = [s for s in adjusted[0]["shares"] if s["address"] == day.homes[0].key.id]
    assert mine and mine[0]["side"] == "buy", "it buys back what it will not produce"


@pytest.mark.parametrize("markets", [("double-auction",), ALL_MARKETS])
async def test_sealed_bids_are_committed_revealed_and_lose_no_deposit(markets):
    day = TradingDay(neighbours(*markets), auctions=Auctions(sealed=True))
    await day.run(8)
    assert {code for _, _, code in day.refused} <= HARMLESS, day.refused
    committed, revealed = day.of("bid-committed"), day.of("bid-revealed")
    gates_passed = FIRST_SLOT + 8
    due = [event for event in committed if event["slot"] <= gates_passed]
    assert due and len(revealed) >= len(due)
    assert not day.of("bid-forfeited")
    assert any(event["tradedWh"] for event in day.of("cleared")) or "schedules" in markets


async def test_all_markets_together_promise_nothing_twice():
    early = EscrowPolicy(lead_slots=8, lots=1, lot_wh=90)
    late = SchedulesPolicy(lead_slots=2)
    day = TradingDay(neighbours(*ALL_MARKETS, escrow=early, schedules=late))
    await day.run(14)
    check(day)
    assert day.of("offer-accepted") and day.of("escrow-accepted")
    assert any(share["energyWh"] for event in day.of("session-closed") for share in event["shares"])


class WithAuctions(TradingDay):
    """The aggregator deploys an auction of each template."""

    def _supervisors_word(self, slot):
        target = slot + 3
        return {
            FIRST_SLOT + 2: [auction("need", "reverse", target, 800, 290_000, "uniform")],
            FIRST_SLOT + 3: [
                {**auction("need-2", "reverse", target, 800, 290_000, "uniform"), "sealed": True}
            ],
            FIRST_SLOT + 4: [auction("all", "double", target, 0, 0, "uniform")],
        }.get(slot, [])


async def test_the_aggregators_auctions_are_answered_open_and_sealed():
    homes = [*neighbours("auctions", "double-auction"), home("full", 50, 900, soc_permille=1_000)]
    homes[-1].policy = Policy()
    day = WithAuctions(homes)
    await day.run(9)
    assert {code for _, _, code in day.refused} <= HARMLESS, day.refused
    cleared = {event["auction"]: event for event in day.of("auction-cleared")}
    assert set(cleared) == {"need", "need-2", "all"}
    assert all(event["awards"] for event in cleared.values()), cleared


async def test_a_home_that_was_killed_goes_on_where_it_stood():
    day = TradingDay(neighbours("order-book", "escrow", "double-auction"))
    await day.run(5)
    for one in day.homes:
        day.start(one)
        await one.trader.trade_ahead(FIRST_SLOT + 4)
    posted = [len(one.outbox.codes("offer")) for one in day.homes]
    await day.at(FIRST_SLOT + 5, 1)
    assert posted == [len(one.outbox.codes("offer")) for one in day.homes]
    assert {code for _, _, code in day.refused} <= HARMLESS


@pytest.mark.parametrize("slots_again", [1, 3, 14])
async def test_what_was_read_before_a_crash_is_read_again_and_changes_nothing(slots_again):
    """How far the ledger was read is kept now and then only."""
    day = TradingDay(
        neighbours(
            *ALL_MARKETS, escrow=EscrowPolicy(lead_slots=8, lots=1, lot_wh=90),
            schedules=SchedulesPolicy(lead_slots=2),
        )
    )  # fmt: skip
    await day.run(14)
    again = day.told[-len(day.told) * slots_again // 14 :]
    assert {event["event"] for _, event in again} >= {"cleared", "balance"}
    for one in day.homes:
        before, sent = list(one.store.scan("")), dict(one.outbox.sent)
        day.start(one)
        for height, event in again:
            await one.wallet.take_event(height, event)
            await one.trader.take_event(height, event)
        assert list(one.store.scan("")) == before
        assert one.outbox.sent == sent


# --- rules that change ---------------------------------------------------------------------------


async def test_a_home_agrees_to_changes_that_its_owner_named_and_to_no_others():
    agreeing = [Approval(path="prices.*", most=320_000)]
    day = TradingDay(
        [home("sun 1", 100, 700, approve=agreeing), home("load 1", 300, 0, approve=agreeing)],
        governance=Governance(participants_permille=500),
    )
    await day.run(3)
    later = FIRST_SLOT + 120
    for path, value in (
        ("prices.retailUcPerKwh", 310_000),
        ("prices.imbalanceUcPerKwh", 330_000),
        ("gateLeadS", 240),
    ):
        change = {"op": "propose-change", "path": path, "value": value, "activationSlot": later}
        await day.at(FIRST_SLOT + 3, 10 + value % 7, change)
    for one in day.homes:
        assert one.outbox.codes("approve") == ["OK"]


async def test_a_home_bids_at_the_prices_that_hold_in_the_slot():
    day = TradingDay([home("load 1", 300, 0)])
    await day.registered()
    one = day.homes[0]
    approved = {
        "event": "change-approved", "change": "c", "path": "prices.retailUcPerKwh",
        "value": 200_000, "activationSlot": FIRST_SLOT + 2,
    }  # fmt: skip
    await one.trader.take_event(1, approved)
    day.start(one)  # what was told before a restart is not told again
    prices = []
    for slot in (FIRST_SLOT, FIRST_SLOT + 1):
        day.clock.to(slot, 120)
        await one.trader.bid(slot)
        prices.append(one.outbox.sent[f"bid/{slot + 1}/0"]["priceUcPerKwh"])
    assert prices[1] < 200_000 < prices[0]
