"""
TMI's `bid-offer` (section V-E) at the edge: the paper's units in, the ledger's units out.

The paper writes energy and price as `{unit, value}` with decimal strings; the ledger has one unit
each. Conversion is exact or refused.
"""

from __future__ import annotations

from typing import Any

from wire.errors import MalformedError
from wire.units import energy_from_text, price_from_text


def bid_offer_operation(parameters: dict[str, Any], slot: int) -> dict[str, Any]:
    """
    The ledger operation for the paper's `parameters: {address, cpf, bid: {type, energy, price}}`.

    The paper's `cpf` is informative here: what counts is the meter-signed attestation.

    Raises:
        MalformedError: fields missing or of the wrong type. UnitError: no exact conversion.
    """
    bid = parameters.get("bid")
    if not isinstance(bid, dict) or bid.get("type") not in ("buy", "sell"):
        raise MalformedError("bid.type is 'buy' or 'sell'")
    energy_wh = energy_from_text(*_value_and_unit(bid, "energy"))
    price = price_from_text(*_value_and_unit(bid, "price"))
    return bid_offer(bid["type"], slot, energy_wh, price)


def bid_offer(side: str, slot: int, energy_wh: int, price_uc_per_kwh: int) -> dict[str, Any]:
    """A `bid-offer` operation in ledger units."""
    return {
        "op": "bid-offer",
        "side": side,
        "slot": slot,
        "energyWh": energy_wh,
        "priceUcPerKwh": price_uc_per_kwh,
    }


def _value_and_unit(bid: dict[str, Any], name: str) -> tuple[str, str]:
    field = bid.get(name)
    if (
        not isinstance(field, dict)
        or not isinstance(field.get("unit"), str)
        or not isinstance(field.get("value"), str)
    ):
        raise MalformedError("expected {unit, value} with strings", field=name)
    return field["value"], field["unit"]
