"""Meters that sign readings, for tests of the DSO's audit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from wire.canonical import encode
from wire.keys import SigningKey, seal_to, to_text
from wire.metering import ZERO_DIGEST, Reading, digest, record_json, sign_record

SLOT_MS = 900_000


@dataclass
class SigningMeter:
    """A meter key and the chain of readings it signs."""

    key: SigningKey
    chain_id: str
    participant: str
    addresses: list[str] = field(default_factory=list)
    validator: str = ""
    readings: list[Reading] = field(default_factory=list)

    def read(self, slot: int, net_wh: int, produced_wh: int = 0, **lies: Any) -> Reading:
        """The next reading: net energy of the slot since the last one."""
        last = self.readings[-1] if self.readings else None
        reading = Reading(
            meter=self.key.id,
            seq=len(self.readings),
            slot=slot,
            time_ms=(slot + 1) * SLOT_MS + 1_000,
            import_wh=(last.import_wh if last else 10_000) + max(net_wh, 0),
            export_wh=(last.export_wh if last else 10_000) + max(-net_wh, 0),
            generation_wh=(last.generation_wh if last else 10_000) + produced_wh,
            previous=digest(last) if last else ZERO_DIGEST,
        )
        signed = sign_record(msgspec.structs.replace(reading, **lies), self.key, self.chain_id)
        self.readings.append(signed)
        return signed

    def listed(self) -> dict[str, Any]:
        """This meter in a `list-meters` answer."""
        return {
            "participant": self.participant,
            "meterKey": to_text(self.key.public),
            "addresses": self.addresses,
            "validator": self.validator,
        }


def sealed(reading: Reading, box_public: bytes) -> bytes:
    """A reading as it is published."""
    return seal_to(box_public, encode(record_json(reading)))
