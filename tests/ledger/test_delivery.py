"""Receipts: silence is never cheaper than the truth, and a late receipt is as good as any."""

from hypothesis import given, settings
from hypothesis import strategies as st
from support.chain_builder import (
    FIRST_SLOT,
    SUPERVISOR,
    SUPERVISOR_UC,
    Chain,
    bid,
    events_of,
    key,
    make_genesis,
    receipt,
    register,
    slot_ms,
)

from ledger.contracts.delivery import ACTIVE_SLOTS
from ledger.execution import money_uc
from ledger.genesis import Prices

ANN, BOB, EVE = key("ann"), key("bob"), key("eve")
SLOT = FIRST_SLOT + 2
BEFORE_GATE = slot_ms(SLOT - 1, 120)
AT_GATE = slot_ms(SLOT, -300)
UNITS_100 = 100_000_000
MOST_WH = 5_000
"""What the grants of the test market let in per slot."""


def market(prices: Prices | None = None) -> Chain:
    chain = Chain(genesis=make_genesis(prices=prices) if prices else None)
    chain.settle_in(ANN, BOB)
    return chain


def trade(chain: Chain, energy_wh: int) -> None:
    """Ann buys from Bob."""
    if energy_wh:
        chain.block(
            BEFORE_GATE,
            chain.tx(ANN, bid("buy", SLOT, energy_wh, 250_000)),
            chain.tx(BOB, bid("sell", SLOT, energy_wh, 100_000)),
        )
    chain.block(AT_GATE)


def deliver(chain: Chain, home, slot: int, net_wh: int, at_ms: int) -> list[str]:
    return chain.codes(at_ms, home, receipt(home, slot, net_wh, chain.chain_id))


def test_a_consumer_that_withholds_its_receipt_pays_for_all_its_connection_carries():
    chain = market()
    deliver(chain, ANN, SLOT, 300, slot_ms(SLOT + 1))
    chain.block(slot_ms(SLOT + 2))
    result = chain.block(slot_ms(SLOT + 3))
    (settled,) = events_of(result, "settled")
    assert settled["missing"] == [ANN.id]
    assert settled["rows"] == [
        {
            "address": ANN.id, "netWh": MOST_WH, "boughtWh": 0, "soldWh": 0,
            "residualWh": MOST_WH, "amountUc": -MOST_WH * 300, "assumed": True,
        }
    ]  # fmt: skip
    assert chain.account(ANN) == (UNITS_100 - 300 * 300 - MOST_WH * 300, 0)
    assert chain.account(SUPERVISOR) == (SUPERVISOR_UC + 300 * 300 + MOST_WH * 300, 0)


def test_a_buyer_that_withholds_pays_retail_for_what_it_may_have_taken_beyond_its_position():
    chain = market()
    trade(chain, 700)
    deliver(chain, BOB, SLOT, -700, slot_ms(SLOT + 1))
    paid_uc = UNITS_100 - chain.account(ANN)[0]
    chain.block(slot_ms(SLOT + 2))
    assert chain.account(ANN)[0] == UNITS_100 - paid_uc - (MOST_WH - 700) * 300


def test_a_seller_that_withholds_buys_back_its_sale_and_pays_for_consumption():
    chain = market()
    trade(chain, 700)
    deliver(chain, ANN, SLOT, 700, slot_ms(SLOT + 1))
    earned_uc = chain.ledger.query(f"position/{SLOT:012d}/{BOB.id}")["receivableUc"]
    chain.block(slot_ms(SLOT + 2))
    owed_uc = (700 + MOST_WH) * 300
    assert chain.account(BOB)[0] == UNITS_100 + earned_uc - owed_uc
    assert chain.account(ANN)[0] == UNITS_100 - earned_uc, "the buyer does not notice"


def test_a_bid_that_found_nobody_obliges_to_deliver_a_receipt():
    chain = market()
    chain.block(BEFORE_GATE, chain.tx(ANN, bid("buy", SLOT, 500, 100_000)))
    chain.block(AT_GATE)
    (settled,) = events_of(chain.block(slot_ms(SLOT + 2)), "settled")
    assert settled["missing"] == [ANN.id]


def test_an_address_that_was_never_heard_of_is_not_charged():
    chain = market()
    deliver(chain, ANN, SLOT, 300, slot_ms(SLOT + 1))
    chain.block(slot_ms(SLOT + 2))
    chain.block(slot_ms(SLOT + 3))
    assert chain.account(BOB) == (UNITS_100, 0)


def test_a_silent_address_is_charged_for_an_hour_and_then_left_to_the_grid_operator():
    chain = market()
    deliver(chain, ANN, SLOT, 0, slot_ms(SLOT + 1))
    charged = []
    for slot in range(SLOT, SLOT + ACTIVE_SLOTS + 4):
        for event in events_of(chain.block(slot_ms(slot + 2)), "settled"):
            charged += [event["slot"] for _ in event["missing"]]
    assert charged == list(range(SLOT + 1, SLOT + 1 + ACTIVE_SLOTS))
    assert chain.account(ANN) == (UNITS_100 - ACTIVE_SLOTS * MOST_WH * 300, 0)
    assert chain.ledger.next_due_ms() is None, "nothing is left on the calendar"


