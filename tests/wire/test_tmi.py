"""TMI's bid-offer as the paper writes it."""

import pytest

from wire.errors import MalformedError, UnitError
from wire.tmi import bid_offer, bid_offer_operation


def parameters(**bid):
    example = {
        "type": "buy",
        "energy": {"unit": "kWh", "value": "10"},
        "price": {"unit": "cents", "value": "82"},
    }
    return {"address": "hg1x", "cpf": "0.93", "bid": {**example, **bid}}


def test_the_papers_example_becomes_a_ledger_operation():
    """10 kWh at 82 cents."""
    operation = bid_offer_operation(parameters(), slot=7)
    assert operation == {
        "op": "bid-offer", "side": "buy", "slot": 7, "energyWh": 10_000, "priceUcPerKwh": 820_000,
    }  # fmt: skip
    assert operation == bid_offer("buy", 7, 10_000, 820_000)


@pytest.mark.parametrize(
    "bid",
    [{"type": "give"}, {"type": None}, {"type": ["buy"]}, {"energy": None}, {"energy": "10"},
     {"energy": {"unit": "kWh"}}, {"energy": {"unit": "kWh", "value": 10}},
     {"price": {"unit": 5, "value": "1"}}, {"price": {}}],
)  # fmt: skip
def test_another_form_is_malformed(bid):
    with pytest.raises(MalformedError):
        bid_offer_operation(parameters(**bid), slot=7)


@pytest.mark.parametrize("bad", [{}, {"bid": None}, {"bid": []}, {"bid": "buy"}])
def test_parameters_without_a_bid_are_malformed(bad):
    with pytest.raises(MalformedError):
        bid_offer_operation(bad, slot=7)


@pytest.mark.parametrize(
    "bid",
    [{"energy": {"unit": "kWh", "value": "0.00001"}}, {"energy": {"unit": "J", "value": "1"}},
     {"price": {"unit": "kWh", "value": "1"}}, {"price": {"unit": "cents", "value": "a"}}],
)  # fmt: skip
def test_what_does_not_convert_exactly_is_refused(bid):
    with pytest.raises(UnitError):
        bid_offer_operation(parameters(**bid), slot=7)
