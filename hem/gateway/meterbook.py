"""
The meter's book: the key, the readings it signed, and which address each slot was confirmed for.

Everything signed is on disk (SQLite, synchronous=FULL) before it leaves this process, so a crash or
a power cut can neither fork the chain of readings nor make the key say two things about one slot.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hem.config import MarketFacts
from hem.gateway.signer import (
    Registers,
    Rules,
    SigningRefusedError,
    attestation,
    check_reading,
    check_window,
    net_wh,
)
from runtime.keyfiles import read_key, write_secret
from runtime.ports import Store
from wire.canonical import decode, encode
from wire.firmware import Attestation, Plate, attestation_json, sign_attestation
from wire.keys import KEY_BYTES, SigningKey, from_text, seal_to, to_text
from wire.metering import Reading, Receipt, digest, load_record, record_json, sign_record

KEPT_SLOTS = 35 * 96
"""Readings kept: five weeks of quarter hours."""
PRUNE_SLOTS = 96
"""How often old rows are looked for."""
VALIDATOR_PREFIX = "validator:"


class MeterBook:
    """
    Signs by the rules of `hem.gateway.signer` and remembers.

    Args:
        key: the meter key
        store: opened on the gateway's own file
        facts: chain, slots, DSO key and Proof-of-Energy rules of the genesis
    """

    def __init__(
        self, key: SigningKey, store: Store, facts: MarketFacts, max_power_w: int, late_slots: int
    ) -> None:
        self._key = key
        self._store = store
        self._facts = facts
        self._dso = from_text(facts.dso_box_key, KEY_BYTES)
        self._rules = Rules(key.id, facts.grid, max_power_w, late_slots)
        slot = store.get("last")
        self._last = self.reading(int(slot)) if slot is not None else None

    @property
    def public(self) -> bytes:
        """Public half of the meter key."""
        return self._key.public

    def pseudonym(self, label: str) -> bytes:
        """Public half of the key that confirms for an address, or `validator:<id>`."""
        return self._key.derive(label).public

    def attest_firmware(
        self, plate: Plate, digest: str, time_ms: int, nonce: str, market: str
    ) -> dict[str, Any]:
        """The plate under the meter key (JSON), for who asked with `nonce`."""
        record = Attestation(
            meter=self._key.id, vendor=plate.vendor, model=plate.model, serial=plate.serial,
            firmware=plate.firmware, digest=digest, slot=self._facts.grid.slot_at(time_ms),
            time_ms=time_ms, nonce=nonce,
        )  # fmt: skip
        return attestation_json(sign_attestation(record, self._key, market))

    def end_ms(self, slot: int) -> int:
        """When `slot` ends."""
        return self._facts.grid.end_ms(slot)

    def reading(self, slot: int) -> Reading | None:
        """The stored reading of a slot."""
        row = self._row(slot)
        return load_record(Reading, row["reading"]) if row is not None else None

    def signed(self, slot: int) -> dict[str, Any] | None:
        """What `sign_reading` answered for this slot before: the reading and its sealed form."""
        return self._row(slot)

    def sign_reading(self, slot: int, time_ms: int, registers: Registers) -> dict[str, Any]:
        """
        Sign and store the reading that closes `slot`; the second time, return the first.

        Raises:
            SigningRefusedError: by the rules.
        """
        if (known := self._row(slot)) is not None:
            return known
        unsigned = check_reading(self._rules, self._last, slot, time_ms, registers)
        reading = sign_record(unsigned, self._key, self._facts.chain_id)
        value = record_json(reading)
        row = {"reading": value, "sealed": to_text(seal_to(self._dso, encode(value)))}
        with self._store.atomic():
            self._store.put(_reading_key(slot), encode(row))
            self._store.put("last", str(slot).encode())
            self._prune(slot)
        self._last = reading
        return row

    def sign_receipt(self, address: str, slot: int) -> dict[str, Any]:
        """
        Net energy of a slot, confirmed for one address; no other address can have that slot.

        Raises:
            SigningRefusedError: NO_READING, GAP, OTHER_ADDRESS.
        """
        after = self.reading(slot)
        energy_wh = net_wh(self.reading(slot - 1), after, slot)
        assert after is not None
        self._claim(slot, address)
        receipt = Receipt(address=address, slot=slot, net_wh=energy_wh, reading=digest(after))
        return record_json(sign_record(receipt, self._key.derive(address), self._facts.chain_id))

    def attest_cpf(self, validator: str, start_slot: int, end_slot: int) -> dict[str, Any]:
        """
        CPF of this home for a validator over a window of closed slots.

        Raises:
            SigningRefusedError: BAD_WINDOW, NO_READING.
        """
        check_window(start_slot, end_slot)
        window = (self.reading(slot) for slot in range(start_slot - 1, end_slot + 1))
        readings = {reading.slot: reading for reading in window if reading is not None}
        record = attestation(readings, validator, start_slot, end_slot, self._facts.poe)
        key = self._key.derive(VALIDATOR_PREFIX + validator)
        return record_json(sign_record(record, key, self._facts.chain_id))

    def _row(self, slot: int) -> dict[str, Any] | None:
        raw = self._store.get(_reading_key(slot))
        if raw is None:
            return None
        row: dict[str, Any] = decode(raw)
        return row

    def _claim(self, slot: int, address: str) -> None:
        """One slot's energy is confirmed once: under two addresses it would count twice."""
        key = f"receipt/{slot:015d}"
        holder = self._store.get(key)
        if holder is None:
            with self._store.atomic():
                self._store.put(key, address.encode())
        elif holder != address.encode():
            raise SigningRefusedError(
                "OTHER_ADDRESS", f"slot {slot} is confirmed for another address"
            )

    def _prune(self, slot: int) -> None:
        if slot % PRUNE_SLOTS:
            return
        for prefix in ("reading/", "receipt/"):
            oldest = f"{prefix}{max(slot - KEPT_SLOTS, 0):015d}"
            for key, _ in self._store.scan(prefix):
                if key >= oldest:
                    break
                self._store.delete(key)


def load_meter_key(path: Path) -> SigningKey:
    """
    The meter key of a file that only its owner can read; made on the first start.

    Raises:
        ConfigError: the file is damaged, or others may read it.
    """
    if not path.exists():
        write_secret(path, os.urandom(KEY_BYTES))
    return read_key(path)


def _reading_key(slot: int) -> str:
    return f"reading/{slot:015d}"