def test_an_address_whose_grant_has_ended_is_not_expected_to_speak():
    chain = market()
    chain.block(START_OF_EVE, chain.tx(EVE, register(EVE, end_slot=SLOT)))
    deliver(chain, EVE, SLOT, 300, slot_ms(SLOT + 1))
    chain.block(slot_ms(SLOT + 2))
    assert events_of(chain.block(slot_ms(SLOT + 3)), "settled") == []
    assert chain.account(EVE) == (-300 * 300, 0)


START_OF_EVE = slot_ms(SLOT)


def test_a_home_that_cannot_pay_what_was_assumed_is_in_debt_and_the_debt_is_exact():
    chain = market()
    chain.block(START_OF_EVE, chain.tx(EVE, register(EVE)))
    deliver(chain, EVE, SLOT, 0, slot_ms(SLOT + 1))
    chain.block(slot_ms(SLOT + 2))
    chain.block(slot_ms(SLOT + 3))
    assert chain.account(EVE) == (-MOST_WH * 300, 0)
    assert money_uc(chain.ledger.state) == chain.ledger.query("totals")["depositsUc"]
    deliver(chain, EVE, SLOT + 1, 400, slot_ms(SLOT + 3, 1))
    assert chain.account(EVE) == (-400 * 300, 0)


def test_a_late_receipt_names_what_had_been_assumed():
    chain = market()
    deliver(chain, ANN, SLOT, 0, slot_ms(SLOT + 1))
    chain.block(slot_ms(SLOT + 2))
    chain.block(slot_ms(SLOT + 3))
    late = chain.tx(ANN, receipt(ANN, SLOT + 1, 400, chain.chain_id))
    (event,) = events_of(chain.block(slot_ms(SLOT + 3, 1), late), "trued-up")
    assert (event["assumedNetWh"], event["amountUc"]) == (MOST_WH, (MOST_WH - 400) * 300)
    assert "assumed" not in event["rows"][0]


def test_after_a_late_receipt_the_next_slot_is_expected_again():
    """A home that comes back and falls silent anew is not lost from the calendar."""
    chain = market()
    back = SLOT + 20
    chain.block(slot_ms(back + 2))
    deliver(chain, ANN, back, 100, slot_ms(back + 2, 1))
    (settled,) = events_of(chain.block(slot_ms(back + 3)), "settled")
    assert (settled["slot"], settled["missing"]) == (back + 1, [ANN.id])


def test_a_ledger_that_stood_still_charges_nobody_who_ordered_nothing():
    chain = market()
    deliver(chain, ANN, SLOT, 0, slot_ms(SLOT + 1))
    chain.block(slot_ms(SLOT + 30))
    assert chain.account(ANN) == (UNITS_100, 0)


PRICES = st.tuples(*[st.integers(0, 400_000)] * 3).map(
    lambda three: Prices(
        feed_in_uc_per_kwh=min(three), retail_uc_per_kwh=sorted(three)[1],
        imbalance_uc_per_kwh=max(three),
    )
)  # fmt: skip


def ends(prices: Prices, traded: int, nets: tuple[int, int], when: tuple[str, str]) -> list[int]:
    """Balances of Ann, Bob and the supervisor, and the residual energy, when all is over."""
    chain = market(prices)
    trade(chain, traded)
    for chosen, at_ms in (("timely", slot_ms(SLOT + 1, 5)), ("late", slot_ms(SLOT + 2, 5))):
        batch = [
            chain.tx(home, receipt(home, SLOT, net_wh, chain.chain_id))
            for home, net_wh, word in zip((ANN, BOB), nets, when, strict=True)
            if word == chosen
        ]
        if chosen == "late":
            chain.block(slot_ms(SLOT + 2))
        chain.block(at_ms, *batch)
    assert money_uc(chain.ledger.state) == chain.ledger.query("totals")["depositsUc"]
    residual_wh = chain.ledger.query("totals")["residualWh"]
    return [sum(chain.account(who)) for who in (ANN, BOB, SUPERVISOR)] + [residual_wh]


NETS = st.tuples(st.integers(-MOST_WH, MOST_WH), st.integers(-MOST_WH, MOST_WH))
WORDS = st.tuples(st.sampled_from(["timely", "late"]), st.sampled_from(["timely", "late"]))


@settings(max_examples=25, deadline=None)
@given(PRICES, st.integers(1, 2_000), NETS, WORDS)
def test_late_and_timely_receipts_end_in_the_same_balances_and_energy(prices, traded, nets, when):
    assert ends(prices, traded, nets, when) == ends(prices, traded, nets, ("timely", "timely"))


@settings(max_examples=25, deadline=None)
@given(PRICES, st.integers(1, 2_000), NETS, st.sampled_from([0, 1]))
def test_withholding_never_pays_and_costs_nobody_else(prices, traded, nets, who):
    truth = ends(prices, traded, nets, ("timely", "timely"))
    words = ["timely", "timely"]
    words[who] = "never"
    silence = ends(prices, traded, nets, (words[0], words[1]))
    assert silence[who] <= truth[who]
    assert silence[1 - who] == truth[1 - who]
