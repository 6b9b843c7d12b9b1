"""The home's own keys, made on the device and never leaving it (the meter key is the gateway's)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from runtime.keyfiles import read_secret, write_secret
from runtime.ports import Rng
from wire.keys import KEY_BYTES, BoxKey, SigningKey

EMS_KEY = "ems.key"
BOX_KEY = "box.key"
ADDRESS_KEY = "address-{number}.key"
ADDRESSES_KEY = "addresses.key"
CHANCE_BYTES = 6


@dataclass(slots=True)
class Keyring:
    """Keys in one folder, each in a file that only its owner can read."""

    folder: Path
    rng: Rng

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    @property
    def ems(self) -> SigningKey:
        """Signs private messages; its public half is the user's identity in the CSM-DB."""
        return SigningKey(self._seed(EMS_KEY))

    @property
    def box(self) -> BoxKey:
        """Opens what the CSM-DB seals to us."""
        return BoxKey(self._seed(BOX_KEY))

    def address(self, number: int) -> SigningKey:
        """Key of the home's `number`-th trading address, made when first asked for."""
        return SigningKey(self._seed(ADDRESS_KEY.format(number=number)))

    def period_address(self, chain_id: str, period: int) -> SigningKey:
        """
        Key of the address of a period (`wire.rotation`).

        It is derived, so a period has one address for ever: after a crash, and also in a home that
        an old backup was restored to.
        """
        return self._addresses.derive(f"{chain_id}/{period}")

    def chance(self, chain_id: str, period: int, what: str) -> float:
        """
        A number in [0, 1) for one address and purpose: uniform for all others, for us always the
        same, so that a restart draws nothing again.
        """
        drawn = self._addresses.derive(f"{chain_id}/{period}/{what}").seed[:CHANCE_BYTES]
        return int.from_bytes(drawn, "big") / (1 << 8 * CHANCE_BYTES)

    @property
    def _addresses(self) -> SigningKey:
        return SigningKey(self._seed(ADDRESSES_KEY))

    def _seed(self, name: str) -> bytes:
        path = self.folder / name
        if not path.exists():
            write_secret(path, self.rng.bytes(KEY_BYTES))
        return read_secret(path)
