"""
A chain in which every market was used, as analytics sees it: energy, money and prices of all.

Bills and the supervisor's side add up to zero, and each is what the chain's balances say.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.all_markets import ACTIVE, ANN, BOB, CAT, DAN, EVE, HOMES, SLOT, all_markets
from support.chain_builder import SUPERVISOR, SUPERVISOR_UC, Chain

from analytics.facts import facts_of
from analytics.live import LiveView, Situation
from analytics.report import build_report
from analytics.report_page import render_html
from analytics.rollups import Rollup
from analytics.store import AnalyticsStore
from analytics.trades import MARKETS
from sim.audit_history import deposits_of, read_history
from sim.finish import balances_of

OPEN_UC = 2_940
"""Dan bought 21 Wh of Cat in a slot that is not settled when the chain ends."""


@pytest.fixture(scope="module")
def chain() -> Chain:
    return all_markets()


@pytest.fixture(scope="module")
def folder(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database of a service that followed the chain, restarted in between."""
    folder = tmp_path_factory.mktemp("analytics")
    heights = range(1, chain.store.height + 1)
    for first in heights[::40]:
        store = AnalyticsStore(folder / "analytics.sqlite")
        for height in heights[first - 1 : first + 39]:
            block = chain.store.get_block(height)
            assert block is not None
            for event in chain.store.events(height):
                store.add_event(height, block.header.time_ms, event)
        store.flush({}, {})
        store.close()
    return folder


@pytest.fixture(scope="module")
def rollup(chain: Chain, folder: Path) -> Rollup:
    return replayed(chain, folder)


@pytest.fixture(scope="module")
def balances(chain: Chain) -> dict[str, dict[str, int]]:
    return balances_of(dict(chain.store.state_rows()), deposits_of(read_history(chain.store)))


@pytest.fixture(scope="module")
def report(chain: Chain, folder: Path, balances: dict[str, Any]) -> dict[str, Any]:
    homes = [{"name": f"home-{i}", "address": home.id} for i, home in enumerate(HOMES)]
    return build_report(folder, chain.genesis, homes=homes, final_balances=balances)


def replayed(chain: Chain, folder: Path) -> Rollup:
    rollup = Rollup(facts_of(chain.genesis), keep_days=0)
    store = AnalyticsStore(folder / "analytics.sqlite")
    store.replay(rollup)
    store.close()
    return rollup


def test_every_market_is_counted_and_together_they_are_the_ledgers(chain, report):
    energy = {row["kind"]: row["energyWh"] for row in report["markets"]}
    assert list(energy) == list(MARKETS), "every one was used"
    assert sum(energy.values()) == chain.ledger.query("totals")["tradedWh"]
    assert energy["market"] == 268 + 205
    assert energy["double"] == 31 + 33
    assert energy["auction"] == 91 + 123
    assert energy["offer"] == 50 * 2 + 17 + 21
    assert energy["escrow"] == 201 + 97 + 55
    local = {row["kind"]: row["localWh"] for row in report["markets"]}
    assert report["energy"]["tradedWh"] == sum(local.values())
    assert {kind for kind in energy if local[kind] != energy[kind]} == {"auction", "schedule"}
    assert local["auction"] == 0 < local["schedule"] < energy["schedule"], "the rest is the grid's"
    assert report["energy"]["flexWh"] == energy["auction"]


def test_what_each_paid_is_what_the_chain_says(rollup, balances):
    for home in HOMES:
        held = balances[home.id]
        gone = held["depositedUc"] - rollup.money.withdrawn_uc.get(home.id, 0)
        now = held["balanceUc"] + held["lockedUc"] + held["escrowUc"]
        assert rollup.money.paid_uc(home.id) == gone - now, home
    assert rollup.money.withdrawn_uc == {CAT.id: 1_234_567}


def test_bills_and_the_supervisors_side_add_up_to_zero(chain, rollup, report):
    bills_uc = sum(row["paidUc"] for row in report["bills"])
    assert bills_uc + report["supervisor"]["paidUc"] == 0
    assert sum(rollup.money.paid_uc(address) for address in rollup.money.addresses()) == 0
    pool_uc = chain.ledger.query("pool")["rewardsUc"]
    held_uc = sum(chain.account(SUPERVISOR)) + pool_uc
    assert report["supervisor"]["paidUc"] == SUPERVISOR_UC - held_uc


