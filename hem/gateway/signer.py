"""
What the meter key may sign. Pure: registers, times and stored readings are arguments.

A reading closes one slot. It continues the chain (sequence number, digest of the reading before),
its registers never go back and never rise faster than the connection can carry, and a slot is never
signed twice. A receipt or an attestation is computed from stored readings only, never from what
a caller says: who trades cannot make up what flowed.

    check_reading    previous reading and fresh registers -> the next reading, unsigned
    net_wh           two readings of neighbouring slots -> net energy of the later slot
    attestation      a window of readings -> CPF and eligibility
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hem.config import Poe
from wire.cpf import cpf_q16, eligible
from wire.errors import HearthgridError
from wire.metering import ZERO_DIGEST, CpfAttestation, Reading, digest
from wire.slots import SlotGrid

WH_MS_PER_WATT = 3_600_000
ROUNDING_WH = 2
"""Registers are whole Wh; two of them may each be off by one."""
WINDOW_SLOTS_MAX = 7 * 24 * 60
"""Longest window of an attestation."""


class SigningRefusedError(HearthgridError):
    """The meter key does not sign this; `code` says why."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(f"{code}: {message}")


@dataclass(frozen=True, slots=True)
class Registers:
    """Cumulative registers of the devices [Wh]."""

    import_wh: int
    export_wh: int
    generation_wh: int


@dataclass(frozen=True, slots=True)
class Rules:
    """What bounds a reading."""

    meter: str
    """Identity of the meter key."""
    grid: SlotGrid
    max_power_w: int
    """Most power of the connection and of the generators [W]."""
    late_slots: int
    """How many slots after its end a slot may still be closed."""


def check_reading(
    rules: Rules, last: Reading | None, slot: int, time_ms: int, registers: Registers
) -> Reading:
    """
    The next reading of the chain, unsigned.

    Args:
        last: the reading signed before, or None for the first
        slot: the slot that has ended
        time_ms: market time at which the registers were read

    Raises:
        SigningRefusedError: TOO_EARLY, TOO_LATE, OUT_OF_ORDER, BACKWARDS, TOO_FAST.
    """
    if time_ms < rules.grid.end_ms(slot):
        raise SigningRefusedError("TOO_EARLY", f"slot {slot} has not ended")
    if time_ms >= rules.grid.end_ms(slot + rules.late_slots):
        raise SigningRefusedError("TOO_LATE", f"slot {slot} ended too long ago to be read now")
    if last is not None:
        _check_follows(rules, last, slot, time_ms, registers)
    return Reading(
        meter=rules.meter,
        seq=last.seq + 1 if last is not None else 0,
        slot=slot,
        time_ms=time_ms,
        import_wh=registers.import_wh,
        export_wh=registers.export_wh,
        generation_wh=registers.generation_wh,
        previous=digest(last) if last is not None else ZERO_DIGEST,
    )


def net_wh(before: Reading | None, after: Reading | None, slot: int) -> int:
    """
    Import − export of `slot`, from the readings at its two ends [Wh].

    Raises:
        SigningRefusedError: NO_READING at its end, GAP where the one before is missing.
    """
    if after is None:
        raise SigningRefusedError("NO_READING", f"slot {slot} has no reading")
    if before is None:
        raise SigningRefusedError("GAP", f"slot {slot - 1} has no reading")
    return (after.import_wh - before.import_wh) - (after.export_wh - before.export_wh)


def attestation(
    readings: Mapping[int, Reading], validator: str, start_slot: int, end_slot: int, poe: Poe
) -> CpfAttestation:
    """
    CPF over the slots start…end, unsigned. A gap gives CPF 0, not eligible.

    Args:
        readings: by slot; those of start − 1 … end count

    Raises:
        SigningRefusedError: BAD_WINDOW, or NO_READING where the window's end has none.
    """
    check_window(start_slot, end_slot)
    if end_slot not in readings:
        raise SigningRefusedError("NO_READING", f"slot {end_slot} has no reading")
    slots = range(start_slot, end_slot + 1)
    nets: list[int] = []
    generations: list[int] = []
    for slot in slots:
        before, after = readings.get(slot - 1), readings.get(slot)
        if before is not None and after is not None:
            nets.append(net_wh(before, after, slot))
            generations.append(after.generation_wh - before.generation_wh)
    whole = len(nets) == len(slots)
    return CpfAttestation(
        validator=validator,
        start_slot=start_slot,
        end_slot=end_slot,
        cpf_q16=cpf_q16(nets, generations, poe.kappa_milli) if whole else 0,
        eligible=whole
        and eligible(
            nets,
            generations,
            min_energy_wh=poe.min_energy_wh,
            min_production_wh=poe.min_production_wh,
        ),
    )


def check_window(start_slot: int, end_slot: int) -> None:
    """
    Raise unless start…end is a window one may ask for.

    Raises:
        SigningRefusedError: BAD_WINDOW.
    """
    if not 0 <= end_slot - start_slot < WINDOW_SLOTS_MAX:
        raise SigningRefusedError("BAD_WINDOW", f"slots {start_slot} to {end_slot}")


def _check_follows(
    rules: Rules, last: Reading, slot: int, time_ms: int, registers: Registers
) -> None:
    if slot <= last.slot:
        raise SigningRefusedError("OUT_OF_ORDER", f"slot {last.slot} is already signed")
    if time_ms <= last.time_ms:
        raise SigningRefusedError("BACKWARDS", "the clock stands before the last reading")
    limit_wh = rules.max_power_w * (time_ms - last.time_ms) // WH_MS_PER_WATT + ROUNDING_WH
    for name in ("import_wh", "export_wh", "generation_wh"):
        rise_wh = getattr(registers, name) - getattr(last, name)
        if rise_wh < 0:
            raise SigningRefusedError("BACKWARDS", f"{name} fell by {-rise_wh} Wh")
        if rise_wh > limit_wh:
            raise SigningRefusedError(
                "TOO_FAST", f"{name} rose by {rise_wh} Wh, more than {limit_wh} Wh can flow"
            )
