"""
The attacker reads: an observation becomes a track for each address, a track is cut into segments.

A **track** is all that was public under one address. A **segment** is the part of a track that lies
in one period of slots, in numbers; with fresh addresses of that period a track is one segment. The
attack links segments of one period to those of the next.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.observation import Observation
from wire.errors import WireError
from wire.transactions import Transaction, parse_transaction

Floats = NDArray[np.float64]
BID_AFTER_MS = 120_000
COLUMNS = (
    "receipt_delay_ms", "bid_delay_ms", "receipt_date_ms", "bid_date_ms", "receipt_request_ms",
    "bid_request_ms", "receipt_rank", "bid_rank", "registered_ms", "ask_uc", "bid_uc", "order_wh",
    "order_share", "contract_wh", "residual_wh", "contract_share", "withdrawn_uc", "deposited_uc",
    "buy_limit_wh", "sell_limit_wh", "validator", "address",
)  # fmt: skip
"""What is known of a segment beside its amounts, one number each (NaN: nothing)."""
TIMES = COLUMNS[:8]
"""Those that are means over the messages of a segment. Receipts and bids apart: else they would
tell how much a home bids."""
UUID_TIME_BITS = 80


@dataclass(slots=True)
class Track:
    """What was public under one address."""

    address: str
    nets_wh: dict[int, int] = field(default_factory=dict)
    """Metered import − export by slot."""
    contracts_wh: dict[int, int] = field(default_factory=dict)
    """Bought − sold by slot, as settled [Wh]."""
    orders: dict[int, list[tuple[str, int, int]]] = field(default_factory=dict)
    """By slot: (side, energy [Wh], price [µ¤/kWh])."""
    times: dict[str, dict[int, list[float]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    """By column and slot: delays and clock differences [ms], ranks."""
    registered_ms: int | None = None
    limits_wh: tuple[int, int] = (0, 0)
    """(buy, sell) of its grant."""
    withdrawn_uc: int | None = None
    """The first withdrawal to it."""
    deposited_uc: int | None = None
    """What it deposited last."""
    validator: str = ""
    """Whose CPF it sent."""


@dataclass(slots=True)
class Reading:
    """What the attacker knows: tracks, and what validators said of themselves."""

    slot_ms: int
    tracks: dict[str, Track] = field(default_factory=dict)
    cpf_q16: dict[str, dict[int, int]] = field(default_factory=lambda: defaultdict(dict))
    """By validator and last slot of the window."""

    @property
    def slots(self) -> range:
        """Slots in which anything was metered."""
        known = [slot for track in self.tracks.values() for slot in track.nets_wh]
        return range(min(known), max(known) + 1) if known else range(0)


@dataclass(frozen=True, slots=True)
class Batch:
    """The segments of one period; row k of every array is the segment of `addresses[k]`."""

    first_slot: int
    addresses: tuple[str, ...]
    nets_wh: Floats
    """(segments, slots) [Wh]; NaN where nothing was metered."""
    contracts_wh: Floats
    """(segments, slots): bought − sold [Wh]; NaN where nothing was settled."""
    orders_wh: Floats
    """(segments, slots): bought (+) or offered (−) [Wh]; NaN where nothing was ordered."""
    columns: Floats
    """(segments, `COLUMNS`)."""


def read(observation: Observation) -> Reading:
    """Take an observation apart; what is not a transaction is left out."""
    reading = Reading(observation.slot_length_s * 1000)
    ranks = {
        txid: place / max(len(block.txids), 1)
        for block in observation.blocks
        for place, txid in enumerate(block.txids)
    }
    for seen in observation.messages:
        try:
            tx = parse_transaction(seen.payload)
        except WireError:
            continue
        if tx.sender == observation.supervisor:
            _take_supervisor(reading, tx)
        else:
            _take(reading, tx, seen.seen_ms, ranks.get(tx.txid.hex(), 0.0))
    for block in observation.blocks:
        for event in block.events:
            if event["event"] == "settled":
                _take_settlement(reading, event)
    return reading


def batches(reading: Reading, period: int) -> Iterator[Batch]:
    """
    Segments of each whole period of slots in turn.

    Args:
        period: slots; boundaries lie at its multiples
    """
    slots = reading.slots
    first = -(-slots.start // period) * period
    owners: dict[int, list[Track]] = defaultdict(list)
    for track in reading.tracks.values():
        for number in {slot // period for slot in track.nets_wh}:
            owners[number].append(track)
    validators = sorted(reading.cpf_q16)
    for start in range(first, slots.stop - period + 1, period):
        tracks = sorted(owners[start // period], key=lambda one: one.address)
        if tracks:
            yield _batch(reading, tracks, range(start, start + period), validators)


def _take_supervisor(reading: Reading, tx: Transaction) -> None:
    for operation in tx.operations:
        if operation["op"] == "add-financial-balance":
            track = _track(reading, operation["address"])
            if track.withdrawn_uc is None:
                track.withdrawn_uc = operation["amountUc"]


def _take_settlement(reading: Reading, event: dict[str, Any]) -> None:
    for row in event["rows"]:
        track = reading.tracks.get(row["address"])
        if track is not None:
            track.contracts_wh[event["slot"]] = row["boughtWh"] - row["soldWh"]


def _take(reading: Reading, tx: Transaction, seen_ms: int, rank: float) -> None:
    for operation in tx.operations:
        kind = operation["op"]
        if kind == "cpf":
            said = operation["attestation"]
            reading.cpf_q16[said["validator"]][said["end_slot"]] = said["cpf_q16"]
            if tx.sender != said["validator"]:
                _track(reading, tx.sender).validator = said["validator"]
            continue
        track = _track(reading, tx.sender)
        if kind == "receipt":
            said = operation["receipt"]
            slot = said["slot"]
            track.nets_wh[slot] = said["net_wh"]
            track.times["receipt_delay_ms"][slot].append(seen_ms - (slot + 1) * reading.slot_ms)
            _note(track, tx, "receipt", slot, seen_ms, rank)
        elif kind == "bid-offer":
            slot = operation["slot"]
            order = (operation["side"], operation["energyWh"], operation["priceUcPerKwh"])
            track.orders.setdefault(slot, []).append(order)
            due_ms = (slot - 1) * reading.slot_ms + BID_AFTER_MS
            track.times["bid_delay_ms"][slot].append(seen_ms - due_ms)
            _note(track, tx, "bid", slot, seen_ms, rank)
        elif kind == "register-address":
            grant = operation["grant"]
            track.registered_ms = seen_ms - grant["start_slot"] * reading.slot_ms
            track.limits_wh = (grant["max_buy_wh"], grant["max_sell_wh"])
        elif kind == "deposit-financial-balance":
            track.deposited_uc = operation["amountUc"]


def _note(track: Track, tx: Transaction, what: str, slot: int, seen_ms: int, rank: float) -> None:
    """What a message tells of the clock that dated it, and of its place in the block."""
    request_ms = uuid.UUID(tx.envelope.req_id).int >> UUID_TIME_BITS
    track.times[f"{what}_rank"][slot].append(rank)
    track.times[f"{what}_date_ms"][slot].append(tx.envelope.date_ms - seen_ms)
    track.times[f"{what}_request_ms"][slot].append(request_ms - seen_ms)


def _track(reading: Reading, address: str) -> Track:
    if address not in reading.tracks:
        reading.tracks[address] = Track(address)
    return reading.tracks[address]


def _batch(reading: Reading, tracks: list[Track], slots: range, validators: list[str]) -> Batch:
    nets = np.array([[_known(track.nets_wh.get(slot)) for slot in slots] for track in tracks])
    contracts = np.array(
        [[_known(track.contracts_wh.get(slot)) for slot in slots] for track in tracks]
    )
    orders = np.array([[_ordered_wh(track, slot) for slot in slots] for track in tracks])
    columns = np.array([_columns(track, slots, validators) for track in tracks])
    return Batch(
        slots.start, tuple(one.address for one in tracks), nets, contracts, orders, columns
    )


def _columns(track: Track, slots: range, validators: list[str]) -> list[float]:
    orders = [order for slot in slots for order in track.orders.get(slot, ())]
    asks = [price for side, _, price in orders if side == "sell"]
    bids = [price for side, _, price in orders if side == "buy"]
    ordered = [wh for slot in slots if not np.isnan(wh := _ordered_wh(track, slot))]
    settled = [
        (track.contracts_wh[slot], track.nets_wh[slot])
        for slot in slots
        if slot in track.contracts_wh and slot in track.nets_wh
    ]
    times = [
        _mean([value for slot in slots for value in track.times[name].get(slot, ())])
        for name in TIMES
    ]
    return [
        *times,
        _known(track.registered_ms),
        min(asks, default=np.nan),
        max(bids, default=np.nan),
        _mean(ordered),
        len(ordered) / len(slots),
        _mean([float(contract) for contract, _ in settled]),
        _mean([float(net - contract) for contract, net in settled]),
        _mean([float(contract != 0) for contract, _ in settled]),
        _known(track.withdrawn_uc),
        _known(track.deposited_uc),
        *track.limits_wh,
        float(validators.index(track.validator)) if track.validator else -1.0,
        float(int.from_bytes(track.address.encode()[-6:], "big")),
    ]


def _ordered_wh(track: Track, slot: int) -> float:
    orders: list[tuple[str, int, int]] = track.orders.get(slot, [])
    if not orders:
        return float("nan")
    return float(sum(wh if side == "buy" else -wh for side, wh, _ in orders))


def _known(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
