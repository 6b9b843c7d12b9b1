"""
The home's TLS: a key and a certificate for its own lane, and for the lane of each of its addresses.

Each address has a TLS key of its own: a shared one would show the broker, and whoever reads its
log, that two addresses are one home's. They are in `tls/`, and in no backup: a
home that lost them makes others.
"""

from __future__ import annotations

from pathlib import Path

from hem.config import Provisioning
from hem.ems.keyring import Keyring
from runtime.csmdb_client import CsmDbClient
from runtime.door import Door, DoorBus
from runtime.lane_tls import LaneTls
from runtime.ports import Clock, Rng
from runtime.tls import Tls
from wire.keys import KEY_BYTES, BoxKey, SigningKey, from_text


class HomeTls(LaneTls):
    """TLS of one home; certificates come through the CSM-DB's door."""

    def __init__(
        self,
        config: Provisioning,
        ca: Path,
        ems_key: SigningKey,
        box: BoxKey,
        folder: Path,
        clock: Clock,
        rng: Rng,
    ) -> None:
        market = config.market
        self._door, self._market, self._identity = (
            Door(config.broker.door, ca),
            market.name,
            ems_key.id,
        )

        async def line() -> CsmDbClient:
            return CsmDbClient(
                self.door_bus(), ems_key, box, market.name,
                from_text(market.csmdb_key, KEY_BYTES), from_text(market.csmdb_box, KEY_BYTES),
                clock, rng,
            )  # fmt: skip

        super().__init__(Tls(folder, ca, clock), line, rng)

    def door_bus(self) -> DoorBus:
        """The lane of one whom the broker does not let in (yet, or no more)."""
        return DoorBus(self._door, self._market, self._identity)


def home_tls(config: Provisioning, keyring: Keyring, clock: Clock, rng: Rng) -> HomeTls | None:
    """
    The home's TLS; None where its broker has none.

    Raises:
        ConfigError: `broker.ca` or `broker.door` is not what it should be.
    """
    ca = config.broker.ca
    if ca is None:
        return None
    folder = config.home.data_dir / "tls"
    return HomeTls(config, ca, keyring.ems, keyring.box, folder, clock, rng)
