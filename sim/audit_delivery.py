"""
The energy's part of the audit: registers, receipts, settlement, each against the other.

For every home and slot there must be a reading at either end of the slot, signed by its meter; one
receipt on chain; and a settlement with the energy of that receipt. Receipts are compared with the
registers again, here and without the DSO. Where a reading is missing, the receipts of the slots
around it are compared together with the registers around the gap.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from typing import Any

import msgspec

from aggregator.store import AggregatorStore
from sim.audit_trail import Check, Entry, HomeRecord, Trail, verdict
from wire.envelope import date_text
from wire.errors import WireError
from wire.metering import ZERO_DIGEST, Reading, check_record, digest

Registers = dict[str, dict[int, Reading]]
"""Believed readings: by meter, by the slot that had ended."""
REGISTERS = ("import_wh", "export_wh", "generation_wh")


def check_readings(trail: Trail, store: AggregatorStore) -> tuple[Check, Registers]:
    """
    Every reading the DSO holds is its meter's and follows the one before; none is missing.

    Returns:
        The check, and the readings that may be believed.
    """
    faults: list[str] = []
    believed: Registers = defaultdict(dict)
    before: dict[str, Reading] = {}
    count = 0
    for row in store.db.query("SELECT document FROM readings ORDER BY meter, seq"):
        count += 1
        reading = msgspec.json.decode(row["document"], type=Reading)
        fault = _signature_fault(reading, trail)
        if not fault:
            believed[reading.meter][reading.slot] = reading
            fault = _order_fault(reading, before.get(reading.meter))
        before[reading.meter] = reading
        if fault:
            faults.append(f"reading {reading.seq} of meter …{reading.meter[-6:]}: {fault}")
    boundaries = range(trail.slots.start - 1, trail.slots.stop)
    for home in trail.homes:
        held = believed.get(home.meter, {})
        faults += [
            f"{home.name}: no reading at the end of slot {_name(trail, slot)}"
            for slot in boundaries
            if slot not in held
        ]
    text = (
        f"{count} signed by {len(before)} certified meters, unbroken and monotone; every home's at"
        f" each of {len(boundaries)} slot boundaries"
    )
    return verdict("readings", faults, text, {"readings": count}), believed


def _signature_fault(reading: Reading, trail: Trail) -> str:
    public = trail.meter_keys.get(reading.meter)
    if public is None:
        return "not a certified meter"
    try:
        check_record(reading, public, trail.genesis.chain_id)
    except WireError as error:
        return str(error)
    return ""


def _order_fault(reading: Reading, before: Reading | None) -> str:
    if before is None:
        first = reading.seq == 0 and reading.previous == ZERO_DIGEST
        return "" if first else "those before it are missing"
    if reading.seq != before.seq + 1 or reading.previous != digest(before):
        return f"does not follow {before.seq}"
    if any(getattr(reading, r) < getattr(before, r) for r in REGISTERS):
        return "a register went backwards"
    return ""


def check_receipts(trail: Trail, registers: Registers) -> Check:
    """One receipt for each home and slot, true to the registers, and settled as it says."""
    faults: list[str] = []
    count: dict[str, int] = {}
    late = settled_wh = waiting_wh = metered_wh = 0
    for home in trail.homes:
        said, missing = _receipts_of(trail, home)
        count[home.name] = len(said)
        faults += missing
        for slot, (address, net_wh) in said.items():
            fault, was_late = _settlement_fault(trail, slot, address, net_wh)
            faults += [f"{home.name}: {fault}"] if fault else []
            late += was_late
            if slot in trail.chain.settled:
                settled_wh += net_wh
            else:
                waiting_wh += net_wh
        unlike, home_wh = _compare(trail, said, registers.get(home.meter, {}))
        faults += [f"{home.name}: {fault}" for fault in unlike]
        metered_wh += home_wh
    faults += _strangers(trail) + _left_assumed(trail)
    if not faults and settled_wh + waiting_wh != metered_wh:
        faults.append(f"{settled_wh} Wh settled, the registers moved by {metered_wh} Wh")
    text = (
        f"{sum(count.values())} = {len(trail.homes)} homes × {len(trail.slots)} slots, each equal"
        f" to its meter's registers, {late} of them late and trued up; together {settled_wh} Wh"
        f" settled, {metered_wh} Wh on the registers"
    )
    return verdict("receipts", faults, text, {"receiptsOf": count, "lateReceipts": late})


def _receipts_of(trail: Trail, home: HomeRecord) -> tuple[dict[int, tuple[str, int]], list[str]]:
    """The home's receipts by slot (address, net), and what is wrong with their number."""
    said: dict[int, tuple[str, int]] = {}
    faults = []
    for slot in trail.slots:
        found = [
            (address, net_wh)
            for address in sorted(home.addresses)
            for net_wh in trail.chain.receipts.get((slot, address), ())
        ]
        if len(found) == 1:
            said[slot] = found[0]
        else:
            many = "no receipt" if not found else f"{len(found)} receipts"
            faults.append(f"{home.name}: {many} for slot {_name(trail, slot)}")
    return said, faults


