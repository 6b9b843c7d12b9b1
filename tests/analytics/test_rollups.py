"""The fold of events and states."""

from __future__ import annotations

import pytest
from support.made_up_day import DAY_START_MS, SLOT_MS, identity, made_up_genesis

from analytics.facts import facts_of
from analytics.rollups import HomeState, Rollup, Table
from analytics.store import AnalyticsStore

SLOT = DAY_START_MS // SLOT_MS


@pytest.fixture
def rollup() -> Rollup:
    return Rollup(facts_of(made_up_genesis()))


def state(time_ms: int, load_w: int, **more: object) -> HomeState:
    fields = {"home": "hg1a", "time_ms": time_ms, "online": True, "load_w": load_w}
    return HomeState(**{**fields, "measured": True, **more})


def settled(rows: dict[str, int], missing: tuple[str, ...] = (), name: str = "settled"):
    return {
        "event": name,
        "slot": SLOT,
        "rows": [
            {"address": a, "netWh": n, "boughtWh": 0, "soldWh": 0, "residualWh": n, "amountUc": 0}
            for a, n in rows.items()
        ],
        "missing": list(missing),
        "amountUc": 0,
    }


def test_a_table_tells_only_what_changed():
    table: Table[str] = Table()
    table.put("a", {"n": 1}, 1)
    table.put("b", {"n": 2}, 2)
    table.put("a", {"n": 3}, 3)
    assert table.since(2) == [{"n": 3}]
    assert table.since(-1) == [{"n": 2}, {"n": 3}]
    assert table.since(3) == []


def test_power_is_the_time_weighted_mean_of_each_slot(rollup):
    start = DAY_START_MS
    for minute, watt in ((0, 1000), (10, 1000), (20, 3000), (30, 3000)):
        rollup.fold_state(state(start + minute * 60_000, watt))
    first, second = sorted(rollup.slots.values(), key=lambda row: row["slot"])
    # 10 min at 1000 W, then 5 min rising from 1000 to 2000 W
    assert first["loadW"] == pytest.approx((10 * 1000 + 5 * 1500) / 15, abs=1)
    assert second["loadW"] == pytest.approx((5 * 2500 + 10 * 3000) / 15, abs=1)
    assert rollup.energy_wh("load", [SLOT, SLOT + 1]) == pytest.approx(1000, abs=1)


def test_a_home_that_was_silent_is_not_made_up(rollup):
    rollup.fold_state(state(DAY_START_MS, 1000))
    rollup.fold_state(state(DAY_START_MS + 3 * SLOT_MS, 1000))
    assert len(rollup.slots) == 0


def test_a_home_that_shares_no_powers_is_there_with_its_lost_devices(rollup):
    rollup.fold_state(state(DAY_START_MS, 0, lost=("inverter",), measured=False))
    (row,) = rollup.homes.values()
    assert (row["online"], row["shares"], row["lost"]) == (True, False, ["inverter"])
    assert "loadW" not in row


def test_an_old_state_does_not_replace_a_newer_one(rollup):
    rollup.fold_state(state(DAY_START_MS + 1000, 500))
    rollup.fold_state(state(DAY_START_MS, 900))
    assert next(rollup.homes.values())["loadW"] == 500


def test_an_offline_home_stays_known_and_loses_its_mark(rollup):
    rollup.fold_state(state(DAY_START_MS, 500))
    rollup.fold_state(HomeState("hg1a", DAY_START_MS + 1, online=False))
    row = next(rollup.homes.values())
    assert (row["id"], row["online"]) == ("hg1a", False)


def test_a_late_receipt_settles_its_home_again(rollup):
    rollup.fold_event(1, settled({"a": 0, "b": 700}, missing=("a",)))
    assert (rollup.slots.get(SLOT)["missing"], rollup.slots.get(SLOT)["netWh"]) == (1, 700)
    rollup.fold_event(2, settled({"a": -300}, name="trued-up"))
    row = rollup.slots.get(SLOT)
    assert (row["missing"], row["netWh"], row["homeExportWh"]) == (0, 400, 300)


def test_what_is_assumed_of_a_silent_home_is_no_energy_of_the_feeder(rollup):
    event = settled({"a": 5_000, "b": 700}, missing=("a",))
    event["rows"][0]["assumed"] = True
    rollup.fold_event(1, event)
    row = rollup.slots.get(SLOT)
    assert (row["missing"], row["settled"], row["netWh"], row["homeImportWh"]) == (1, 2, 700, 700)
    rollup.fold_event(2, settled({"a": 400}, name="trued-up"))
    assert rollup.slots.get(SLOT)["netWh"] == 1_100


def test_a_message_refused_by_every_node_counts_once(rollup):
    for node in ("v1", "v2"):
        rollup.fold_refused(node, "mempool", {"REPLAYED": 3})
    rollup.fold_refused("v1", "mempool", {"REPLAYED": 4})
    assert rollup.refusals == {("mempool", "REPLAYED"): 4}


def test_a_refused_operation_counts_under_its_own_code(rollup):
    codes = {"event": "tx", "txid": "", "sender": "a"}
    rollup.fold_event(1, {**codes, "code": "OK", "codes": ["OK", "SLOT_CLOSED"]})
    rollup.fold_event(1, {**codes, "code": "WRONG_NONCE", "codes": []})
    assert rollup.refusals == {("ledger", "SLOT_CLOSED"): 1, ("ledger", "WRONG_NONCE"): 1}
    assert rollup.txs == 2


