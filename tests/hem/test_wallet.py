"""The wallet: finalised events only, each counted once, whatever crashes in between."""

from __future__ import annotations

import pytest
from support.crashes import FragileStore, PowerCut

from hem.ems.wallet import ESCROW, KEEP_SLOTS, MARKET, Position, Wallet
from runtime.store import MemoryStore

ME, OTHER = "hg1me", "hg1other"
SLOT = 1_980_000


def award(address, side, energy_wh):
    return {"address": address, "side": side, "energyWh": energy_wh, "priceUcPerKwh": 150_000}


def cleared(slot, *awards, price=150_000):
    traded = sum(a["energyWh"] for a in awards if a["side"] == "buy")
    return {
        "event": "cleared", "slot": slot, "priceUcPerKwh": price, "tradedWh": traded,
        "awards": list(awards),
    }  # fmt: skip


def auction_opened(slot, name, template):
    return {
        "event": "auction-opened", "auction": name, "template": template, "slot": slot,
        "energyWh": 500, "priceUcPerKwh": 200_000, "deadlineMs": 0,
    }  # fmt: skip


def auction_cleared(slot, name, energy_wh, address=ME, side="sell"):
    rows = [award(address, side, energy_wh)]
    return {
        "event": "auction-cleared", "auction": name, "slot": slot,
        "awards": rows, "boughtWh": energy_wh,
    }  # fmt: skip


def balance(amount_uc, locked_uc=0, address=ME):
    return {"event": "balance", "address": address, "balanceUc": amount_uc, "lockedUc": locked_uc}


def settled(slot, residual_wh):
    row = {
        "address": ME, "netWh": residual_wh, "boughtWh": 0, "soldWh": 0,
        "residualWh": residual_wh, "amountUc": residual_wh * 300,
    }  # fmt: skip
    return {"event": "settled", "slot": slot, "rows": [row], "missing": []}


def accepted(offer, slots, energy_wh, seller=ME, buyer=OTHER):
    part = {"startSlot": slots[0], "endSlot": slots[-1], "energyWh": energy_wh}
    return {
        "event": "offer-accepted", "offer": offer, "seller": seller, "buyer": buyer,
        "traded": [part],
    }  # fmt: skip


def escrow(what, offer="o:1", seller=OTHER, buyer=ME, energy_wh=70, **more):
    return {
        "event": f"escrow-{what}", "offer": offer, "slot": SLOT + 3, "seller": seller,
        "buyer": buyer, "energyWh": energy_wh, **more,
    }  # fmt: skip


def session(slot, number, side, energy_wh, address=ME):
    return {
        "event": "session-closed", "slot": slot, "round": number,
        "shares": [award(address, side, energy_wh)],
    }  # fmt: skip


DAY = [
    (1, {"event": "address-registered", "address": ME}),
    (2, balance(5_000_000)),
    (3, cleared(SLOT, award(ME, "buy", 400), award(OTHER, "sell", 400))),
    (3, balance(4_940_000, 10_000)),
    (4, cleared(SLOT + 1, award(OTHER, "buy", 100), award(ME, "sell", 60), award(ME, "sell", 40))),
    (3, auction_opened(SLOT + 1, "a-1", "reverse")),
    (4, auction_cleared(SLOT + 1, "a-1", 250)),
    (4, auction_opened(SLOT + 2, "a-2", "forward")),
    (5, auction_cleared(SLOT + 2, "a-2", 90, side="buy")),
    (5, accepted("n-1-0", [SLOT + 1, SLOT + 2], 25)),
    (5, escrow("accepted")),
    (6, session(SLOT + 2, 0, "sell", 30)),
    (6, session(SLOT + 2, 1, "buy", 10)),
    (6, settled(SLOT, 30)),
]


def facts(wallet):
    """All that a wallet tells."""
    return (
        wallet.registered,
        wallet.balance,
        [wallet.position(SLOT + n) for n in range(4)],
        [wallet.price(SLOT + n) for n in range(4)],
        wallet.settlements(),
    )


async def fold(wallet, events):
    for height, event in events:
        await wallet.take_event(height, event)


async def test_positions_add_awards_of_the_market_and_of_auctions():
    wallet = Wallet(MemoryStore(), ME)
    await fold(wallet, DAY)
    assert wallet.position(SLOT) == Position(bought_wh=400)
    assert wallet.position(SLOT + 1) == Position(sold_wh=375)
    assert wallet.position(SLOT + 1).net_wh == -375
    assert wallet.position(SLOT + 2) == Position(bought_wh=100, sold_wh=55)
    assert wallet.position(SLOT + 3) == Position(bought_wh=70)
    assert wallet.position(SLOT + 4) is None
    assert wallet.net_wh() == {SLOT: 400, SLOT + 1: -375, SLOT + 2: 45, SLOT + 3: 70}
    assert wallet.sold_wh(SLOT + 1, MARKET) == 100
    assert wallet.sold_wh(SLOT + 2, MARKET) is None
    assert wallet.contracted(SLOT + 2) == {
        "auction/a-2": (90, 0), "offer/n-1-0": (0, 25), "session/0": (0, 30),
        "session/1": (10, 0),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("ends", "bought_wh"),
    [
        ([], 70),
        ([escrow("revealed", energy_wh=40)], 40),
        ([escrow("ended", state="delivered")], 70),
        ([escrow("revealed", energy_wh=40), escrow("ended", state="failed")], None),
        ([escrow("ended", offer="o:2", state="failed")], 70),
    ],
)
async def test_an_escrowed_trade_counts_until_it_fails(ends, bought_wh):
    wallet = Wallet(MemoryStore(), ME)
    await fold(wallet, [(1, escrow("accepted")), *((2, end) for end in ends)])
    position = wallet.position(SLOT + 3)
    assert (None if position is None else position.bought_wh) == bought_wh


