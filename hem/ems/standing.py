"""
What the ledger says of each validator's home: its last CPF, as Proof of Energy uses it.

The CPF tells how well a home's load matched its own generation over the last slots (TMI eq. 9);
a validator whose home matches better leads more often (`ledger.poe`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from runtime.ports import Store
from wire.canonical import decode, encode

STALE_SLOTS = 4
"""So much older than the newest, and a CPF counts no more (`ledger.genesis.CPF_STALE_SLOTS`)."""
FORGET_SLOTS = 7 * 96
CPF = "standing/"


@dataclass(frozen=True, slots=True)
class Standing:
    """The last attestation of one validator's home."""

    validator: str
    cpf_q16: int
    end_slot: int
    eligible: bool


class Standings:
    """The validators' homes, by what finalised events say."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def take_event(self, _height: int, event: dict[str, Any]) -> None:
        """Handler for finalised events (`ledger.client`)."""
        if event["event"] == "cpf":
            row = Standing(event["validator"], event["cpfQ16"], event["endSlot"], event["eligible"])
            with self._store.atomic():
                self._store.put(CPF + row.validator, encode(asdict(row)))

    def ranked(self) -> list[Standing]:
        """Those that count now, best first."""
        rows = self._rows()
        newest = max((row.end_slot for row in rows), default=0)
        counting = [row for row in rows if row.end_slot >= newest - STALE_SLOTS]
        return sorted(counting, key=lambda row: (-row.cpf_q16, row.validator))

    def forget_before(self, slot: int) -> None:
        """Drop validators that have said nothing for a week."""
        with self._store.atomic():
            for row in self._rows():
                if row.end_slot < slot - FORGET_SLOTS:
                    self._store.delete(CPF + row.validator)

    def _rows(self) -> list[Standing]:
        return [Standing(**decode(raw)) for _, raw in self._store.scan(CPF)]