def test_an_auction_gives_trades_and_flexibility(rollup):
    opened = {
        "event": "auction-opened", "auction": "f1", "template": "forward", "slot": SLOT,
        "energyWh": 500, "priceUcPerKwh": 90_000, "deadlineMs": 0,
    }  # fmt: skip
    award = {"address": "a", "energyWh": 400, "priceUcPerKwh": 100_000}
    cleared = {
        "event": "auction-cleared", "auction": "f1", "slot": SLOT, "awards": [award],
        "boughtWh": 400,
    }  # fmt: skip
    rollup.fold_event(1, opened)
    rollup.fold_event(2, cleared)
    assert rollup.auctions.get("f1")["meanUc"] == 100_000
    trade = next(rollup.trades.values())
    assert (trade["side"], trade["kind"]) == ("buy", "auction")
    assert rollup.slots.get(SLOT)["flexWh"] == 400


def accepted_offer():
    return {
        "event": "offer-accepted", "offer": "o-1", "address": "ann", "acceptedBy": "bob",
        "seller": "ann", "buyer": "bob", "priceUcPerKwh": 200_000, "energyWh": 500,
        "amountUc": 100_000, "offerRest": [], "assetsRest": [],
        "traded": [
            {"energyWh": 100, "startSlot": SLOT, "endSlot": SLOT + 1},
            {"energyWh": 300, "startSlot": SLOT + 3, "endSlot": SLOT + 3},
        ],
    }  # fmt: skip


def test_an_accepted_offer_is_a_trade_of_both_sides_in_each_of_its_slots(rollup, tmp_path):
    rollup.fold_event(1, accepted_offer())
    rows = [
        (r["slot"] - SLOT, r["address"], r["side"], r["energyWh"]) for r in rollup.trades.values()
    ]
    assert rows == [
        (0, "bob", "buy", 100), (0, "ann", "sell", 100), (1, "bob", "buy", 100),
        (1, "ann", "sell", 100), (3, "bob", "buy", 300), (3, "ann", "sell", 300),
    ]  # fmt: skip
    store = AnalyticsStore(tmp_path / "analytics.sqlite")
    store.add_event(1, DAY_START_MS, accepted_offer())
    store.flush({}, {})
    kept = [
        (row["slot"] - SLOT, row["address"], row["side"], row["energy_wh"])
        for row in store.rows("trades")
    ]
    assert sorted(kept) == sorted(rows)
    assert {row["kind"] for row in store.rows("trades")} == {"offer"}
    store.close()


def test_a_slot_without_a_trade_has_no_price(rollup):
    event = {
        "event": "cleared", "slot": SLOT, "priceUcPerKwh": 0, "tradedWh": 0, "bids": 2,
        "offers": 0, "awards": [],
    }  # fmt: skip
    rollup.fold_event(1, event)
    assert "priceUc" not in rollup.slots.get(SLOT)


def test_events_with_unknown_names_change_nothing(rollup):
    rollup.fold_event(5, {"event": "something-new"})
    assert (rollup.revision, rollup.height) == (0, 0)


def test_forgetting_keeps_what_is_recent(evening):
    rollup = evening.rollup
    rollup.forget_before(DAY_START_MS + 12 * 3_600_000)
    assert min(row["startMs"] for row in rollup.slots.values()) == DAY_START_MS + 12 * 3_600_000
    assert min(rollup.settlements) == SLOT + 48
    assert all(row["timeMs"] >= DAY_START_MS + 12 * 3_600_000 for row in rollup.blocks.values())


@pytest.mark.parametrize(
    ("minutes", "day"), [(-15, 0), (5, 0), (24 * 60 + 50, 0), (24 * 60 + 65, 1)]
)
def test_a_day_is_shown_until_its_last_slots_are_settled(rollup, minutes, day):
    shown_ms = rollup.facts.day_start_ms(DAY_START_MS + minutes * 60_000)
    assert shown_ms == DAY_START_MS + day * 86_400_000


def test_every_validator_has_a_row_before_its_first_turn(rollup):
    assert {row["id"] for row in rollup.validators.values()} == {
        identity(f"validator {i}") for i in range(4)
    }


def test_a_fast_ledger_does_not_fill_the_memory(rollup):
    leader = identity("validator 0")
    for height in range(2000):
        block = {"height": height, "proposer": leader, "nTx": 1, "timeMs": DAY_START_MS}
        rollup.fold_block({**block, "finalityMs": 9})
    assert len(rollup.blocks) == 1500
    assert rollup.blocks.last()["height"] == 1999
    assert rollup.validators.get(leader)["turns"] == 2000, "turns are counted for ever"


def test_two_awards_of_one_address_in_a_slot_are_both_kept(rollup):
    award = {"address": "a", "side": "buy", "energyWh": 100, "priceUcPerKwh": 200_000}
    event = {
        "event": "cleared", "slot": SLOT, "priceUcPerKwh": 200_000, "tradedWh": 150, "bids": 2,
        "offers": 1, "welfareUc": 1, "awards": [award, {**award, "energyWh": 50}],
    }  # fmt: skip
    rollup.fold_event(1, event)
    rollup.fold_event(1, event)  # told twice: still two awards
    assert [trade["energyWh"] for trade in rollup.trades.values()] == [100, 50]