async def test_trades_of_others_are_none_of_ours():
    wallet = Wallet(MemoryStore(), ME)
    others = {"seller": OTHER, "buyer": "hg1third"}
    await fold(
        wallet,
        [
            (1, accepted("n", [SLOT], 5, **others)),
            (1, escrow("accepted", **others)),
            (1, session(SLOT, 0, "buy", 9, address=OTHER)),
            (2, escrow("ended", state="failed", **others)),
        ],
    )
    assert wallet.net_wh() == {}


async def test_two_auctions_for_one_slot_add_up():
    wallet = Wallet(MemoryStore(), ME)
    await fold(wallet, [(1, auction_cleared(SLOT, "a-1", 250)), (2, auction_cleared(SLOT, "b", 7))])
    assert wallet.position(SLOT) == Position(sold_wh=257)


async def test_balance_and_registration_are_the_last_word_of_the_ledger():
    wallet = Wallet(MemoryStore(), ME)
    assert (wallet.registered, wallet.balance) == (False, {"balanceUc": 0, "lockedUc": 0})
    await fold(wallet, DAY)
    assert wallet.registered
    assert wallet.balance == {"balanceUc": 4_940_000, "lockedUc": 10_000}


async def test_what_concerns_others_changes_nothing_of_ours():
    wallet = Wallet(MemoryStore(), ME)
    await fold(
        wallet,
        [
            (1, {"event": "address-registered", "address": OTHER}),
            (2, balance(7, address=OTHER)),
            (3, auction_cleared(SLOT, "a-9", 10, address=OTHER)),
            (4, {"event": "something-new", "address": ME}),
        ],
    )
    assert facts(wallet)[:2] == (False, {"balanceUc": 0, "lockedUc": 0})
    assert wallet.position(SLOT) is None


async def test_a_slot_without_trade_has_no_price():
    wallet = Wallet(MemoryStore(), ME)
    await fold(wallet, [(1, cleared(SLOT, price=0)), (2, cleared(SLOT + 1, award(ME, "buy", 5)))])
    assert (wallet.price(SLOT), wallet.price(SLOT + 1)) == (None, 150_000)


async def test_every_event_may_come_twice():
    wallet = Wallet(MemoryStore(), ME)
    for height, event in DAY:
        await wallet.take_event(height, event)
        await wallet.take_event(height, event)
    once = Wallet(MemoryStore(), ME)
    await fold(once, DAY)
    assert facts(wallet) == facts(once)


@pytest.mark.parametrize("kept_every", [1, 3, 1_000])
async def test_after_a_crash_at_any_write_reading_on_gives_the_same_wallet(tmp_path, kept_every):
    """However long ago the place was kept."""
    whole = Wallet(MemoryStore(), ME)
    await fold(whole, DAY)
    lives = 0
    while True:
        path = tmp_path / f"{lives}.sqlite"
        store = FragileStore(path, lives)
        wallet = Wallet(store, ME)
        try:
            for height in sorted({h for h, _ in DAY}):
                await fold(wallet, [(h, e) for h, e in DAY if h == height])
                if height % kept_every == 0:
                    wallet.keep_place({"market": height}, {"epoch": height})
            break
        except PowerCut:
            store.close()
        again = Wallet(FragileStore(path), ME)
        read = again.resume().get("market", 0)
        assert again.validators().get("epoch", 0) == read, "both or neither"
        await fold(again, [(h, e) for h, e in DAY if h > read])
        assert facts(again) == facts(whole), f"cut after {lives} moments"
        lives += 1
    assert lives > len(DAY)


async def test_a_fresh_address_is_not_taken_for_the_registered_one():
    store = MemoryStore()
    await fold(Wallet(store, OTHER), [(1, {"event": "address-registered", "address": OTHER})])
    assert not Wallet(store, ME).registered
    assert Wallet.kept(store).address == OTHER


async def test_a_fresh_address_has_none_of_the_earlier_ones_money():
    store = MemoryStore()
    await fold(Wallet(store, OTHER), [(1, balance(7, address=OTHER))])
    assert Wallet(store, ME).balance == {"balanceUc": 0, "lockedUc": 0}


async def test_old_positions_are_dropped_and_settlements_stay():
    store = MemoryStore()
    wallet = Wallet(store, ME)
    await fold(wallet, DAY)
    wallet.forget_before(SLOT + KEEP_SLOTS + 1)
    assert list(store.scan(ESCROW))
    wallet.forget_before(SLOT + KEEP_SLOTS + 4)
    assert not list(store.scan(ESCROW))
    await fold(wallet, DAY)
    wallet.forget_before(SLOT + KEEP_SLOTS + 1)
    assert wallet.position(SLOT) is None
    assert wallet.position(SLOT + 1) is not None
    assert [row["slot"] for row in wallet.settlements()] == [SLOT]


@pytest.mark.parametrize("heights", [{}, {"market": 3, "wallet": 9}])
def test_how_far_the_ledger_was_read_is_remembered(tmp_path, heights):
    store = FragileStore(tmp_path / "w.sqlite")
    Wallet(store, ME).keep_place(heights, {})
    store.close()
    assert Wallet(FragileStore(tmp_path / "w.sqlite"), ME).resume() == heights
