"""Homes that enrol, for tests: requests as a home's EMS would make them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from support.brokers import Authority, make_key
from support.patience import PATIENCE_S

from runtime.bus import MqttBus
from runtime.clock import SystemClock
from runtime.csmdb_client import CsmDbClient
from runtime.rng import SystemRng
from wire.keys import BoxKey, SigningKey, to_text


@dataclass
class AskingHome:
    """The keys of one home and the requests it makes."""

    name: str

    @property
    def ems(self) -> SigningKey:
        return make_key(f"{self.name}/ems")

    @property
    def meter(self) -> SigningKey:
        return make_key(f"{self.name}/meter")

    @property
    def box(self) -> BoxKey:
        return BoxKey(make_key(f"{self.name}/box").seed)

    def address(self, number: int = 0) -> SigningKey:
        return make_key(f"{self.name}/address/{number}")

    def enrolment(self, code: str, **meter: str) -> dict[str, Any]:
        return {
            "claimCode": code,
            "key": to_text(self.ems.public),
            "boxKey": to_text(self.box.public),
            "meter": {
                "type": "sunspec",
                "serial": f"SN-{self.name}",
                "vendor": "Test",
                "model": "M1",
                "firmware": "1.0",
                "meter_key": to_text(self.meter.public),
                **meter,
            },
        }

    def address_row(self, number: int = 0) -> dict[str, str]:
        key = self.address(number)
        return {
            "key": to_text(key.public),
            "meterKey": to_text(self.meter.derive(key.id).public),
        }

    def client(self, bus: MqttBus, market: str, issuing: bytes, csmdb_box: bytes) -> CsmDbClient:
        return CsmDbClient(
            bus, self.ems, self.box, market, issuing, csmdb_box, SystemClock(), SystemRng()
        )


async def connected_lane(authority: Authority, port: int, key: SigningKey, **how: Any) -> MqttBus:
    """A started lane."""
    bus = authority.bus(port, key, **how)
    await bus.start()
    await bus.wait_connected(PATIENCE_S)
    return bus
