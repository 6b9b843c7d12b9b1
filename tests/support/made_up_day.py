"""
A made-up day of one feeder, for pages and reports: the events, block statements and states that a
real market would give, repeatable from a seed. Sums are consistent: a slot's buys equal its sells.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from analytics.rollups import HomeState
from ledger.genesis import Genesis, GenesisValidator, Prices, Supervisor, seal_genesis
from wire.keys import SigningKey, to_text
from wire.units import cost_uc

DAY_START_MS = 1_780_272_000_000  # 2026-06-01T00:00:00Z
SLOT_S = 900
SLOT_MS = SLOT_S * 1000
RETAIL, FEED_IN = 300_000, 80_000
KINDS = ("pv+battery", "pv+battery", "pv", "pv+battery", "load", "pv", "load", "pv+battery", "load")


def key(name: str) -> SigningKey:
    """A repeatable key."""
    return SigningKey(bytes(32)).derive(name)


def identity(name: str) -> str:
    """A well-formed id for a made-up name."""
    return key(name).id


@dataclass(frozen=True, slots=True)
class MadeUpHome:
    """One home of the feeder."""

    name: str
    kind: str
    participant: str
    address: str
    scale: float


@dataclass(frozen=True, slots=True)
class Moment:
    """Something that happens: `kind` is event, block, refused or state."""

    time_ms: int
    kind: str
    height: int
    body: Any


def made_up_homes(count: int = 10) -> list[MadeUpHome]:
    """The homes of the feeder."""
    return [
        MadeUpHome(
            name=f"home-{i + 1:02}",
            kind=KINDS[i % len(KINDS)],
            participant=identity(f"participant {i}"),
            address=identity(f"address {i}"),
            scale=0.7 + 0.07 * i,
        )
        for i in range(count)
    ]


def made_up_genesis() -> Genesis:
    """The genesis of the made-up market."""
    supervisor = key("supervisor")
    return seal_genesis(
        Genesis(
            market="demo",
            start_ms=DAY_START_MS - SLOT_MS,
            issuing_key=to_text(key("issuing").public),
            supervisor=Supervisor(
                address=supervisor.id, key=to_text(supervisor.public), balance_uc=10**12
            ),
            prices=Prices(
                retail_uc_per_kwh=RETAIL,
                feed_in_uc_per_kwh=FEED_IN,
                imbalance_uc_per_kwh=RETAIL,
            ),
            validators=tuple(
                GenesisValidator(
                    id=identity(f"validator {i}"),
                    key=to_text(key(f"validator {i}").public),
                    controller=f"home-{i + 1:02}",
                )
                for i in range(4)
            ),
        )
    )


def made_up_day(seed: int = 1, slots: int = 96, homes: int = 10) -> Iterator[Moment]:
    """The day in the order of time."""
    yield from _Day(seed, made_up_homes(homes)).run(slots)


class _Day:
    def __init__(self, seed: int, homes: list[MadeUpHome]) -> None:
        self.rng = random.Random(seed)
        self.homes = homes
        self.validators = [v.id for v in made_up_genesis().validators]
        self.soc = {h.name: 450 for h in homes if "battery" in h.kind}
        self.height = 0
        self.refused = dict.fromkeys(("BAD_SIGNATURE", "REPLAYED", "WRONG_NONCE"), 0)

    def run(self, slots: int) -> Iterator[Moment]:
        first = DAY_START_MS // SLOT_MS
        for index, home in enumerate(self.homes):
            yield self._event(DAY_START_MS - 600_000, {
                "event": "balance", "address": home.address, "balanceUc": 50_000_000 + index,
                "lockedUc": 0,
            })  # fmt: skip
        pending: list[dict[str, Any]] = []
        for slot in range(first, first + slots):
            start_ms = slot * SLOT_MS
            clearing, auction, settled = self._slot(slot)
            yield from self._block(start_ms - 600_000, len(self.homes))
            for home in self.homes:
                code = "INSUFFICIENT_FUNDS" if self.rng.random() < 0.01 else "OK"
                tx = hashlib.sha256(f"{slot} {home.name}".encode()).hexdigest()
                yield self._event(start_ms - 590_000, {
                    "event": "tx", "txid": tx, "sender": home.address, "code": "OK",
                    "codes": [code],
                })  # fmt: skip
            yield from self._block(start_ms - 300_000, 1)
            if auction:
                opened, cleared = auction
                yield self._event(start_ms - 560_000, opened)
                yield self._event(start_ms - 300_000, cleared)
            yield self._event(start_ms - 300_000, clearing)
            for minute in range(0, 15, 5):
                yield from self._states(start_ms + minute * 60_000)
            if (slot - first) % 8 == 7:
                yield from self._cpfs(slot)
            pending.append(settled)
            if len(pending) > 2:
                yield from self._block(start_ms + 880_000, 10)
                yield self._event(start_ms + 890_000, pending.pop(0))
            if self.rng.random() < 0.2:
                reason = self.rng.choice(list(self.refused))
                self.refused[reason] += 1
                body = {
                    "event": "refused", "component": "mempool", "counts": dict(self.refused),
                    "validator": self.validators[0],
                }  # fmt: skip
                yield Moment(start_ms + 895_000, "refused", self.height, body)
        for settled in pending:
            yield self._event((first + slots + 2) * SLOT_MS, settled)

    def power(self, home: MadeUpHome, hour: float) -> tuple[int, int, int, int]:
        """Load, PV, battery (+ discharge) and grid power [W] at an hour of the day."""
        evening = math.exp(-((hour - 19.3) ** 2) / 5) * 1600
        morning = math.exp(-((hour - 7.4) ** 2) / 2.2) * 900
        load = int((260 + evening + morning + self.rng.uniform(-60, 140)) * home.scale)
        sun = max(0.0, math.sin((hour - 5.2) / 15.6 * math.pi)) ** 1.3 if 5.2 < hour < 20.8 else 0.0
        pv = int(4300 * sun * home.scale * self.rng.uniform(0.86, 1.0)) if "pv" in home.kind else 0
        battery = 0
        if home.name in self.soc:
            surplus, soc = pv - load, self.soc[home.name]
            if surplus > 0 and soc < 960:
                battery = -min(surplus, 2500)
            elif surplus < 0 and soc > 90:
                battery = min(-surplus, 2500)
        return load, pv, battery, load - pv - battery

    def _slot(self, slot: int) -> tuple[dict[str, Any], Any, dict[str, Any]]:
        hour = (slot * SLOT_MS - DAY_START_MS) / 3_600_000
        nets = {h.address: self.power(h, hour)[3] // 4 for h in self.homes}
        forecast = {a: int(n * self.rng.uniform(0.85, 1.12)) for a, n in nets.items()}
        demand = sum(n for n in forecast.values() if n > 0)
        supply = -sum(n for n in forecast.values() if n < 0)
        traded = min(demand, supply)
        tightness = demand / (demand + supply) if demand + supply else 0.5
        price = int(FEED_IN + 20_000 + (RETAIL - FEED_IN - 60_000) * tightness) // 100 * 100
        awards = [
            *_share({a: n for a, n in forecast.items() if n > 0}, traded, "buy", price),
            *_share({a: -n for a, n in forecast.items() if n < 0}, traded, "sell", price),
        ]
        clearing = {
            "event": "cleared", "slot": slot, "priceUcPerKwh": price if traded else 0,
            "tradedWh": traded, "bids": sum(1 for n in forecast.values() if n > 0),
            "offers": sum(1 for n in forecast.values() if n < 0), "welfareUc": traded * 60,
            "awards": awards if traded else [],
        }  # fmt: skip
        auction = self._auction(slot, forecast) if int(hour * 4) % 12 == 10 else None
        flexible = {a["address"]: a["energyWh"] for a in auction[1]["awards"]} if auction else {}
        rows = []
        for address, net in nets.items():
            bought = sum(
                a["energyWh"] for a in awards if (a["address"], a["side"]) == (address, "buy")
            )
            sold = sum(
                a["energyWh"] for a in awards if (a["address"], a["side"]) == (address, "sell")
            )
            sold += flexible.get(address, 0)
            residual = net - (bought - sold)
            amount = -cost_uc(residual, RETAIL if residual > 0 else FEED_IN)
            rows.append({
                "address": address, "netWh": net, "boughtWh": bought, "soldWh": sold,
                "residualWh": residual, "amountUc": amount,
            })  # fmt: skip
        return clearing, auction, {"event": "settled", "slot": slot, "rows": rows, "missing": []}

    def _auction(
        self, slot: int, forecast: dict[str, int]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        name = f"flex-{slot % 10_000}"
        sellers = [a for a, n in forecast.items() if n < -50][:2]
        awards = [
            {"address": a, "energyWh": 120 + 40 * i, "priceUcPerKwh": 140_000 + 15_000 * i}
            for i, a in enumerate(sellers)
        ]
        opened = {
            "event": "auction-opened", "auction": name, "template": "reverse", "slot": slot,
            "energyWh": 400, "priceUcPerKwh": 220_000, "deadlineMs": slot * SLOT_MS - 300_000,
        }  # fmt: skip
        cleared = {
            "event": "auction-cleared", "auction": name, "slot": slot, "awards": awards,
            "boughtWh": sum(a["energyWh"] for a in awards),
        }  # fmt: skip
        return opened, cleared

    def _states(self, time_ms: int) -> Iterator[Moment]:
        hour = (time_ms - DAY_START_MS) / 3_600_000
        for home in self.homes:
            load, pv, battery, grid = self.power(home, hour)
            soc = -1
            if home.name in self.soc:
                moved = -battery * 300 / 3600 / 8000 * 1000
                self.soc[home.name] = soc = min(1000, max(0, int(self.soc[home.name] + moved)))
            offline = home.name == "home-07" and 13 < hour < 13.6
            yield Moment(time_ms, "state", self.height, HomeState(
                home=home.participant, time_ms=time_ms, online=not offline,
                grid_w=grid, pv_w=pv, battery_w=battery, load_w=load, soc_permille=soc,
                measured=not offline,
            ))  # fmt: skip

    def _cpfs(self, slot: int) -> Iterator[Moment]:
        for i, name in enumerate(self.validators):
            cpf = int(65_536 * (0.32 + 0.14 * i + self.rng.uniform(-0.05, 0.05)))
            body = {
                "event": "cpf", "validator": name, "endSlot": slot, "cpfQ16": cpf,
                "eligible": i > 0,
            }  # fmt: skip
            yield self._event((slot + 1) * SLOT_MS, body)

    def _block(self, time_ms: int, transactions: int) -> Iterator[Moment]:
        self.height += 1
        leader = self.rng.choices(self.validators, weights=(32, 46, 60, 74))[0]
        finality = int(self.rng.lognormvariate(3.6, 0.35))
        for validator in self.validators[:3]:
            yield Moment(time_ms, "block", self.height, {
                "event": "block", "height": self.height, "epoch": self.height // 40,
                "view": self.height, "proposer": leader, "nTx": transactions, "timeMs": time_ms,
                "finalityMs": finality + self.rng.randrange(6), "validator": validator,
            })  # fmt: skip

    def _event(self, time_ms: int, event: dict[str, Any]) -> Moment:
        return Moment(time_ms, "event", self.height, event)


def _share(wants: dict[str, int], traded: int, side: str, price: int) -> list[dict[str, Any]]:
    """Split `traded` in proportion, the remainder to the last."""
    total, left, awards = sum(wants.values()), traded, []
    for i, (address, want) in enumerate(wants.items()):
        energy = left if i == len(wants) - 1 else want * traded // total
        left -= energy
        if energy:
            awards.append({
                "address": address, "side": side, "energyWh": energy, "priceUcPerKwh": price,
            })  # fmt: skip
    return awards