def _settlement_fault(trail: Trail, slot: int, address: str, net_wh: int) -> tuple[str, bool]:
    """What is wrong with how a receipt was settled, and whether it came after the settlement."""
    if slot not in trail.chain.settled:
        return "", False  # another check's
    event = trail.chain.settled[slot][0]
    receipted = address not in without_receipt(event)
    on_time = [r["netWh"] for r in event["rows"] if receipted and r["address"] == address]
    late = [row["netWh"] for row in trail.chain.trued_up.get((slot, address), ())]
    name = _name(trail, slot)
    if on_time and late:
        return f"slot {name} was settled on time and trued up", True
    if on_time + late == [net_wh]:
        return "", bool(late)
    how = f"settled with {on_time + late} Wh" if on_time + late else "never settled"
    return f"the receipt of slot {name} over {net_wh} Wh was {how}", bool(late)


def _compare(
    trail: Trail, said: dict[int, tuple[str, int]], held: dict[int, Reading]
) -> tuple[list[str], int]:
    """Receipts against the registers over the same time; how far those moved in all [Wh]."""
    known = [s for s in range(trail.slots.start - 1, trail.slots.stop) if s in held]
    faults, total_wh = [], 0
    for first, last in pairwise(known):
        metered_wh = _net_wh(held[first], held[last])
        total_wh += metered_wh
        span = range(first + 1, last + 1)
        if any(slot not in said for slot in span):
            continue  # counted as missing already
        said_wh = sum(said[slot][1] for slot in span)
        if said_wh != metered_wh:
            faults.append(
                f"receipt of slot {_name(trail, last)} says {said_wh} Wh, the registers moved by"
                f" {metered_wh} Wh"
            )
    uncovered = [s for s in said if not known or not known[0] < s <= known[-1]]
    faults += [f"receipt of slot {_name(trail, s)} without readings around it" for s in uncovered]
    return faults, total_wh


def _net_wh(before: Reading, after: Reading) -> int:
    return (after.import_wh - before.import_wh) - (after.export_wh - before.export_wh)


def _strangers(trail: Trail) -> list[str]:
    """Receipts of addresses that no home of the feeder has."""
    known = trail.home_of_address
    return [
        f"receipt of {address} for slot {_name(trail, slot)}: no home of this feeder"
        for slot, address in trail.chain.receipts
        if slot in trail.slots and address not in known
    ]


def _left_assumed(trail: Trail) -> list[str]:
    """Positions that were settled without a receipt and never trued up."""
    chain, names = trail.chain, trail.home_of_address
    return [
        f"{names.get(address, address)}: slot {_name(trail, slot)} was settled without a receipt"
        f" under {address}, and none came"
        for slot in trail.slots
        for event in chain.settled.get(slot, ())
        for address in sorted(without_receipt(event))
        if (slot, address) not in chain.trued_up
    ]


def without_receipt(event: dict[str, Any]) -> set[str]:
    """Addresses whose energy a settlement had to assume."""
    assumed = {row["address"] for row in event["rows"] if row.get("assumed", False)}
    return assumed | set(event["missing"])


def check_dso(trail: Trail, store: AggregatorStore) -> Check:
    """The DSO compared every receipt with the registers by itself, and holds no evidence."""
    faults = [
        f"evidence against {row['subject']}: {row['kind']}, {row['detail']}"
        for row in store.evidence()
    ]
    judged: dict[Entry, tuple[int, str]] = {
        (row["slot"], row["address"]): (row["net_wh"], row["status"])
        for row in store.db.query("SELECT slot, address, net_wh, status FROM receipts")
    }
    count: dict[str, int] = {}
    for home in trail.homes:
        good = [slot for slot in trail.slots if _dso_agrees(trail, home, slot, judged)]
        count[home.name] = len(good)
        faults += [
            f"{home.name}: the receipt of slot {_name(trail, slot)} was not found true by the DSO"
            for slot in trail.slots
            if slot not in good
        ]
    text = (
        f"{sum(count.values())} = {len(trail.homes)} homes × {len(trail.slots)} receipts found true"
        " by the DSO as they came; its evidence is empty"
    )
    return verdict("dso", faults, text, {"checkedOf": count})


def _dso_agrees(
    trail: Trail, home: HomeRecord, slot: int, judged: dict[Entry, tuple[int, str]]
) -> bool:
    """The DSO found one receipt of the home true; it is the chain's, where the chain has it."""
    found = {a: judged[slot, a] for a in home.addresses if (slot, a) in judged}
    if len(found) != 1:
        return False
    ((address, (net_wh, status)),) = found.items()
    on_chain = trail.chain.receipts.get((slot, address), [net_wh])
    return status == "ok" and on_chain == [net_wh]


def _name(trail: Trail, slot: int) -> str:
    return date_text(trail.genesis.grid.start_ms(slot))
