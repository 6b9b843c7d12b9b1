"""Why bills differ: exact, and right in cases worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from analytics.billing import Paid, SettledSlot, bill, explain, read_home
from analytics.trades import MARKETS
from market.scheduling import deviation_tariff
from market.settlement import Tariff, settle
from wire.units import cost_uc

TARIFF = Tariff(retail_uc_per_kwh=300_000, feed_in_uc_per_kwh=80_000, imbalance_uc_per_kwh=300_000)


def row(net: int, bought: int = 0, sold: int = 0) -> dict[str, int]:
    return {"netWh": net, "boughtWh": bought, "soldWh": sold}


def award(side: str, energy: int, price: int, kind: str = "market") -> dict[str, object]:
    return {
        "side": side, "kind": kind, "energyWh": energy, "priceUc": price,
        "amountUc": cost_uc(energy, price),
    }  # fmt: skip


def slots(*settled: tuple, tariff: Tariff = TARIFF, scheduled: bool = False) -> list[SettledSlot]:
    return [SettledSlot(row, awards, tariff, scheduled) for row, awards in settled]


def home(**more: int) -> dict[str, object]:
    numbers = (
        "baseline_cost_uc", "baseline_import_wh", "baseline_export_wh", "soc_start_wh",
        "soc_end_wh", "baseline_soc_end_wh",
    )  # fmt: skip
    return {"name": "h", "address": "a", "kind": "pv", **dict.fromkeys(numbers, 0), **more}


def test_a_buyer_saves_the_difference_to_retail():
    parts, alone, sums = explain(slots((row(1000, bought=600), [award("buy", 600, 200_000)])))
    assert parts.neighbours == 600 * 100
    assert alone == 300_000
    assert (sums["boughtWh"], sums["importWh"]) == (600, 1000)


def test_a_seller_gains_the_difference_to_feed_in():
    parts, _, _ = explain(slots((row(-1000, sold=600), [award("sell", 600, 200_000)])))
    assert (parts.neighbours, parts.shortfall) == (600 * 120, 0)


def test_what_was_sold_and_not_delivered_is_a_shortfall():
    parts, _, sums = explain(slots((row(-400, sold=600), [award("sell", 600, 200_000)])))
    assert sums["shortfallWh"] == 200
    assert parts.shortfall == -200 * 100, "bought at 300, sold at 200"
    assert parts.neighbours == 400 * 120


def test_what_was_bought_and_not_taken_is_a_surplus():
    parts, _, sums = explain(slots((row(400, bought=600), [award("buy", 600, 200_000)])))
    assert sums["surplusWh"] == 200
    assert parts.surplus == -200 * 120, "bought at 200, passed on at 80"
    assert parts.neighbours == 400 * 100


def test_flexibility_is_told_apart_from_trade():
    awards = [award("sell", 300, 200_000), award("sell", 200, 250_000, "auction")]
    parts, _, _ = explain(slots((row(-500, sold=500), awards)))
    assert (parts.flexibility, parts.neighbours) == (200 * 170, 300 * 120)


def test_a_slot_without_a_receipt_is_told_apart_and_warned_of():
    silent = {**row(5_000, bought=600), "assumed": True}
    paid = 600 * 200 + 4_400 * 300
    balances = {"a": {"depositedUc": 10**9, "balanceUc": 10**9 - paid}}
    line = bill(read_home(home()), slots((silent, [award("buy", 600, 200_000)])), balances, TARIFF)
    assert {name: uc for name, uc in line["parts"].items() if uc} == {"assumed": -paid}
    assert line["importWh"] == 0, "nobody measured it"
    assert line["warning"] == (
        "h: slots without a receipt: 1, settled with an assumed 5000 Wh (−1.440)."
    )


def test_money_that_no_settlement_explains_is_warned_of():
    balances = {"a": {"depositedUc": 100, "balanceUc": 99}}
    line = bill(read_home(home()), [], balances, TARIFF)
    assert line["parts"]["other"] == -1
    assert line["warning"] == "h: slots not settled and roundings: −0.000001 unexplained."


SLOT = st.tuples(
    st.integers(-3000, 3000),
    st.lists(
        st.tuples(
            st.sampled_from(["buy", "sell"]),
            st.sampled_from(sorted(MARKETS)),
            st.integers(1, 2000),
            st.integers(0, 400_000),
        ),
        max_size=3,
    ),
    st.integers(80_000, 500_000),
    st.booleans(),
)


@given(st.lists(SLOT, max_size=8), st.integers(-9000, 9000), st.integers(-9000, 9000))
def test_the_parts_add_up_to_what_was_saved(days, stored, alone_stored):
    settled, paid = [], 0
    for net, orders, imbalance_price, scheduled in days:
        tariff = replace(TARIFF, imbalance_uc_per_kwh=imbalance_price)
        deviates = deviation_tariff(tariff) if scheduled else tariff
        awards = [award(side, energy, price, kind) for side, kind, energy, price in orders]
        bought = sum(a["energyWh"] for a in awards if a["side"] == "buy")
        sold = sum(a["energyWh"] for a in awards if a["side"] == "sell")
        for a in awards:
            paid += cost_uc(a["energyWh"], a["priceUc"]) * (1 if a["side"] == "buy" else -1)
        paid += settle(net, bought, sold, deviates).amount_uc
        settled.append(SettledSlot(row(net, bought, sold), awards, tariff, scheduled))
    balances = {"a": {"depositedUc": 10**9, "balanceUc": 10**9 - paid}}
    value = home(
        baseline_cost_uc=123_456, soc_start_wh=9000, soc_end_wh=9000 + stored,
        baseline_soc_end_wh=9000 + alone_stored,
    )  # fmt: skip
    line = bill(read_home(value), settled, balances, TARIFF)
    assert sum(line["parts"].values()) == line["savedUc"]
    assert line["parts"]["other"] == 0, "every settled slot is explained to the last µ¤"
    assert line["warning"] == ""
    assert line["paidUc"] == paid
    assert line["baselineUc"] - line["marketUc"] == line["savedUc"]


def test_what_was_taken_beyond_a_schedule_is_told_apart():
    dear = replace(TARIFF, imbalance_uc_per_kwh=400_000)
    settled = slots((row(1000, bought=600), [award("buy", 600, 200_000, "schedule")]), tariff=dear)
    parts, _, _ = explain(settled)
    assert (parts.neighbours, parts.deviation) == (600 * 100, 0)
    scheduled = [SettledSlot(one.row, one.trades, one.tariff, True) for one in settled]
    parts, _, _ = explain(scheduled)
    assert (parts.neighbours, parts.deviation) == (600 * 100, -400 * 100)


def test_each_slot_is_valued_at_its_own_tariff():
    dearer = replace(TARIFF, retail_uc_per_kwh=500_000)
    trade = (row(1000, bought=600), [award("buy", 600, 200_000)])
    parts, alone, _ = explain([*slots(trade), *slots(trade, tariff=dearer)])
    assert parts.neighbours == 600 * 100 + 600 * 300
    assert alone == 300_000 + 500_000


def test_fees_losses_and_rewards_are_parts_and_withdrawn_money_is_not_paid():
    balances = {"a": {"depositedUc": 1_000, "balanceUc": 1_000 - 30 - 5 + 7 - 400}}
    line = bill(read_home(home()), [], balances, TARIFF, Paid(30, 5, -7, 400))
    assert line["paidUc"] == 28
    assert (line["parts"]["fees"], line["parts"]["lost"], line["parts"]["rewards"]) == (-30, -5, 7)
    assert line["parts"]["other"] == 0


def test_money_that_is_locked_or_in_escrow_still_belongs_to_the_home():
    held = {"a": {"depositedUc": 100, "balanceUc": 50, "lockedUc": 20, "escrowUc": 10}}
    assert bill(read_home(home()), [], held, TARIFF)["paidUc"] == 20


def test_a_full_battery_makes_nobody_richer():
    emptied = home(soc_start_wh=5000, soc_end_wh=1000, baseline_soc_end_wh=5000)
    line = bill(read_home(emptied), [], {}, TARIFF)
    assert line["savedUc"] == line["parts"]["stored"] == -4000 * 80
    assert line["worseOff"]
    assert line["why"] == "less energy left in the battery −0.320"


@pytest.mark.parametrize(("cost", "worse"), [(0, False), (-5_000, False), (-5_001, True)])
def test_roundings_do_not_make_anybody_worse_off(cost, worse):
    line = bill(read_home(home(baseline_cost_uc=cost)), [], {}, TARIFF)
    assert line["worseOff"] is worse
