"""`hem why` in a household's words: golden texts, and no word of the trade in any of them."""

from __future__ import annotations

import re
from dataclasses import replace
from zoneinfo import ZoneInfo

import msgspec
import pytest
from test_rules import AH_WH, ETSE, policy, situation

from hem.controller.bidding import Decision, OrderIntent
from hem.controller.explain import Cause, Fate, LimitNote, Record, RunnerUp, cause_of, explain
from hem.controller.forecast import Forecast
from hem.controller.rules import binding, decide_by
from hem.ems.decisions import DecisionLog
from hem.summary import decisions_of
from runtime.store import SqliteStore
from wire.slots import SlotGrid

TARIFF = {"retail_uc_per_kwh": 300_000, "feed_in_uc_per_kwh": 80_000}


def sell(energy_wh, price=120_000):
    return {"side": "sell", "energyWh": energy_wh, "priceUcPerKwh": price}


def buy(energy_wh, price=250_000):
    return {"side": "buy", "energyWh": energy_wh, "priceUcPerKwh": price}


DSO = LimitNote(side="import", power_w=4_200, origin="dso", until="19:00")
SOLD = (Record(cause=Cause.SURPLUS_SOLD, net_wh=-700, **TARIFF), [sell(420)])
GOLDEN = {
    "nothing to gain": (
        Record(cause=Cause.NOTHING), [], Fate(),
        "The home did not trade: it needed nothing and had nothing to spare.",
    ),
    "flat prices": (
        Record(cause=Cause.FLAT, retail_uc_per_kwh=300_000, feed_in_uc_per_kwh=300_000), [], Fate(),
        "The home did not trade: electricity costs as much to buy (30.0 ct/kWh) as it earns"
        " (30.0 ct/kWh), so there was nothing to gain.",
    ),
    "participation RE only": (
        Record(cause=Cause.REWARDS_ONLY), [], Fate(),
        "The home did not trade: you chose to take part in the rewards for using your own energy"
        " only.",
    ),
    "surplus sold": (
        *SOLD, Fate(sold_wh=400, cleared=True, metered_net_wh=-650),
        "The home offered 0.42 kWh for at least 12.0 ct/kWh: the sun was expected to give 0.70 kWh"
        " more than the home uses, and the battery did not need it. It sold 0.40 kWh.",
    ),
    "delivered less than sold": (
        *SOLD, Fate(sold_wh=400, cleared=True, metered_net_wh=-150),
        "The home offered 0.42 kWh for at least 12.0 ct/kWh: the sun was expected to give 0.70 kWh"
        " more than the home uses, and the battery did not need it. It sold 0.40 kWh. It delivered"
        " 0.15 kWh, 0.25 kWh less than it sold; what was missing had to be paid for.",
    ),
    "offer not accepted": (
        *SOLD, Fate(cleared=True),
        "The home offered 0.42 kWh for at least 12.0 ct/kWh: the sun was expected to give 0.70 kWh"
        " more than the home uses, and the battery did not need it. Nobody bought at that price,"
        " so nothing was sold.",
    ),
    "order refused": (
        *SOLD, Fate(refused=1),
        "The home offered 0.42 kWh for at least 12.0 ct/kWh: the sun was expected to give 0.70 kWh"
        " more than the home uses, and the battery did not need it. The market did not take the"
        " order, so nothing was traded.",
    ),
    "stored energy sold": (
        Record(cause=Cause.STORE_SOLD, net_wh=100), [sell(300, 220_000), sell(50, 240_000)], Fate(),
        "The home offered 0.35 kWh for at least 22.0 ct/kWh: the battery held more than the home"
        " will need itself.",
    ),
    "surplus kept for tonight": (
        Record(cause=Cause.SURPLUS_KEPT, net_wh=-500, worth_uc_per_kwh=240_000,
               runner_up=RunnerUp(action="sell 0.50 kWh", cost_uc=60_000)), [], Fate(),
        "The home kept its surplus of 0.50 kWh in the battery: it is worth more later today than"
        " what it would earn now. One kWh more in the battery was worth 24.0 ct. The next best"
        " would have been to sell 0.50 kWh, at a loss of 6.0 ct.",
    ),
    "need bought": (
        Record(cause=Cause.NEED_BOUGHT, net_wh=500, **TARIFF), [buy(450)], Fate(bought_wh=450),
        "The home asked for 0.45 kWh for at most 25.0 ct/kWh: the home was expected to use 0.50"
        " kWh more than it makes, and neighbours are cheaper than the supplier (30.0 ct/kWh). It"
        " bought 0.45 kWh.",
    ),
    "bought cheap for tonight": (
        Record(cause=Cause.BOUGHT_AHEAD, net_wh=100, **TARIFF), [buy(800, 110_000)],
        Fate(bought_wh=800),
        "The home asked for 0.80 kWh for at most 11.0 ct/kWh: the battery was going to run empty,"
        " and what is bought cheap now is used later instead of the supplier's (30.0 ct/kWh). It"
        " bought 0.80 kWh.",
    ),
    "price above cap": (
        Record(cause=Cause.NEED_BOUGHT, net_wh=500, bounds=("price-max",),
               buy_max_uc_per_kwh=100_000, **TARIFF), [buy(450, 100_000)], Fate(cleared=True),
        "The home asked for 0.45 kWh for at most 10.0 ct/kWh: the home was expected to use 0.50"
        " kWh more than it makes, and neighbours are cheaper than the supplier (30.0 ct/kWh). You"
        " pay no more than 10.0 ct/kWh. Nobody sold at your limit, so nothing was bought.",
    ),
    "reserve kept": (
        Record(cause=Cause.BOUND, bounds=("reserve",), keep_wh=4_000), [], Fate(),
        "The home did not trade. The last 4.00 kWh in the battery are kept for the home, as you"
        " wish.",
    ),
    "never-sell window": (
        Record(cause=Cause.BOUND, bounds=("never-sell",), never_sell="17:00–20:00"), [], Fate(),
        "The home did not trade. You want nothing to be sold between 17:00 and 20:00.",
    ),
    "least price": (
        Record(cause=Cause.BOUND, bounds=("price-min",), sell_min_uc_per_kwh=310_000), [], Fate(),
        "The home did not trade. You take no less than 31.0 ct/kWh.",
    ),
    "limit of the DSO obeyed": (
        Record(cause=Cause.NEED_BOUGHT, net_wh=2_000, bounds=("grid",), limits=(DSO,), **TARIFF),
        [buy(1_050)], Fate(bought_wh=1_050),
        "The home asked for 1.05 kWh for at most 25.0 ct/kWh: the home was expected to use 2.00"
        " kWh more than it makes, and neighbours are cheaper than the supplier (30.0 ct/kWh). The"
        " grid operator allows no more than 4.2 kW from the grid until 19:00, and the home keeps"
        " to it. The home traded less for that. It bought 1.05 kWh.",
    ),
    "device lost": (
        Record(cause=Cause.DEVICE_LOST, lost=("battery",)), [], Fate(),
        "The home did not trade, because it did not know what it uses and stores: a trade that it"
        " cannot keep costs money. No answer came from battery.",
    ),
    "ledger unknown": (
        Record(cause=Cause.LEDGER_UNKNOWN), [], Fate(),
        "The home did not trade, because it did not know yet what it had traded before; nothing is"
        " sold twice.",
    ),
    "plan late": (
        Record(cause=Cause.NOTHING, mode="fall-back"), [], Fate(),
        "The home did not trade: it needed nothing and had nothing to spare. The plan for the day"
        " was not ready in time; the home decided by the hour.",
    ),
    "policy broken": (
        Record(cause=Cause.NOTHING, policy_error="policy.toml: line 2, reserve: no such key"), [],
        Fate(),
        "The home did not trade: it needed nothing and had nothing to spare. Your policy file has"
        " a mistake (policy.toml: line 2, reserve: no such key); the last good one holds until it"
        " is corrected.",
    ),
    "rule": (
        Record(cause=Cause.RULE, rule="battery < 50 Ah: buy to 60 Ah"), [buy(576, 60_000)], Fate(),
        "The home asked for 0.58 kWh for at most 6.0 ct/kWh, because your rule says so (battery <"
        " 50 Ah: buy to 60 Ah).",
    ),
    "held back by the gate": (
        Record(cause=Cause.NOTHING, refused=("RESERVE",)), [], Fate(),
        "The home did not trade: it needed nothing and had nothing to spare. One order would have"
        " broken what you allow and was not sent.",
    ),
}  # fmt: skip
JARGON = re.compile(
    r"\b(SoC|order book|clearing|residual|imbalance|slot|Wh|µ¤|permille|DSO|ledger|bid|feed-in)\b"
)


