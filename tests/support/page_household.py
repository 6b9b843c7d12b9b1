"""
A made-up home behind the real page, for its tests and pictures.

    python tests/support/page_household.py [PORT]        serves it; the password is PASSWORD
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field, replace
from datetime import UTC
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp

from hem.ems.daylog import DayRow
from hem.ems.health import Health, Reason
from hem.ems.standing import Standing
from hem.web.access import Credentials, hash_password
from hem.web.app import application
from hem.web.port import Account, DeviceFacts, Expected, Moment, Nameplate, PlanRow, Tariff
from runtime.rng import SystemRng
from runtime.store import MemoryStore
from wire.errors import ConfigError
from wire.slots import SlotGrid

PASSWORD = "correct horse battery"
SLOT_MS = 900_000
MIDNIGHT = 1_780_272_000_000 // SLOT_MS
"""Slot of a midnight in June."""
NOW_SLOT = MIDNIGHT + 4 * 16 + 1
"""A quarter past four in the afternoon."""
VALIDATOR = "hg1" + "q7w3" * 8
CAPACITY_WH = 14_000
RETAIL_UC, FEED_IN_UC = 320_000, 80_000


def sun_wh(slot: int) -> int:
    """A clear day with a cloud at noon."""
    hour = (slot - MIDNIGHT) / 4
    bright = max(0.0, math.sin((hour - 5) / 16 * math.pi)) if 5 <= hour <= 21 else 0.0
    return int(1150 * bright**1.5 * (0.55 if 12 <= hour < 13 else 1))


def load_wh(slot: int) -> int:
    """Breakfast, lunch and a long evening."""
    hour = (slot - MIDNIGHT) / 4
    peaks = sum(
        height * math.exp(-(((hour - at) / wide) ** 2))
        for at, height, wide in ((7.5, 240, 1.0), (12.5, 300, 0.8), (19.5, 420, 2.0))
    )
    return int(75 + peaks + 25 * math.sin(slot * 2.7))


def made_up_day() -> list[DayRow]:
    """From midnight to now, with a battery that keeps the sun for the evening."""
    rows, soc_wh = [], 2_600
    for slot in range(MIDNIGHT, NOW_SLOT):
        pv, load = sun_wh(slot), load_wh(slot)
        wanted = load - pv
        battery = max(-330, min(wanted, soc_wh - 1_000, 500), soc_wh - CAPACITY_WH)
        soc_wh -= battery
        net = load - pv - battery
        traded = slot - MIDNIGHT >= 24
        price = 255_000 - 1_100 * ((slot * 7) % 13) - 110 * pv if traded else -1
        rows.append(
            DayRow(
                slot, load, pv, battery, max(net, 0), max(-net, 0), soc_wh * 1000 // CAPACITY_WH,
                price, max(0, load + 30 - slot * 11 % 60), int(pv * 1.06),
            )
        )  # fmt: skip
    return rows


WELL = Moment(
    time_ms=NOW_SLOT * SLOT_MS + 412_000, fresh=True, grid_w=-1_240, pv_w=3_480, battery_w=-1_520,
    load_w=720, soc_permille=860, price_uc_per_kwh=168_000, bought_wh=0, sold_wh=310,
    balance_uc=12_431_900, health=Health("ok", ()),
)  # fmt: skip


@dataclass
class MadeUpHome:
    """All that a page asks for; tests change what they are about."""

    folder: Path
    name: str = "lime-street-7"
    moment_now: Moment = WELL
    rows: list[DayRow] = field(default_factory=made_up_day)
    planned: bool = True
    validator: str = VALIDATOR
    device_facts: list[DeviceFacts] = field(
        default_factory=lambda: [
            DeviceFacts("meter", "sunspec-meter", "192.168.1.30, port 502", "ok"),
            DeviceFacts("roof", "fronius-gen24", "192.168.1.31, port 502", "ok"),
            DeviceFacts("cellar", "byd-hvs", "192.168.1.32, port 502", "ok"),
        ]
    )
    told: list[dict[str, Any]] | None = None
    policy_at_once: bool = False
    backups: list[Path] = field(default_factory=list)

    @property
    def grid(self) -> SlotGrid:
        return SlotGrid(900)

    @property
    def tariff(self) -> Tariff:
        return Tariff(RETAIL_UC, FEED_IN_UC)

    @property
    def policy_file(self) -> Path:
        return self.folder / "policy.toml"

    def now_ms(self) -> int:
        return self.moment_now.time_ms

    async def moment(self) -> Moment:
        return self.moment_now

    def day(self, first_slot, last_slot):
        return [row for row in self.rows if first_slot <= row.slot <= last_slot]

    def expected(self, first_slot, last_slot):
        return [
            Expected(slot, load_wh(slot) + slot * 17 % 40, int(sun_wh(slot) * 0.97))
            for slot in range(first_slot, last_slot + 1)
        ]

    def plan(self):
        if not self.planned:
            return []
        found, soc_wh = [], self.rows[-1].soc_permille * CAPACITY_WH // 1000
        for slot in range(NOW_SLOT, MIDNIGHT + 96):
            pv, load = sun_wh(slot), load_wh(slot)
            given = max(-330, min(load - pv, soc_wh - 1_000, 500), soc_wh - CAPACITY_WH)
            soc_wh -= given
            net = load - pv - given
            found.append(
                PlanRow(
                    slot, load, pv, max(-given, 0), max(given, 0), max(net, 0), max(-net, 0),
                    soc_wh, RETAIL_UC, FEED_IN_UC,
                )
            )  # fmt: skip
        return found

    def account(self) -> Account:
        return Account("hg1" + "m4zk" * 8, self.moment_now.balance_uc, 840_500)

    def settlements(self, last):
        rows = [
            {
                "slot": row.slot, "netWh": row.import_wh - row.export_wh,
                "boughtWh": row.import_wh * 4 // 5, "soldWh": row.export_wh * 9 // 10,
                "residualWh": row.import_wh // 5 - row.export_wh // 10,
                "amountUc": row.export_wh * 8_000 - row.import_wh * 60,
                **({"assumed": True} if row.slot % 29 == 0 else {}),
            }
            for row in self.rows[:-2]
        ]  # fmt: skip
        return rows if last is None else rows[-last:]

    def decisions(self, last):
        if self.told is not None:
            return self.told
        reasons = (
            "0.31 kWh of sun are left over after the battery: sold above the feed-in price",
            "The battery is full enough for the evening; the rest is worth 16.80 ct/kWh next door",
            "Little is expected: neither a surplus nor a need worth a message",
        )
        return [
            {
                "slot": slot, "timeMs": slot * SLOT_MS,
                "reason": reasons[(slot - NOW_SLOT - 2) % 3],
                "batteryWh": -350 if slot % 3 else 0,
                "orders": []
                if slot % 3 == (NOW_SLOT + 1) % 3
                else [{"side": "sell", "energyWh": 310 - 7 * (slot % 9), "priceUcPerKwh": 131_000}],
                "codes": {} if slot > NOW_SLOT else {"0": "OK"},
            }
            for slot in range(NOW_SLOT + 1, NOW_SLOT - 12, -1)
        ][:last]  # fmt: skip

    def contracted(self, slot):
        if slot > NOW_SLOT or slot % 3 == (NOW_SLOT + 1) % 3:
            return {}
        return {"double-auction": {"boughtWh": 0, "soldWh": 310 - 7 * (slot % 9)}}

    def price(self, slot):
        found = [row.price_uc_per_kwh for row in self.rows if row.slot == slot]
        if found:
            return None if found[0] < 0 else found[0]
        return 168_000 if slot == NOW_SLOT else None

    def standings(self):
        others = [("hg1" + letters * 8, cpf) for letters, cpf in (
            ("z5r2", 61_900), ("c0ke", 44_300), ("p8vn", 39_020), ("ahx6", 12_450))]  # fmt: skip
        rows = [Standing(name, cpf, NOW_SLOT - 1, cpf > 20_000) for name, cpf in others]
        if self.validator:
            rows.append(Standing(self.validator, 57_410, NOW_SLOT - 1, True))
        return sorted(rows, key=lambda row: -row.cpf_q16)

    def devices(self):
        return self.device_facts

    def nameplate(self) -> Nameplate:
        return Nameplate(17_250, CAPACITY_WH, 5_000, 5_000)

    def back_up(self, target: Path) -> None:
        if self.backups is None:
            raise ConfigError("no room")
        target.write_bytes(b"a backup")
        self.backups.append(target)


def troubled() -> Moment:
    """A home that wants somebody to look at it."""
    reasons = (Reason("device:cellar", "degraded", "no answer from 192.168.1.32 since 14:02"),)
    return replace(WELL, health=Health("degraded", reasons), battery_w=0)


async def monitoring(scope, receive, send) -> None:
    """What stands for health and metrics."""
    await PlainTextResponse("monitored")(scope, receive, send)


def page_of(home: MadeUpHome, credentials: Credentials | None = None, **more: Any) -> ASGIApp:
    """The page of a home; with a password unless credentials are given."""
    if credentials is None:
        credentials = Credentials(MemoryStore())
        credentials.set_password(hash_password(PASSWORD))
    return application(home, credentials, SystemRng(), monitoring, ("hem.local",), zone=UTC, **more)


def main() -> None:
    """Serve a made-up home for work on the page."""
    import tempfile  # noqa: PLC0415

    import uvicorn  # noqa: PLC0415

    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8_101
    home = MadeUpHome(Path(tempfile.mkdtemp()))
    home.policy_file.write_text('participation = "RE+TE"\nreserve_permille = 200\n')
    uvicorn.run(page_of(home), port=port, log_level="warning")


if __name__ == "__main__":
    main()
