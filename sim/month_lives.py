"""
The lives of addresses in the simulated month: keys, grants, and a trader for each.

A home's trading code is the product's (`hem.trader.Trader`); what a home learns, its forecaster,
outlives its addresses.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hem.controller.forecast import Forecaster
from hem.ems.addresses import OneAddress
from hem.ems.decisions import DecisionLog
from hem.ems.wallet import Wallet
from hem.trader import Parts, Trader
from ledger.genesis import Genesis
from runtime.clock import SystemClock
from runtime.rng import SeededRng
from runtime.store import MemoryStore
from sim.month_habits import Habits
from sim.month_homes import MonthHome
from wire import certificates
from wire.certificates import AddressGrant, ValidatorGrant
from wire.keys import SigningKey, to_text

COMMON_LIMIT_WH = 10_000
"""The one class of grants where all carry the same limits [Wh]."""


class MonthClock(SystemClock):
    """Market time that moves when told."""

    def __init__(self) -> None:
        super().__init__()
        self.market_ms = 0

    def now_ms(self) -> int:
        """Market time [ms]."""
        return self.market_ms


class Waiting:
    """A trader's outbox: operations under keys, each once."""

    def __init__(self) -> None:
        self._states: dict[str, str] = {}
        self._operations: list[dict[str, Any]] = []

    def add(self, operations: list[tuple[str, dict[str, Any]]], slot: int) -> int:
        """Leave operations under keys that are new; all are of the one address."""
        fresh = [(key, operation) for key, operation in operations if key not in self._states]
        for key, operation in fresh:
            self._states[key] = "waiting"
            self._operations.append(operation)
        return len(fresh)

    def state_of(self, key: str) -> str:
        """`waiting`, or empty."""
        return self._states.get(key, "")

    def take(self) -> list[dict[str, Any]]:
        """All that was left since the last call."""
        taken, self._operations = self._operations, []
        return taken


@dataclass(slots=True)
class Life:
    """An address of a home."""

    home: MonthHome
    key: SigningKey
    meter_key: SigningKey
    grant: AddressGrant
    wallet: Wallet
    outbox: Waiting
    trader: Trader

    @property
    def address(self) -> str:
        """Its name on the chain."""
        return self.key.id

    def covers(self, slot: int) -> bool:
        """Is it the home's address of a slot?"""
        return self.grant.start_slot <= slot <= self.grant.end_slot


class Registry:
    """The CSM-DB's part: keys from seeds, grants signed by one issuer."""

    def __init__(self, market: str, seed: int) -> None:
        self._market, self._seed = market, seed
        self.issuer = self.key("issuer")

    def key(self, name: str) -> SigningKey:
        """A key that depends on seed and name only."""
        return SigningKey(hashlib.sha256(f"month/{self._seed}/{name}".encode()).digest())

    def grant(self, home: MonthHome, key: SigningKey, slots: range, habits: Habits) -> AddressGrant:
        """An address grant for some slots."""
        limit_wh = COMMON_LIMIT_WH if habits.same_limits else home.connection_wh
        return certificates.seal(
            AddressGrant(
                address=key.id, key=to_text(key.public),
                meter_key=to_text(key.derive("meter").public), can_buy=True, can_sell=True,
                max_buy_wh=limit_wh, max_sell_wh=limit_wh, start_slot=slots.start,
                end_slot=slots.stop - 1,
            ),
            self.issuer, self._market,
        )  # fmt: skip

    def validator_grant(self, validator: SigningKey, meter: SigningKey, slots: range) -> Any:
        """The JSON of a validator grant for some slots."""
        grant = ValidatorGrant(
            validator=validator.id, meter_key=to_text(meter.public), start_slot=slots.start,
            end_slot=slots.stop - 1,
        )  # fmt: skip
        return certificates.dump(certificates.seal(grant, self.issuer, self._market))


async def begin_life(
    registry: Registry,
    genesis: Genesis,
    home: MonthHome,
    number: int,
    slots: range,
    habits: Habits,
    forecaster: Forecaster,
    clock: MonthClock,
    recent: Sequence[tuple[int, dict[str, Any]]],
) -> Life:
    """
    Make an address of a home and the trader that works under it.

    Args:
        number: of the home's addresses
        slots: that it is for
        recent: (height, event) of the last clearings: the home knows their prices
    """
    key = registry.key(f"{home.name}/{number}")
    store, outbox = MemoryStore(), Waiting()
    wallet = Wallet(store, key.id)
    for height, event in recent:
        await wallet.take_event(height, event)
    grant = registry.grant(home, key, slots, habits)

    async def state() -> dict[str, Any]:
        if home.battery is None:
            return {"battery": None, "soc_permille": -1}
        facts = {
            "capacity_wh": home.battery.capacity_wh,
            "max_charge_w": home.battery.max_charge_w,
            "max_discharge_w": home.battery.max_discharge_w,
        }
        return {
            "battery": facts, "soc_permille": home.soc_wh * 1000 // home.battery.capacity_wh,
        }  # fmt: skip

    trader = Trader(
        Parts(
            genesis=genesis, addresses=OneAddress(grant), policy=home.policy, wallet=wallet,
            outbox=outbox, decisions=DecisionLog(store), forecaster=forecaster, store=store,
            clock=clock, rng=SeededRng(number), state=state, discreet=habits.discreet,
        )
    )  # fmt: skip
    return Life(home, key, key.derive("meter"), grant, wallet, outbox, trader)