@pytest.mark.parametrize("name", GOLDEN)
def test_a_situation_reads_so(name):
    record, orders, fate, text = GOLDEN[name]
    assert explain(record, orders, fate) == text


@pytest.mark.parametrize("name", GOLDEN)
def test_no_word_of_the_trade(name):
    assert not JARGON.search(explain(*GOLDEN[name][:3]))


@pytest.mark.parametrize("name", GOLDEN)
def test_a_record_reads_the_same_when_it_was_kept(name):
    record = GOLDEN[name][0]
    assert msgspec.convert(msgspec.to_builtins(record), Record) == record


def cause(text, now):
    owner = policy(text)
    found = decide_by(now, owner, owner.rule)
    return cause_of(now, owner, found, binding(now, now, owner, owner.rule, found))


def test_the_cause_is_that_of_the_decision():
    full = situation(soc_wh=10_000, pv=1_500)
    assert cause("", full) is Cause.SURPLUS_SOLD
    assert cause("[[never_sell]]", full) is Cause.BOUND
    assert cause('participation = "RE"', full) is Cause.REWARDS_ONLY
    assert cause("", replace(full, retail=40_000)) is Cause.FLAT
    assert cause(ETSE, situation(soc_wh=48 * AH_WH)) is Cause.RULE
    assert cause("", situation(soc_wh=0, load=800)) is Cause.NEED_BOUGHT
    evening = Forecast(0, 500, 0, (2_000,) * 20 + (-100,) * 60)
    assert cause("", situation(soc_wh=2_000, forecast=evening)) is Cause.BOUGHT_AHEAD
    unsure = replace(evening, day_seen=False)
    assert cause("", situation(soc_wh=2_000, forecast=unsure)) is Cause.SURPLUS_KEPT
    assert cause("", situation(soc_wh=5_000)) is Cause.NOTHING


def test_why_answers_by_the_homes_clock(tmp_path):
    """18:00 in Berlin is 16:00 UTC in summer."""
    grid = SlotGrid(900)
    slot = grid.slot_at(1_780_272_000_000) + 64
    store = SqliteStore(tmp_path / "ems.sqlite")
    decision = Decision((OrderIntent("sell", 420, 120_000),), 0, "")
    DecisionLog(store).add(slot, 0, decision, SOLD[0])
    store.close()
    (row,) = decisions_of(tmp_path, "18:07", grid, ZoneInfo("Europe/Berlin"))
    assert row["text"].startswith("18:00–18:15: The home offered 0.42 kWh for at least 12.0 ct/kWh")
    assert decisions_of(tmp_path, "16:00", grid, ZoneInfo("Europe/Berlin")) == []
