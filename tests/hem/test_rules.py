"""
The owner's rules: the paper's example to the Wh, and no order that breaks a policy.

The oracle below reads a policy's text minute by minute with its own arithmetic; it shares nothing
with `hem.controller.rules`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hem.controller.battery import Battery
from hem.controller.bidding import OrderIntent, Situation, answer_auction
from hem.controller.forecast import Forecast
from hem.controller.policy import Policy, load_policy, parse_policy
from hem.controller.rules import (
    Forbidden,
    binding,
    bounded,
    bounds_of,
    decide_by,
    due,
    permitted,
    permitted_together,
)
from hem.controller.sections import Window
from wire.errors import ConfigError

DOCS = Path(__file__).parents[2] / "docs"
SIX_PM_S = 18 * 3600
ETSE = """
battery_voltage_v = "48"
[[rule]]
every = "1 min"
when = "battery < 50 Ah"
buy_to = "60 Ah"
price_max = "60 £/MWh"
"""
AH_WH = 48


def policy(text: str) -> Policy:
    return parse_policy(text, "policy.toml")


def situation(soc_wh=5_000, load=0, pv=0, **facts) -> Situation:
    base = Situation(
        slot=1, slot_seconds=900, forecast=Forecast(load, pv, 0), soc_wh=soc_wh,
        battery=Battery(10_000, 4_000, 4_000, soc_min_permille=0), retail=300_000, feed_in=40_000,
        imbalance=400_000,
    )  # fmt: skip
    return replace(base, **facts)


def decided(text: str, now: Situation):
    owner = policy(text)
    return decide_by(now, owner, owner.rule)


# --- The paper's example -------------------------------------------------------------------------


def test_the_papers_situation_makes_the_papers_request():
    """48 Ah in the battery: 12 Ah at no more than 60 £/MWh, and nothing else."""
    found = decided(ETSE, situation(soc_wh=48 * AH_WH))
    assert found.orders == (OrderIntent("buy", 12 * AH_WH, 60_000),)
    assert found.rule == "battery < 50 Ah: buy to 60 Ah"


@pytest.mark.parametrize(
    ("stored_ah", "fires"), [(49, True), (50, False), (55, False), (60, False)]
)
def test_it_fires_below_its_threshold_only(stored_ah, fires):
    assert bool(decided(ETSE, situation(soc_wh=stored_ah * AH_WH)).rule) == fires


def test_what_is_on_its_way_already_is_not_bought_twice():
    assert not decided(ETSE, situation(soc_wh=48 * AH_WH, coming_wh=12 * AH_WH)).rule


def test_a_foreign_currency_is_worth_what_the_owner_says():
    (order,) = decided(ETSE + '[currency]\n"£" = "1.17"\n', situation(soc_wh=48 * AH_WH)).orders
    assert order.price_uc_per_kwh == 70_200


def test_a_request_is_within_what_the_battery_takes_in_the_slot():
    now = situation(soc_wh=0, battery=Battery(10_000, 1_000, 1_000, soc_min_permille=0))
    assert decided(ETSE, now).orders[0].energy_wh == 250


def test_a_rule_obeys_the_caps_of_its_hour():
    text = ETSE + '[[price_cap]]\nfrom = "18:00"\nto = "19:00"\nbuy_max = "5 cent/kWh"\n'
    now = situation(soc_wh=48 * AH_WH, day_s=SIX_PM_S)
    assert decided(text, now).orders[0].price_uc_per_kwh == 50_000
    assert decided(text, replace(now, day_s=0)).orders[0].price_uc_per_kwh == 60_000


def test_a_rule_sells_down_to_its_target_and_no_lower_than_its_price():
    text = '[[rule]]\nwhen = "battery > 90 %"\nsell_to = "85 %"\nprice_min = "20 cent/kWh"\n'
    assert decided(text, situation(soc_wh=9_500)).orders == (OrderIntent("sell", 1_000, 200_000),)


def test_a_rule_by_price_waits_for_one():
    text = '[[rule]]\nwhen = "battery < 80 % and price < 12 cent/kWh"\nbuy_to = "81 %"\n'
    assert not decided(text, situation()).rule
    assert not decided(text, situation(prices=(120_000,))).rule
    assert decided(text, situation(prices=(119_999,))).rule


def test_a_power_of_a_rule_is_its_pace():
    text = '[[rule]]\nwhen = "battery < 80 %"\nbuy_to = "90 %"\npower_max = "0.4 kW"\n'
    assert decided(text, situation()).orders[0].energy_wh == 100


def test_rewards_only_silences_every_rule():
    found = decided('participation = "RE"\n' + ETSE, situation(soc_wh=48 * AH_WH))
    assert (found.orders, found.rule) == ((), "")


def test_a_rule_is_looked_at_when_its_time_has_come():
    owner = policy(ETSE + '[[rule]]\nevery = "1 h"\nwhen = "battery < 9 Ah"\nkeep = "9 Ah"\n')
    minute_ms, hour_ms = 60_000, 3_600_000
    assert due(owner, 5 * minute_ms, 6 * minute_ms) == owner.rule[:1]
    assert due(owner, hour_ms - minute_ms, hour_ms) == owner.rule
    assert due(owner, hour_ms, hour_ms + 1) == ()


# --- Hours ---------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, 1_439), st.integers(1, 1_440), st.integers(0, 95), st.sampled_from([900, 3_600])
)
def test_a_window_overlaps_a_slot_when_they_have_a_moment_in_common(begin, end, quarter, length_s):
    if begin == end:
        return
    inside = set(range(begin, end)) if begin < end else {*range(begin, 1_440), *range(end)}
    slot = {(quarter * 15 + minute) % 1_440 for minute in range(length_s // 60)}
    window = Window.model_construct(from_=begin, to=end)
    assert window.overlaps(quarter * 900, length_s) == bool(inside & slot)


# --- What is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[[rule]]\nwhen = "battery < 5 kWh"\n', "line 1, rule: Value error, expected"),
        ('[[rule]]\nwhen = "batery < 5 kWh"\nkeep = "1 Wh"\n', "line 2, rule.when"),
        ('[[rule]]\nwhen = "__import__(1)"\nkeep = "1 Wh"\n', "is no comparison"),
        ('[[rule]]\nwhen = "battery < 5 Ah"\nkeep = "1 Wh"\n', "line 1, rule: Value error"),
        ('[[reserve]]\nkeep = "5 Ah"\n', "battery_voltage_v = \"51.2\""),
        ('[[rule]]\nwhen = "price < 1 ¤/kWh"\nkeep = "1 Wh"\nprice_max = "1 ¤/kWh"', "with buy_to"),
        ('[[price_cap]]\nbuy_max = "60 £"\n', "line 2, price_cap.buy_max"),
        ('[[price_cap]]\nfrom = "10:00"\n', "expected buy_max, sell_min or both"),
        ('[[never_sell]]\nfrom = "10:00"\n[[never_sell]]\n\nto = "25:00"\n', "line 5, never"),
        ('[[never_sell]]\nfrom = "10:00"\nto = "10:00"\n', "to differ"),
        ('[[never_sell]]\nfrom = "10:00"\nuntil = "11:00"\n', "use one of from, to"),
        ('[[rule]]\nevery = "1 s"\nwhen = "battery < 5 %"\nkeep = "1 Wh"\n', "line 2, rule.every"),
        ('[currency]\n"¥" = "2"\n', "line 2, currency"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_line_and_what_would_be_right(text, told):
    with pytest.raises(ConfigError) as error:
        policy(text)
    assert told in str(error.value)


@pytest.mark.parametrize("page", ["reference/policy.md", "how-to/policy.md"])
def test_every_policy_in_the_docs_is_one(page, tmp_path):
    blocks = re.findall(r"```toml\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        path = tmp_path / "policy.toml"
        path.write_text(block)
        load_policy(path)


# --- The gate ------------------------------------------------------------------------------------

BUY, SELL = OrderIntent("buy", 100, 100_000), OrderIntent("sell", 100, 100_000)


@pytest.mark.parametrize(
    ("text", "order", "facts", "reason"),
    [
        ('participation = "RE"', BUY, {}, Forbidden.PARTICIPATION),
        ('markets = ["escrow"]', BUY, {}, Forbidden.MARKET),
        ("buy_price_max = 99999", BUY, {}, Forbidden.PRICE_ABOVE_MAX),
        ('[[price_cap]]\nbuy_max = "9.9 cent/kWh"', BUY, {}, Forbidden.PRICE_ABOVE_MAX),
        ("sell_price_min = 100001", SELL, {}, Forbidden.PRICE_BELOW_MIN),
        ("[[never_sell]]", SELL, {}, Forbidden.NEVER_SELL),
        ('[[reserve]]\nkeep = "50 %"', SELL, {}, Forbidden.RESERVE),
        ('[[rule]]\nwhen = "battery < 60 %"\nkeep = "50 %"', SELL, {}, Forbidden.RESERVE),
        ("", BUY, {"max_buy_wh": 99}, Forbidden.LIMIT),
        ("", SELL, {"can_sell": False}, Forbidden.LIMIT),
    ],
)
def test_the_gate_names_the_limit_that_an_order_breaks(text, order, facts, reason):
    assert permitted(order, "double-auction", situation(**facts), policy(text)) is reason
    assert permitted(order, "double-auction", situation(), policy("")) is order


def test_a_surplus_may_be_sold_whatever_is_kept_in_the_battery():
    now = situation(pv=100)
    assert permitted(SELL, "double-auction", now, policy('[[reserve]]\nkeep = "100 %"')) is SELL


def test_orders_of_one_slot_are_looked_at_together():
    now = situation(soc_wh=5_200)
    orders = (SELL, SELL)
    allowed, refused = permitted_together(
        orders, "double-auction", now, policy('[[reserve]]\nkeep = "50 %"')
    )
    assert (allowed, refused) == ((SELL,), (Forbidden.RESERVE,))


def test_a_decision_names_what_held_it_back():
    now = situation(soc_wh=9_900, pv=1_500, retail=300_000)
    owner = policy("[[never_sell]]")
    held = decide_by(now, owner, ())
    assert held.orders == ()
    assert decide_by(now, policy(""), ()).orders
    assert binding(now, now, owner, (), held) == ("never-sell",)
    assert binding(now, now, policy(""), (), decide_by(now, policy(""), ())) == ()


hours = st.sampled_from(["00:00", "06:00", "12:30", "17:45", "18:00", "18:15", "20:00", "23:59"])
cents = st.integers(1, 40)
percents = st.integers(0, 100)


@st.composite
def windows(draw):
    begin, end = draw(hours), draw(hours)
    return "" if begin == end else f'from = "{begin}"\nto = "{end}"\n'


@st.composite
def policies(draw):
    """The text of a policy, with every table once or twice."""
    text = f"reserve_permille = {draw(percents) * 3}\n"
    text += f'participation = "{draw(st.sampled_from(["TE", "RE", "RE+TE", "RE+TE"]))}"\n'
    if draw(st.booleans()):
        text += f"buy_price_max = {draw(cents) * 10_000}\n"
    if draw(st.booleans()):
        text += f"sell_price_min = {draw(cents) * 4_000}\n"
    for _ in range(draw(st.integers(0, 2))):
        text += f'[[price_cap]]\n{draw(windows())}buy_max = "{draw(cents)}.5 cent/kWh"\n'
        text += f'sell_min = "{draw(cents) // 3}.5 cent/kWh"\n'
    for _ in range(draw(st.integers(0, 2))):
        text += f'[[reserve]]\n{draw(windows())}keep = "{draw(percents)} %"\n'
    if draw(st.integers(0, 3)) == 0:
        text += f"[[never_sell]]\n{draw(windows())}"
    for _ in range(draw(st.integers(0, 2))):
        target = draw(st.sampled_from(["buy_to", "sell_to", "keep"]))
        sign = draw(st.sampled_from(["<", ">"]))
        text += f'[[rule]]\n{draw(windows())}when = "battery {sign} {draw(percents)} %"\n'
        text += f'{target} = "{draw(percents)} %"\n'
        if target == "buy_to":
            text += f'price_max = "{draw(cents)} cent/kWh"\n'
    return text


@st.composite
def situations(draw):
    stored = draw(st.one_of(st.none(), st.integers(0, 10_000)))
    ahead = draw(st.sampled_from([(), (300,) * 40 + (-900,) * 30 + (300,) * 26, (-700,) * 96]))
    return situation(
        soc_wh=stored,
        forecast=Forecast(draw(st.integers(0, 1_500)), draw(st.integers(0, 1_500)),
                          draw(st.integers(0, 200)), ahead, draw(st.booleans())),
        day_s=draw(st.integers(0, 95)) * 900, prices=(draw(st.integers(0, 300_000)),),
        max_buy_wh=draw(st.integers(0, 1_500)), max_sell_wh=draw(st.integers(300, 3_000)),
    )  # fmt: skip


def in_hours(table: dict, day_s: int) -> bool:
    """Is any minute of the quarter hour in the table's hours?"""

    def minute(name, default):
        text = table.get(name, default)
        return int(text[:2]) * 60 + int(text[3:])

    begin, end = minute("from", "00:00"), minute("to", "24:00")
    inside = set(range(begin, end)) if begin < end else {*range(begin, 1_440), *range(end)}
    return any(one in inside for one in range(day_s // 60, day_s // 60 + 15))


def oracle(orders, now: Situation, text: str) -> list[str]:
    """What a policy's text forbids of these orders, read on its own."""
    import tomllib  # noqa: PLC0415  (the oracle reads the text itself)

    raw = tomllib.loads(text)
    hold = {
        name: [one for one in raw.get(name, []) if in_hours(one, now.day_s)]
        for name in ("price_cap", "reserve", "never_sell", "rule")
    }
    faults = []
    if raw.get("participation") == "RE" and orders:
        faults.append("participation")
    sold_wh = sum(order.energy_wh for order in orders if order.side == "sell")
    bought_wh = sum(order.energy_wh for order in orders if order.side == "buy")
    if sold_wh and hold["never_sell"]:
        faults.append("never sell")
    if sold_wh > now.max_sell_wh or bought_wh > now.max_buy_wh:
        faults.append("limit")
    most = [Fraction(raw.get("buy_price_max", 10**9))]
    least = [Fraction(raw.get("sell_price_min", 0))]
    most += [Fraction(cap["buy_max"].split()[0]) * 10_000 for cap in hold["price_cap"]]
    least += [Fraction(cap["sell_min"].split()[0]) * 10_000 for cap in hold["price_cap"]]
    for order in orders:
        if order.side == "buy" and order.price_uc_per_kwh > min(most):
            faults.append("dear")
        if order.side == "sell" and order.price_uc_per_kwh < max(least):
            faults.append("cheap")
    if sold_wh and now.soc_wh is not None:
        kept = [int(one["keep"].split()[0]) * 100 for one in hold["reserve"]]
        kept.append(raw["reserve_permille"] * 10)
        for rule in hold["rule"]:
            _, sign, share, _ = rule["when"].split()
            fires = now.soc_wh < int(share) * 100 if sign == "<" else now.soc_wh > int(share) * 100
            if "keep" in rule and fires:
                kept.append(int(rule["keep"].split()[0]) * 100)
        from_battery_wh = sold_wh - max(-now.forecast.net_wh, 0)
        if from_battery_wh > 0 and from_battery_wh > max(now.soc_wh - max(kept), 0):
            faults.append("reserve")
    return faults


@settings(max_examples=400, deadline=None)
@given(policies(), situations())
def test_no_decision_breaks_a_policy(text, now):
    owner = policy(text)
    assert oracle(decide_by(now, owner, owner.rule).orders, now, text) == []


@settings(max_examples=200, deadline=None)
@given(policies(), situations(), st.sampled_from(["reverse", "forward"]), st.integers(1, 300_000))
def test_no_answer_to_an_auction_breaks_a_policy(text, now, template, price):
    order = answer_auction(*bounded(now, policy(text)), template, 2_000, price, 0)
    assert oracle(() if order is None else (order,), now, text) == []


@settings(max_examples=400, deadline=None)
@given(
    policies(), situations(),
    st.lists(st.builds(OrderIntent, st.sampled_from(["buy", "sell"]), st.integers(1, 600),
                       st.integers(0, 400_000)), max_size=4),
)  # fmt: skip
def test_nothing_that_breaks_a_policy_passes_the_gate(text, now, orders):
    allowed, _ = permitted_together(orders, "double-auction", now, policy(text))
    assert oracle(allowed, now, text) == []


@settings(max_examples=300, deadline=None)
@given(policies(), situations())
def test_the_gate_has_nothing_against_what_was_decided_within_the_policy(text, now):
    owner = policy(text)
    orders = decide_by(now, owner, owner.rule).orders
    assert permitted_together(orders, "double-auction", now, owner) == (orders, ())
    assert bounds_of(now, owner).keep_wh >= 0
