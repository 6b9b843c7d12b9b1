"""
A feeder on disk: keys, genesis, CSM-DB, certificates, provisioning files and profiles of a run.

Everything that an aggregator's operator and the homes' installers would prepare, made in one go.
Keys are random; only load and sunshine come from the seed.

    <out>/genesis.json  clock.json  csmdb/  broker/  aggregator/  analytics/
          ledger/validator-<n>/   a chain folder each
          profiles/<name>.json    what the simulated devices of a home do
          homes/<name>/           provisioning.toml, policy.toml, the home's own data
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import msgspec

from csmdb.setup import CsmDb
from csmdb.setup import create as create_csmdb
from hem.controller.policy import Market
from ledger.genesis import (
    Auctions,
    Genesis,
    GenesisValidator,
    Poe,
    Prices,
    Privacy,
    Supervisor,
    write_genesis,
)
from runtime.keyfiles import write_secret
from runtime.rng import SystemRng
from sim.homes import Home, generate_homes, save_home
from sim.profiles import load_profiles
from wire.certificates import dump_text
from wire.errors import ConfigError
from wire.keys import BoxKey, SigningKey, to_text

MARKET = "demo"
MARKETS = get_args(Market)
"""Where a home's policy may let it trade."""
FEEDER = "feeder-1"
SLOT_S = 900
ADDRESS_SLOTS = 4
"""An address an hour."""
AHEAD_SLOTS = 8
"""Where homes trade ahead: two more than the policies of a run ask for."""
WARM_UP_SLOTS = 1
"""Homes run so long before the first slot that is traded: they enrol, and bid for it."""
VALIDATORS = 4
DAY_START_MS = int(datetime(2026, 6, 1, tzinfo=UTC).timestamp() * 1000)
MARKER = ".hearthgrid-run"
PRICES = Prices(retail_uc_per_kwh=300_000, feed_in_uc_per_kwh=80_000, imbalance_uc_per_kwh=300_000)
DEPOSIT_UC = 100_000_000
SUPERVISOR_UC = 1_000_000_000_000
SOCKET_PATH_BYTES_MAX = 90
"""Unix sockets have short names (108 bytes on Linux); deep folders get theirs elsewhere."""
DEVIATION_SLOT_OF_DAY = 78
"""19:30 UTC: the evening peak, when the aggregator's schedule falls short."""
DEVIATION_WH = 1_500
REVEAL_S = 240
"""In a run market time flies: a window of 240 s lasts 0.4 s at 600×."""
BLOCK_INTERVAL_MS = 100
DELTA0_MS = 400
"""Thirty processes share two cores in a run: a message may take its time."""


@dataclass(frozen=True, slots=True)
class Trade:
    """How the homes of a run trade."""

    markets: tuple[str, ...] = ()
    """Those of each home's policy; none: what a policy has by default."""
    sealed: bool = False
    """Bids are committed and revealed."""
    address_slots: int = ADDRESS_SLOTS
    """How long a home trades under one address; 0: always."""

    @property
    def ahead(self) -> bool:
        """Homes trade with their neighbours some slots ahead."""
        return bool(set(self.markets) - {"double-auction", "auctions"})

    @property
    def withdraws(self) -> bool:
        """Homes withdraw money and energy themselves."""
        return self.ahead or self.address_slots > 0

    @property
    def privacy(self) -> Privacy | msgspec.UnsetType:
        """The rule of the genesis; left out where addresses do not change."""
        if not self.address_slots:
            return msgspec.UNSET
        ahead = AHEAD_SLOTS if self.ahead else Privacy().ahead_slots
        return Privacy(address_slots=self.address_slots, ahead_slots=ahead)


DEFAULT_TRADE = Trade()


def trade_of(markets: str, *, sealed: bool, address_slots: int = ADDRESS_SLOTS) -> Trade:
    """
    Read what was given on the command line.

    Args:
        markets: names with commas, `all`, or empty: the default
        address_slots: how long a home trades under one address; 0: always

    Raises:
        ConfigError: no such market.
    """
    names = tuple(MARKETS) if markets == "all" else tuple(filter(None, markets.split(",")))
    for name in names:
        if name not in MARKETS:
            raise ConfigError(f"{name!r}: no such market; choose from {', '.join(MARKETS)}, or all")
    return Trade(names, sealed, address_slots)


