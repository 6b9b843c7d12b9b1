"""
The DSO's audit: sealed readings against what was said on chain. Pure.

A meter's readings form a chain (sequence number, digest of the reading before) with registers that
never go back. Readings may arrive late, twice or out of order, so each is judged against the
neighbours that are there: every pair is compared exactly once, whichever comes last. A receipt's
net energy and a validator's CPF are recomputed from the registers; what differs is evidence.

References:
    PETra (the DSO knows meters, the ledger knows addresses); TMI eq. 9 (`wire.cpf`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from wire.cpf import cpf_q16, eligible
from wire.errors import MalformedError
from wire.keys import KEY_BYTES, from_text, id_of
from wire.metering import ZERO_DIGEST, Reading, digest
from wire.slots import SlotGrid

FORK = "FORK"
BROKEN_CHAIN = "BROKEN_CHAIN"
BACKWARDS = "BACKWARDS"
EARLY = "EARLY"
WRONG_HOME = "WRONG_HOME"
TAMPERED = "TAMPERED"
FALSE_RECEIPT = "FALSE_RECEIPT"
FALSE_CPF = "FALSE_CPF"
NO_READING = "NO_READING"
NO_RECEIPT = "NO_RECEIPT"


@dataclass(frozen=True, slots=True)
class Finding:
    """Evidence: its kind, and a sentence with the facts."""

    kind: str
    detail: str


@dataclass(frozen=True, slots=True)
class Meter:
    """A certified meter, as the CSM-DB lists it."""

    id: str
    """`id_of(key)`, the name in its readings."""
    key: bytes
    participant: str


class PoeRules(Protocol):
    """The rules of the genesis that a CPF depends on (`ledger.genesis.Poe`)."""

    @property
    def window_slots(self) -> int: ...  # noqa: D102
    @property
    def kappa_milli(self) -> int: ...  # noqa: D102
    @property
    def min_energy_wh(self) -> int: ...  # noqa: D102
    @property
    def min_production_wh(self) -> int: ...  # noqa: D102


@dataclass(slots=True)
class Directory:
    """Which meter is whose, and which addresses and validators it speaks for."""

    meters: dict[str, Meter]
    meter_of_address: dict[str, str]
    meter_of_validator: dict[str, str]

    @classmethod
    def empty(cls) -> Directory:
        """Nobody is known yet."""
        return cls({}, {}, {})

    def add(self, rows: object) -> None:
        """
        Take in the `meters` of a `list-meters` answer.

        Raises:
            MalformedError: not a list of meters.
        """
        if not isinstance(rows, list):
            raise MalformedError("meters is a list")
        for row in rows:
            try:
                key = from_text(row["meterKey"], KEY_BYTES)
                meter = Meter(id_of(key), key, str(row["participant"]))
                addresses, validator = list(row["addresses"]), str(row.get("validator", ""))
            except (KeyError, TypeError, AttributeError):
                raise MalformedError("not a meter of the CSM-DB") from None
            self.meters[meter.id] = meter
            for address in addresses:
                self.meter_of_address[str(address)] = meter.id
            if validator:
                self.meter_of_validator[validator] = meter.id


def judge(
    reading: Reading, before: Reading | None, after: Reading | None, grid: SlotGrid
) -> list[Finding]:
    """
    What a reading says against its meter.

    Args:
        reading: new, its signature checked
        before, after: the readings with the sequence numbers beside it, if they have come
    """
    findings = []
    if reading.time_ms < grid.end_ms(reading.slot):
        findings.append(Finding(EARLY, f"reading {reading.seq}: slot {reading.slot} had not ended"))
    if reading.seq == 0 and reading.previous != ZERO_DIGEST:
        findings.append(Finding(BROKEN_CHAIN, "the first reading names one before it"))
    if before is not None:
        findings += _pair(before, reading)
    if after is not None:
        findings += _pair(reading, after)
    return findings


def fork(known: Reading, other: Reading) -> list[Finding]:
    """Two readings under one sequence number or slot: the same one twice, or a lie."""
    if digest(known) == digest(other):
        return []
    return [
        Finding(
            FORK,
            f"readings {known.seq} (slot {known.slot}) and {other.seq} (slot {other.slot}) differ",
        )
    ]


def _pair(before: Reading, after: Reading) -> list[Finding]:
    findings = []
    if after.previous != digest(before):
        findings.append(Finding(BROKEN_CHAIN, f"reading {after.seq} does not follow {before.seq}"))
    if after.slot <= before.slot or after.time_ms <= before.time_ms:
        findings.append(Finding(BACKWARDS, f"reading {after.seq} is not later than {before.seq}"))
    for name in ("import_wh", "export_wh", "generation_wh"):
        fall_wh = getattr(before, name) - getattr(after, name)
        if fall_wh > 0:
            findings.append(Finding(BACKWARDS, f"reading {after.seq}: {name} fell by {fall_wh} Wh"))
    return findings


def net_wh(before: Reading, after: Reading) -> int:
    """Import − export between two readings [Wh]."""
    return (after.import_wh - before.import_wh) - (after.export_wh - before.export_wh)


def judge_receipt(
    slot: int, said_wh: int, before: Reading | None, after: Reading | None
) -> list[Finding] | None:
    """
    Compare a receipt with the registers.

    Returns:
        Findings (none: it is true), or None while a reading is missing.
    """
    if before is None or after is None:
        return None
    metered_wh = net_wh(before, after)
    if metered_wh == said_wh:
        return []
    return [Finding(FALSE_RECEIPT, f"slot {slot}: receipt {said_wh} Wh, registers {metered_wh} Wh")]


def judge_silence(first: int, last: int, net_wh: int) -> list[Finding]:
    """
    What the registers say of slots for which a home in the market sent no receipt.

    Args:
        first, last: one slot, or several between two readings of which none can be receipted
        net_wh: import − export in them

    Returns:
        The energy to bill from the registers; nothing where none flowed on balance.
    """
    if net_wh == 0:
        return []
    when = f"slot {last}" if first == last else f"slots {first} to {last}"
    return [Finding(NO_RECEIPT, f"{when}: registers moved by {net_wh} Wh, no receipt")]


def judge_cpf(
    end_slot: int,
    said_q16: int,
    said_eligible: bool,
    readings: Mapping[int, Reading],
    rules: PoeRules,
) -> list[Finding] | None:
    """
    Compare an attested CPF with the registers.

    A window with a gap must have been attested as 0 and not eligible, which cannot be told from a
    reading that is on its way, so it is left open.

    Args:
        readings: by slot; window_slots + 1 of them are needed, up to `end_slot`

    Returns:
        Findings (none: it is true), or None while a reading is missing.
    """
    slots = range(end_slot - rules.window_slots + 1, end_slot + 1)
    if any(slot not in readings for slot in (slots.start - 1, *slots)):
        return None
    pairs = [(readings[slot - 1], readings[slot]) for slot in slots]
    nets = [net_wh(before, after) for before, after in pairs]
    generations = [after.generation_wh - before.generation_wh for before, after in pairs]
    if min(generations) < 0:
        return None  # already evidence of its own
    real_q16 = cpf_q16(nets, generations, rules.kappa_milli)
    real_eligible = eligible(
        nets,
        generations,
        min_energy_wh=rules.min_energy_wh,
        min_production_wh=rules.min_production_wh,
    )
    if (real_q16, real_eligible) == (said_q16, said_eligible):
        return []
    return [
        Finding(
            FALSE_CPF,
            f"window to slot {end_slot}: attested {said_q16} ({said_eligible}),"
            f" registers {real_q16} ({real_eligible})",
        )
    ]
