"""The decision log: what was decided for a slot, why, and what became of it (`hem why`)."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from hem.controller.explain import Record
from runtime.ports import Store
from wire.canonical import decode, encode

KEEP_SLOTS = 2 * 96


class _Order(Protocol):
    @property
    def side(self) -> str: ...
    @property
    def energy_wh(self) -> int: ...
    @property
    def price_uc_per_kwh(self) -> int: ...


class _Decision(Protocol):
    @property
    def orders(self) -> tuple[Any, ...]: ...
    @property
    def battery_wh(self) -> int: ...
    @property
    def reason(self) -> str: ...


class DecisionLog:
    """A ring of decisions, by slot."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def add(
        self, slot: int, time_ms: int, decision: _Decision, record: Record | None = None
    ) -> None:
        """
        Write a decision down.

        Args:
            record: what was known, for the explanation
        """
        orders: list[_Order] = list(decision.orders)
        row = {
            "slot": slot,
            "timeMs": time_ms,
            "reason": decision.reason,
            "batteryWh": decision.battery_wh,
            "orders": [
                {"side": o.side, "energyWh": o.energy_wh, "priceUcPerKwh": o.price_uc_per_kwh}
                for o in orders
            ],
            "codes": {},
            **({} if record is None else {"record": msgspec.to_builtins(record)}),
        }
        self._put(slot, row)

    def outcome(self, key: str, code: str) -> None:
        """Add what the ledger said of `bid/<slot>/<number>`."""
        kind, _, rest = key.partition("/")
        slot_text, _, number = rest.partition("/")
        row = self.get(int(slot_text)) if kind == "bid" else None
        if row is not None:
            row["codes"][number] = code
            self._put(row["slot"], row)

    def get(self, slot: int) -> dict[str, Any] | None:
        """The decision for a slot, or None."""
        raw = self._store.get(f"decision/{slot:012d}")
        found: dict[str, Any] | None = None if raw is None else decode(raw)
        return found

    def latest(self, count: int) -> list[dict[str, Any]]:
        """The last decisions, newest first."""
        rows = [decode(raw) for _, raw in self._store.scan("decision/")]
        return rows[-count:][::-1]

    def forget_before(self, slot: int) -> None:
        """Keep two days."""
        with self._store.atomic():
            for key, _ in list(self._store.scan("decision/")):
                if int(key.removeprefix("decision/")) < slot - KEEP_SLOTS:
                    self._store.delete(key)

    def _put(self, slot: int, row: dict[str, Any]) -> None:
        with self._store.atomic():
            self._store.put(f"decision/{slot:012d}", encode(row))
