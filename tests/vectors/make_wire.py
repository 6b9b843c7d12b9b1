"""
Writes wire.json, the golden vectors of the wire: `python tests/vectors/make_wire.py`.

The vectors freeze what others rely on: canonical bytes, identities, signatures (Ed25519 is
deterministic), costs, unit conversions, slots, digests and request ids. A change of this file's
output is a change of the protocol.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from wire import canonical, certificates, keys, metering, units
from wire.cpf import cpf_q16
from wire.envelope import Envelope, new_req_id, seal_envelope
from wire.slots import SlotGrid
from wire.transactions import make_transaction

PATH = Path(__file__).with_name("wire.json")
CHAIN = "hg-test-0123456789abcdef"
MARKET = "test"
NOW_MS = 1_780_315_200_000
"""2026-06-01T12:00:00Z."""
KEY = keys.SigningKey(bytes(range(32)))
METER = keys.SigningKey(bytes(range(1, 33)))
REQ_ID = new_req_id(NOW_MS, bytes(range(10)))

VALUES: list[Any] = [
    {"b": 1, "a": [True, False, -5], "A": {}, "": ""},
    {"10": "x", "1": "y", "a\n": "control in a key"},
    '\x00\x08\t\n\x0c\r\x1f\x7f"\\/',
    "é €𝄞 \u2028",
    [units.MAX_SAFE_INT, -units.MAX_SAFE_INT, 0],
]
COSTS = [(1, 1), (999, 1), (1000, 1), (-999, 1), (-1500, 1), (1234, 290_001), (7, -143)]
TEXTS = [("10", "kWh"), ("0.001", "kWh"), ("2.5", "MWh"), ("-3", "Wh")]
PRICES = [("82", "cents"), ("0.0001", "cents/kWh"), ("60", "GBP/MWh"), ("0.3", "EUR/kWh")]


def vectors() -> dict[str, Any]:
    """Everything that is frozen, as JSON."""
    return {
        "canonical": [[v, canonical.encode(v).decode()] for v in VALUES],
        "keys": {
            "seed": KEY.seed.hex(),
            "public": keys.to_text(KEY.public),
            "id": KEY.id,
            "derived": KEY.derive("home-1").seed.hex(),
        },
        "signatures": {
            domain.name: keys.to_text(KEY.sign(domain, CHAIN, b"message")) for domain in keys.Domain
        },
        "costs": [[e, p, units.cost_uc(e, p)] for e, p in COSTS],
        "energies": [[v, u, units.energy_from_text(v, u)] for v, u in TEXTS],
        "prices": [[v, u, units.price_from_text(v, u)] for v, u in PRICES],
        "slots": [[s, NOW_MS, SlotGrid(s).slot_at(NOW_MS)] for s in (4, 900, 3600)],
        "reqId": REQ_ID,
        "envelope": envelope().decode(),
        "transaction": transaction(),
        "reading": reading(),
        "receipt": receipt(),
        "grant": certificates.dump_text(grant()),
        "token": certificates.make_token(KEY, MARKET, NOW_MS, "nonce", grant()),
        "cpf": [[n, g, k, cpf_q16(n, g, k)] for n, g, k in _cpf_cases()],
    }


def envelope() -> bytes:
    """A private message."""
    message = Envelope(KEY.id, REQ_ID, NOW_MS, "enroll", {"claimCode": "abc"})
    return seal_envelope(message, KEY, keys.Domain.MESSAGE, MARKET)


def transaction() -> dict[str, str]:
    """A bid, as it goes on the wire, and its id."""
    bid = {"op": "bid-offer", "side": "buy", "slot": 1_978_128, "energyWh": 500,
           "priceUcPerKwh": 200_000}  # fmt: skip
    made = make_transaction(KEY, CHAIN, 7, 1_978_130, [bid], REQ_ID, NOW_MS)
    return {"raw": made.raw.decode(), "txid": made.txid.hex()}


def reading() -> dict[str, Any]:
    """A signed reading and its digest."""
    signed = metering.sign_record(_reading(), METER, CHAIN)
    return {"json": metering.record_json(signed), "digest": metering.digest(signed)}


def receipt() -> dict[str, Any]:
    """A signed receipt for the reading above."""
    link = hashlib.sha256(b"reading").hexdigest()
    record = metering.Receipt(address=KEY.id, slot=1_978_128, net_wh=-250, reading=link)
    return metering.record_json(metering.sign_record(record, METER, CHAIN))


def grant() -> certificates.AddressGrant:
    """An address grant signed by the key itself."""
    record = certificates.AddressGrant(
        address=KEY.id,
        key=keys.to_text(KEY.public),
        meter_key=keys.to_text(METER.public),
        can_buy=True,
        can_sell=False,
        max_buy_wh=5_000,
        max_sell_wh=0,
        start_slot=1_978_128,
        end_slot=1_978_320,
    )
    return certificates.seal(record, KEY, MARKET)


def text() -> str:
    """The file's content."""
    return json.dumps(vectors(), indent=1, sort_keys=True, ensure_ascii=True) + "\n"


def _reading() -> metering.Reading:
    return metering.Reading(
        meter=METER.id,
        seq=3,
        slot=1_978_128,
        time_ms=NOW_MS,
        import_wh=12_345,
        export_wh=678,
        generation_wh=9_000,
        previous=metering.ZERO_DIGEST,
    )


def _cpf_cases() -> list[tuple[list[int], list[int], int]]:
    return [([0, 0], [500, 500], 1000), ([500, -500], [0, 700], 4000), ([0], [0], 1000)]


if __name__ == "__main__":
    PATH.write_text(text())