@dataclass(frozen=True, slots=True)
class Service:
    """A service's identity on disk."""

    key: SigningKey
    folder: Path

    @property
    def key_file(self) -> Path:
        """The key's seed, readable by its owner only."""
        return self.folder / "service.key"

    @property
    def certificate_file(self) -> Path:
        """The certificate issued by the CSM-DB."""
        return self.folder / "certificate.json"


class Feeder:
    """The prepared folder of a run, and the words with which its processes are started."""

    def __init__(
        self,
        out: Path,
        homes: list[Home],
        slots: int,
        start_ms: int,
        trade: Trade = DEFAULT_TRADE,
    ) -> None:
        self.out = out.resolve()
        self.trade = trade
        self.homes = homes
        self.slots = slots
        self.start_ms = start_ms
        """Beginning of the first slot that is traded."""
        rng = SystemRng()
        self.box = BoxKey(rng.bytes(32))
        self.csmdb: CsmDb = create_csmdb(
            self.out / "csmdb", MARKET, slot_length_s=SLOT_S, clock=_FixedClock()
        )
        self.aggregator = self._service("aggregator", ["aggregator", "dso"])
        self.analytics = self._service("analytics", ["analytics"])
        self.validators = [
            self._service(f"ledger/validator-{n + 1}", ["validator"]) for n in range(VALIDATORS)
        ]
        self.hosts = [home for home in homes if home.validator][:VALIDATORS]
        """Homes that host a validator, in the validators' order."""
        self.genesis = self._write_genesis()
        self.claims = {home.name: self._claim(home) for home in homes}
        self.csmdb.close()
        self._sockets = self._socket_folder()
        (self.out / "profiles").mkdir()
        for home in homes:
            folder = self.home_folder(home)
            folder.mkdir(parents=True)
            save_home(home, self.out / "profiles" / f"{home.name}.json")

    @property
    def first_slot(self) -> int:
        """The first slot that is traded."""
        return self.start_ms // (SLOT_S * 1000)

    @property
    def end_ms(self) -> int:
        """End of the last slot that is traded."""
        return self.start_ms + self.slots * SLOT_S * 1000

    def home_folder(self, home: Home) -> Path:
        """Where a home keeps everything."""
        return self.out / "homes" / home.name

    def identity(self, home: Home) -> dict[str, str]:
        """`participant` and `address` of a home that has enrolled."""
        path = self.home_folder(home) / "data" / "identity.json"
        found: dict[str, str] = json.loads(path.read_text())
        return found

    # --- Words of the processes -----------------------------------------------------------------

    def broker_arguments(self, port_file: Path, port: int = 0) -> list[str]:
        """`broker …`"""
        folder = self.out / "broker"
        folder.mkdir(exist_ok=True)
        return [
            "run", "--port", str(port), "--genesis", str(self.out / "genesis.json"),
            "--state", str(folder / "broker.sqlite"), "--port-file", str(port_file),
        ]  # fmt: skip

    def device_arguments(self, ports_file: Path) -> list[str]:
        """`python -m sim.devices …`"""
        return ["--homes", str(self.out / "profiles"), "--ports-file", str(ports_file)]

    def csmdb_arguments(self, port: int) -> list[str]:
        """`csmdb …`"""
        return ["run", str(self.out / "csmdb"), "--port", str(port)]

    def ledger_folder(self, index: int) -> Path:
        """A validator's chain folder."""
        return self.validators[index].folder

    def ledger_arguments(self, index: int, port: int) -> list[str]:
        """`ledger …`"""
        service = self.validators[index]
        return [
            "run", str(service.folder), "--key-file", str(service.key_file),
            "--certificate", str(service.certificate_file), "--port", str(port),
            "--block-interval-ms", str(BLOCK_INTERVAL_MS),
        ]  # fmt: skip

    def aggregator_arguments(self, port: int) -> list[str]:
        """`aggregator …`; writes its configuration."""
        path = self.aggregator.folder / "aggregator.toml"
        path.write_text(
            f"""[service]
key = "service.key"
certificate = "certificate.json"
box_key = "dso-box.key"
data_dir = "data"

[broker]
host = "127.0.0.1"
port = {port}

[market]
genesis = "../genesis.json"
csmdb_box = "{to_text(self.csmdb.box.public)}"

[funding]
automatic = {str(not self.trade.withdraws).lower()}
deposit_uc = {DEPOSIT_UC}

[accounts]
opening_uc = {DEPOSIT_UC}

[flexibility]
sealed = {str(self.trade.sealed).lower()}

[[flexibility.deviation]]
slot_of_day = {self._deviation_slot()}
energy_wh = {DEVIATION_WH}
"""
        )
        return ["run", str(path)]

    def analytics_arguments(self, port: int, page_port: int, port_file: Path) -> list[str]:
        """`analytics …`"""
        folder = self.analytics.folder
        return [
            "run", "--key-file", str(self.analytics.key_file),
            "--certificate", str(self.analytics.certificate_file),
            "--genesis", str(self.out / "genesis.json"), "--data-dir", str(folder),
            "--port", str(port), "--web-port", str(page_port), "--port-file", str(port_file),
        ]  # fmt: skip

    def write_provisioning(self, port: int, devices: dict[str, Any]) -> None:
        """One provisioning file and one policy per home."""
        for home in self.homes:
            folder = self.home_folder(home)
            (folder / "provisioning.toml").write_text(
                self._provisioning(home, port, devices[home.name]["devices"])
            )
            if self.trade.markets:
                (folder / "policy.toml").write_text(self._policy())

    def _provisioning(self, home: Home, port: int, devices: list[dict[str, Any]]) -> str:
        lines = [
            "[home]",
            f'name = "{home.name}"',
            f'claim_code = "{self.claims[home.name]}"',
            'data_dir = "data"',
            "share_powers = true",  # the page of the operators is to show them
            "",
            "[broker]",
            'host = "127.0.0.1"',
            f"port = {port}",
            "",
            "[market]",
            f'name = "{MARKET}"',
            'genesis = "../../genesis.json"',
            f'csmdb = "{self.csmdb.id}"',
            f'csmdb_key = "{to_text(self.csmdb.issuing_key.public)}"',
            f'csmdb_box = "{to_text(self.csmdb.box.public)}"',
            f"last_slot = {self.first_slot + self.slots - 1}",
            "",
            "[gateway]",
            f'socket = "{self._sockets / (home.name + ".sock")}"',
        ]
        for device in devices:
            lines += ["", "[[devices]]"]
            lines += [f"{key} = {json.dumps(value)}" for key, value in device.items()]
        if home in self.hosts:
            hosted = self.validators[self.hosts.index(home)]
            lines += ["", "[validator]", f'id = "{hosted.key.id}"']
            lines += [f"folder = {json.dumps(str(hosted.folder))}"]
        return "\n".join(lines) + "\n"

    def _policy(self) -> str:
        return f"""# Where this home trades: in escrow first, then by the order book,
# then by schedule, then in the auction of the slot with what is left.
markets = {json.dumps(list(self.trade.markets))}

[escrow]
lead_slots = 6

[order_book]
lead_slots = 4

[schedules]
lead_slots = 2

[wallet]
withdraw = {str(self.trade.withdraws).lower()}
least_uc = {DEPOSIT_UC // 10}
target_uc = {DEPOSIT_UC // 2}
"""

    def _deviation_slot(self) -> int:
        """19:30, or the last slot of a run that ends before."""
        first = (self.start_ms - DAY_START_MS) // (SLOT_S * 1000)
        if first <= DEVIATION_SLOT_OF_DAY < first + self.slots:
            return DEVIATION_SLOT_OF_DAY
        return (first + self.slots - 1) % (86_400 // SLOT_S)

    # --- Preparation -----------------------------------------------------------------------------

    def _service(self, name: str, roles: list[str]) -> Service:
        folder = self.out / name
        folder.mkdir(parents=True)
        service = Service(SigningKey(SystemRng().bytes(32)), folder)
        write_secret(service.key_file, service.key.seed)
        certificate = self.csmdb.issue_service_certificate(service.key.public, roles, name)
        service.certificate_file.write_text(dump_text(certificate) + "\n")
        return service

    def _write_genesis(self) -> Genesis:
        write_secret(self.aggregator.folder / "dso-box.key", self.box.seed)
        genesis = Genesis(
            market=MARKET,
            slot_length_s=SLOT_S,
            start_ms=self.start_ms - WARM_UP_SLOTS * SLOT_S * 1000,
            issuing_key=to_text(self.csmdb.issuing_key.public),
            dso_box_key=to_text(self.box.public),
            supervisor=Supervisor(
                address=self.aggregator.key.id,
                key=to_text(self.aggregator.key.public),
                balance_uc=SUPERVISOR_UC,
            ),
            prices=PRICES,
            validators=tuple(
                GenesisValidator(id=v.key.id, key=to_text(v.key.public), controller=host.name)
                for v, host in zip(self.validators, self.hosts, strict=True)
            ),
            poe=Poe(window_slots=4, min_energy_wh=100, min_production_wh=50),
            delta0_ms=DELTA0_MS,
            auctions=(
                Auctions(sealed=True, reveal_s=REVEAL_S) if self.trade.sealed else msgspec.UNSET
            ),
            privacy=self.trade.privacy,
        )
        genesis = write_genesis(genesis, self.out / "genesis.json")
        for service in self.validators:
            shutil.copy(self.out / "genesis.json", service.folder / "genesis.json")
        return genesis

    def _claim(self, home: Home) -> str:
        host = home in self.hosts
        validator = self.validators[self.hosts.index(home)].key.id if host else ""
        roles = ["prosumer"] if any(home.pv_w) or home.battery else ["consumer"]
        return self.csmdb.add_claim(roles, home.max_import_w, home.max_export_w, FEEDER, validator)

    def _socket_folder(self) -> Path:
        inside = self.out / "run"
        longest = max(len(os.fsencode(inside / f"{home.name}.sock")) for home in self.homes)
        if longest <= SOCKET_PATH_BYTES_MAX:
            inside.mkdir(mode=0o700)
            return inside
        return Path(tempfile.mkdtemp(prefix="hearthgrid-"))


class _FixedClock:
    """Certificates of a run are dated a little before its first slot, whatever the date is."""

    def now_ms(self) -> int:
        """An hour before the run's day."""
        return DAY_START_MS - 3_600_000

    wall_ms = now_ms

    speed = 1.0

    def monotonic_s(self) -> float:
        """Not used while preparing."""
        return 0.0

    def real_seconds_until(self, market_ms: int) -> float:
        """Not used while preparing."""
        return max(0.0, (market_ms - self.now_ms()) / 1000)

    async def sleep_until(self, market_ms: int) -> None:
        """Not used while preparing."""


def build_feeder(
    out: Path,
    homes: int,
    seed: int,
    slots: int,
    profiles: Path | None,
    start_hour: int = 0,
    trade: Trade = DEFAULT_TRADE,
) -> Feeder:
    """
    Prepare a run's folder; what an earlier run left there is removed.

    Raises:
        ConfigError: `out` holds something else, or the profiles cannot be used.
    """
    days = slots * SLOT_S // 86_400 + 3
    if profiles is None:
        made = generate_homes(homes, seed, DAY_START_MS - SLOT_S * 1000, days)
    else:
        made = load_profiles(profiles, homes, seed, DAY_START_MS - SLOT_S * 1000, days)
    if sum(home.validator for home in made) < VALIDATORS:
        raise ConfigError(f"{profiles or 'homes'}: fewer than {VALIDATORS} homes have PV")
    _clear(out)
    return Feeder(out, made, slots, DAY_START_MS + start_hour * 3_600_000, trade)


def _clear(out: Path) -> None:
    try:
        if out.exists() and any(out.iterdir()):
            if not (out / MARKER).exists():
                raise ConfigError(f"{out}: not empty and not an earlier run; choose another --out")
            shutil.rmtree(out)
        out.mkdir(parents=True, exist_ok=True)
        (out / MARKER).write_text("made by hearthgrid demo; removed by the next one\n")
    except OSError as error:
        raise ConfigError(f"{out}: cannot be used as --out: {error.strerror}") from None