def test_every_bill_is_explained_to_the_last(report):
    other = {row["home"]: row["parts"]["other"] for row in report["bills"]}
    open_uc = {"home-2": OPEN_UC, "home-3": -OPEN_UC}
    assert {home: uc for home, uc in other.items() if uc} == open_uc
    parts = {row["home"]: row["parts"] for row in report["bills"]}
    assert parts["home-4"]["fees"] == -(5 * 1_000 + 3 * 1_777)
    assert parts["home-4"]["lost"] == -2 * (50_003 * 333 // 1000) - 100_000
    assert parts["home-3"]["lost"] == -100_000, "a bid that was not revealed"
    assert parts["home-4"]["rewards"] > 0
    beyond_wh = 503 - (205 + 19)
    dearer_uc = beyond_wh * 456_789 // 1000 - beyond_wh * 345_677 // 1000
    assert parts["home-1"]["deviation"] == -dearer_uc


def test_a_home_sees_what_it_traded_in_each_market(report):
    markets = {row["home"]: row["markets"] for row in report["bills"]}
    assert markets["home-4"]["escrow"]["soldWh"] == 201 + 97 + 55
    earned_uc = 201 * 150_001 // 1000 + 97 * 140_003 // 1000 + 55 * 160_001 // 1000
    assert markets["home-4"]["escrow"]["earnedUc"] == earned_uc
    bought = {kind: row["boughtWh"] for kind, row in markets["home-1"].items()}
    assert bought == {
        "market": 211 + 205, "double": 31, "schedule": 650 + 19, "auction": 123,
    }  # fmt: skip


def test_buyers_and_sellers_of_a_market_see_the_same_money(rollup):
    for kind in ("market", "double", "offer", "escrow"):
        rows = [row for row in rollup.trades.values() if row["kind"] == kind]
        paid_uc = sum(row["amountUc"] for row in rows if row["side"] == "buy")
        assert paid_uc == sum(row["amountUc"] for row in rows if row["side"] == "sell") > 0, kind


def test_a_slot_shows_its_markets(rollup):
    row = rollup.slots.get(SLOT)
    assert {kind: sums["energyWh"] for kind, sums in row["markets"].items()} == {
        "market": 268, "double": 64, "offer": 17, "auction": 214,
    }  # fmt: skip
    assert (row["tradedWh"], row["flexWh"]) == (268 + 64 + 17, 214)


def test_the_page_is_told_all_markets_and_the_running_tariff(chain, rollup):
    view = LiveView(rollup.facts, rollup, "b")
    now_ms = chain.genesis.grid.start_ms(SLOT + 9)
    reply = view.answer("", Situation(now_ms, 1.0, True, 0.0))
    tiles = reply["tiles"]
    assert set(tiles["markets"]) == set(MARKETS) == set(reply["market"]["markets"])
    assert tiles["tradedWh"] == sum(sums["localWh"] for sums in tiles["markets"].values())
    assert tiles["flexWh"] == tiles["markets"]["auction"]["energyWh"]
    assert reply["tariff"]["retailUc"] == 300_001
    later = view.answer("", Situation(chain.genesis.grid.start_ms(ACTIVE), 1.0, True, 0.0))
    assert later["tariff"]["retailUc"] == 345_677


def test_changed_prices_outlive_restart_and_pruning(chain, folder, report, tmp_path):
    assert [row["retailUc"] for row in report["tariffs"]] == [300_001, 345_677]
    copy = tmp_path / "analytics.sqlite"
    copy.write_bytes((folder / "analytics.sqlite").read_bytes())
    store = AnalyticsStore(copy)
    store.prune(1 << 50)
    assert {row["name"] for row in store.rows("events")} == {"change-approved"}
    for since_ms in (0, 1 << 50):
        rollup = Rollup(facts_of(chain.genesis))
        store.replay(rollup, since_ms)
        assert rollup.rules.tariff(ACTIVE - 1).retail_uc_per_kwh == 300_001
        assert rollup.rules.tariff(ACTIVE).retail_uc_per_kwh == 345_677
        assert rollup.rules.of_slot(ACTIVE).escrow.fee_uc == 1_777
    store.close()


def test_people_find_every_trade_with_its_money_in_the_database(folder, rollup):
    store = AnalyticsStore(folder / "analytics.sqlite")
    kept = {
        (r["slot"], r["number"], r["kind"], r["reference"]): (r["address"], r["side"],
         r["energy_wh"], r["amount_uc"])
        for r in store.rows("trades")
    }  # fmt: skip
    store.close()
    assert sorted(kept.values()) == sorted(
        (r["address"], r["side"], r["energyWh"], r["amountUc"]) for r in rollup.trades.values()
    )
    assert {key[2] for key in kept} == set(MARKETS)


def test_the_report_names_energy_and_money_of_every_market(report):
    line = next(line for line in report["lines"] if line.startswith("By market: "))
    for row in report["markets"]:
        assert row["name"] in line
        assert (
            f"{row['name']} {row['energyWh'] / 1000:.1f} kWh for {row['moneyUc'] / 1e6:.2f}" in line
        )
    page = render_html(report)
    assert all(f"<td>{name}</td>" in page.replace("&#39;", "'") for name in MARKETS.values())
    assert "the last of 2 tariffs" in page


def test_addresses_are_the_homes_only(rollup):
    homes = {home.id for home in (ANN, BOB, CAT, DAN, EVE)}
    assert {row["address"] for row in rollup.trades.values()} == homes
