"""A whole home with four days of history: what it looks ahead to, steers, bids and tells."""

from __future__ import annotations

import json
from datetime import UTC

from home_at_hand import SLOT, award, begin, make_home, register

from hem.controller.policy import parse_policy
from hem.plan_text import plan_facts, plan_of, plan_text
from wire.slots import SlotGrid

PER_DAY = 96


def tariff_around(slot, cheap_hours):
    """Cheap now, dear after: hours by the clock of the slot."""
    begin_h = slot % PER_DAY // 4
    until_h = (begin_h + cheap_hours) % 24
    return (
        f'[[tariff]]\nfrom = "{begin_h:02}:00"\nto = "{until_h:02}:00"\n'
        'import_price = "0.15 ¤/kWh"\n'
        f'[[tariff]]\nfrom = "{until_h:02}:00"\nto = "{begin_h:02}:00"\n'
        'import_price = "0.60 ¤/kWh"\n'
    )


def learn(home, load_wh=400):
    for slot in range(SLOT - 4 * PER_DAY, SLOT - 1):
        home.planner.observe(slot, load_wh, 0)
        home.forecaster.observe(slot, load_wh, 0)


async def planned(tmp_path, soc_permille, policy=""):
    home = make_home(tmp_path)
    home.policy_file.policy = parse_policy(policy, "policy.toml")
    home.trader.renew_policy(home.policy)
    learn(home)
    home.gateway.load_w, home.gateway.pv_w, home.gateway.soc_permille = 1_600, 0, soc_permille
    await begin(home, SLOT)
    await home._look_ahead(SLOT)
    return home


async def test_before_dear_hours_the_home_charges_from_the_grid(tmp_path):
    home = await planned(tmp_path, 100, tariff_around(SLOT, 1))
    assert home.planner.why_not == ""
    await home._tick(SLOT)
    (power_w, lease_s) = home.gateway.orders[-1]
    assert power_w < -1_000
    assert lease_s >= 180


async def test_in_a_contracted_slot_the_contract_comes_first(tmp_path):
    home = await planned(tmp_path, 500, tariff_around(SLOT, 1))
    await award(home, SLOT, "sell", 250)
    await home._tick(SLOT)
    assert home.gateway.orders[-1][0] > 1_600


async def test_under_one_price_the_battery_is_never_taken_from_its_device(tmp_path):
    home = await planned(tmp_path, 500)
    await home._tick(SLOT)
    assert home.gateway.orders == []


async def test_a_bid_knows_what_stored_energy_is_worth_and_why_says_so(tmp_path):
    home = await planned(tmp_path, 900)
    await register(home)
    home.clock.to(SLOT, 120)
    await home.trader.bid(SLOT)
    record = home.decisions.get(SLOT + 1)["record"]
    assert record["mode"] == "plan"
    assert record["worthUcPerKwh"] > 0


async def test_a_home_that_is_young_goes_by_its_state_of_charge(tmp_path):
    home = make_home(tmp_path)
    await register(home)
    await begin(home, SLOT)
    await home._look_ahead(SLOT)
    home.clock.to(SLOT, 120)
    await home.trader.bid(SLOT)
    assert home.decisions.get(SLOT + 1)["record"].get("mode", "rules") == "rules"
    assert home.foresight.plan is None


async def test_the_page_s_plan_balances(tmp_path):
    home = await planned(tmp_path, 500, tariff_around(SLOT, 3))
    rows = home._plan_rows()
    assert len(rows) == 2 * PER_DAY
    for row in rows:
        came = row.import_wh + row.pv_wh + row.discharge_wh
        assert came == row.export_wh + row.load_wh + row.charge_wh


async def test_the_plan_is_printed_with_what_to_start_when(tmp_path):
    washing = (
        '[[deferrable]]\nname = "dishwasher"\npower_w = 1200\nminutes = 60\n'
        'earliest = "00:00"\nlatest = "23:45"\n'
    )
    home = await planned(tmp_path, 500, tariff_around(SLOT, 3) + washing)
    plan, starts = plan_of(tmp_path / "data", SLOT)
    assert plan == home.foresight.plan
    assert starts
    lines = list(plan_text(plan, starts, SLOT, home.grid, UTC))
    assert lines[0].startswith("start dishwasher at ")
    assert len([line for line in lines if line[2] == ":"]) == 24
    assert json.loads(json.dumps(plan_facts(plan, starts)))["starts"] == starts


def test_a_home_without_a_plan_says_why(tmp_path):
    make_home(tmp_path)
    plan, starts = plan_of(tmp_path / "data", SLOT)
    (line,) = plan_text(plan, starts, SLOT, SlotGrid(900), UTC)
    assert line == "no plan yet: a home plans once it has seen two days"


async def test_without_a_contract_the_reserve_stays_with_the_home(tmp_path):
    begin_h = SLOT % PER_DAY // 4
    dear = (
        "reserve_permille = 400\n"
        f'[[tariff]]\nfrom = "{begin_h:02}:00"\nto = "{(begin_h + 1) % 24:02}:00"\n'
        'import_price = "0.50 ¤/kWh"\nexport_price = "0.45 ¤/kWh"\n'
        f'[[tariff]]\nfrom = "{(begin_h + 1) % 24:02}:00"\nto = "{begin_h:02}:00"\n'
        'import_price = "0.10 ¤/kWh"\nexport_price = "0.05 ¤/kWh"\n'
    )
    home = await planned(tmp_path, 900, dear)
    await home._tick(SLOT)
    assert home.gateway.orders[-1][0] > home.gateway.load_w
    orders = len(home.gateway.orders)
    home.gateway.soc_permille = 400
    home.clock.to(SLOT, 180)
    await home._tick(SLOT)
    assert all(power_w <= home.gateway.load_w for power_w, _ in home.gateway.orders[orders:])


async def test_a_bid_leaves_in_the_battery_what_is_promised_for_later(tmp_path):
    home = await planned(tmp_path, 500)
    await register(home)
    early = home.trader._early()
    assert home.trader._ahead(await home.trader._unlimited(SLOT + 1), SLOT + 1, early).owed_wh == 0
    early.plan(SLOT + 8, -1_500)
    base = await home.trader._unlimited(SLOT + 1)
    assert home.trader._ahead(base, SLOT + 1, early).owed_wh == 1_500
