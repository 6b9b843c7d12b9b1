"""
A market around one home: broker, CSM-DB, four validators, aggregator and devices as processes.

The home's own processes run as they do on its computer: gateway and HEM side by side, each started
by itself (as systemd does). The light client of the ledger is a part of the HEM.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

from bench.brokers import HOST, Embedded
from bench.workload import VALIDATORS, new_key
from csmdb.setup import create
from hem.summary import EMS_FILE, summary_of
from ledger.genesis import Genesis, GenesisValidator, Supervisor, write_genesis
from runtime.clock import SystemClock
from runtime.keyfiles import write_secret
from sim.homes import CONNECTION_W, BatterySpec, Home, save_home
from sim.processes import Child, Processes
from wire.certificates import dump_text
from wire.errors import ConfigError
from wire.keys import BoxKey, SigningKey, to_text
from wire.slots import SlotGrid

MARKET = "bench"
LOAD_W, PV_W = 30_000, 1_500
"""A load that needs energy even in a slot of four seconds."""
INVERTERS = 3
DEVICES = INVERTERS + 2
"""A meter, inverters, a battery."""
GATEWAY, HEM = "gateway", "hem"
OURS = (GATEWAY, HEM)
READY_S = 120.0
POLL_S = 0.01
LIMIT_W = 2 * CONNECTION_W


class HomeMarket:
    """
    A market with one home that has not run yet.

    Args:
        folder: everything is written here
        slot_s: length of its slots [s]
    """

    def __init__(self, folder: Path, slot_s: int) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self.grid = SlotGrid(slot_s)
        # modules are compiled once, as in an installation: compiling costs a process MBs
        self.processes = Processes(folder / "logs", {"PYTHONDONTWRITEBYTECODE": ""})
        self._box = BoxKey(new_key().seed)
        self._csmdb = create(folder / "csmdb", MARKET, slot_length_s=slot_s)
        self._keys = {f"validator-{n}": self._service(f"validator-{n}", "validator")
                      for n in range(VALIDATORS)}  # fmt: skip
        self._supervisor = self._service("aggregator", "aggregator", "dso")
        self._genesis()
        self._claim = self._csmdb.add_claim(["prosumer"], LIMIT_W, LIMIT_W, "feeder-1")
        self._csmdb.close()

    @property
    def home(self) -> Path:
        """The home's folder: provisioning, keys, databases."""
        return self._folder / "home"

    @property
    def socket(self) -> Path:
        """The gateway's."""
        return self.home / "gateway.sock"

    # --- what is not counted --------------------------------------------------------------------

    def start(self) -> None:
        """
        Start everything but the home.

        Raises:
            ConfigError, ProcessDiedError: something did not come up.
        """
        broker = Embedded(
            self.processes, self._folder / "broker", MARKET, self._csmdb.issuing_key.public
        )
        self._port = broker.port
        self.processes.start(
            "csmdb", "csmdb.cli", "run", self._folder / "csmdb", "--port", self._port
        )
        for name in self._keys:
            self.processes.start(name, "ledger.cli", "run", *self._ledger_words(name))
        self._start_aggregator()
        listing = self._start_devices()
        self._write_provisioning(listing)
        self.until("the validators", lambda: all(self._speaks(name) for name in self._keys))

    def stop(self) -> None:
        """End every process."""
        self.processes.stop()

    def until(self, what: str, condition: Callable[[], bool], timeout_s: float = READY_S) -> float:
        """
        Wait for something.

        Returns:
            When it was there (`time.monotonic`) [s].

        Raises:
            ConfigError: not in time.
            ProcessDiedError: a process has ended.
        """
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            self.processes.check()
            if time.monotonic() > deadline_s:
                raise ConfigError(f"{what}: not within {timeout_s:.0f} s; see the logs (--keep)")
            time.sleep(POLL_S)
        return time.monotonic()

    # --- the home -------------------------------------------------------------------------------

    def start_home(
        self, profiles: Path | None = None, names: Collection[str] = OURS
    ) -> dict[str, Child]:
        """
        Start the home's processes.

        Args:
            profiles: write a profile of each process' imports into this folder when it ends
            names: only these
        """
        file = self.home / "provisioning.toml"
        words: dict[str, list[str | Path | int]] = {
            GATEWAY: ["hem.cli", "gateway", file],
            HEM: ["hem.cli", "run", "--no-gateway", file],
        }
        found = {}
        for name, (module, *rest) in ((name, words[name]) for name in names):
            if profiles is None:
                found[name] = self.processes.start(name, str(module), *rest)
            else:
                out = profiles / f"{name}.json"
                found[name] = self.processes.start(name, "bench.hem_imports", out, module, *rest)
        return found

    def stop_home(self, names: Sequence[str] = OURS) -> None:
        """End the home's processes, as its computer would when it is switched off in order."""
        self.processes.stop(list(reversed(names)))

    def page(self) -> bool:
        """Open the home's page, as its owner would; is there one?"""
        url = (self.home / "data" / "http.url").read_text().strip()
        try:
            with urlopen(url, timeout=READY_S) as reply:
                kind: str = reply.headers.get_content_type()
        except HTTPError:
            return False
        return kind == "text/html"

    def log_size(self, name: str) -> int:
        """Bytes of a process' log so far; give it to `says` to hear only what comes after."""
        path = self._folder / "logs" / f"{name}.log"
        return path.stat().st_size if path.exists() else 0

    def says(self, name: str, event: str, after: int = 0) -> bool:
        """Has a process logged that event?"""
        path = self._folder / "logs" / f"{name}.log"
        return path.exists() and f'"event": "{event}"'.encode() in path.read_bytes()[after:]

    def light(self) -> str:
        """What the home's light client says of its balance; empty before it says anything."""
        path = self.home / "data" / EMS_FILE
        try:
            light: str = summary_of(path.parent)["light"]["state"] if path.exists() else ""
        except (sqlite3.OperationalError, ConfigError):  # it is just being made, or written
            return ""
        return light

    def registered(self) -> bool:
        """The home's address is known on the ledger."""
        return b"OK" in self._outbox("key/register/")

    def accepted_bids(self) -> int:
        """Of the home, as it has heard by finalised events."""
        return sum(state == b"OK" for state in self._outbox("key/bid/"))

    def closed_slots(self) -> int:
        """Slots whose meter receipt the ledger has taken."""
        return sum(state == b"OK" for state in self._outbox("key/receipt/"))

    def _outbox(self, prefix: str) -> list[bytes]:
        path = self.home / "data" / "outbox.sqlite"
        if not path.exists():
            return []
        try:
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
                found = db.execute("SELECT value FROM kv WHERE substr(key, 1, ?) = ?",
                                   (len(prefix), prefix)).fetchall()  # fmt: skip
        except sqlite3.OperationalError:  # it is just being made
            return []
        return [row[0] for row in found]

    # --- setting up -----------------------------------------------------------------------------

    def _service(self, name: str, *roles: str) -> SigningKey:
        folder = self._folder / name
        folder.mkdir()
        key = new_key()
        write_secret(folder / "service.key", key.seed)
        certificate = self._csmdb.issue_service_certificate(key.public, list(roles), name)
        (folder / "certificate.json").write_text(dump_text(certificate))
        return key

    def _genesis(self) -> None:
        write_secret(self._folder / "aggregator" / "dso-box.key", self._box.seed)
        genesis = Genesis(
            market=MARKET,
            slot_length_s=self.grid.length_s,
            start_ms=SystemClock().now_ms() - 3_600_000,
            issuing_key=to_text(self._csmdb.issuing_key.public),
            dso_box_key=to_text(self._box.public),
            gate_lead_s=1 if self.grid.length_s < 60 else 60,
            supervisor=Supervisor(
                address=self._supervisor.id,
                key=to_text(self._supervisor.public),
                balance_uc=10**12,
            ),
            validators=tuple(
                GenesisValidator(id=key.id, key=to_text(key.public), controller=name)
                for name, key in self._keys.items()
            ),
        )
        for name in ("", *self._keys):
            write_genesis(genesis, self._folder / name / "genesis.json")

    def _ledger_words(self, name: str) -> list[str | Path | int]:
        folder = self._folder / name
        return [
            folder, "--key-file", folder / "service.key",
            "--certificate", folder / "certificate.json", "--host", HOST, "--port", self._port,
        ]  # fmt: skip

    def _speaks(self, validator: str) -> bool:
        return self.says(validator, "starting")

    def _start_aggregator(self) -> None:
        path = self._folder / "aggregator" / "aggregator.toml"
        path.write_text(
            f"""[broker]
port = {self._port}
[market]
genesis = "../genesis.json"
csmdb_box = "{to_text(self._csmdb.box.public)}"
"""
        )
        self.processes.start("aggregator", "aggregator.cli", "run", path)

    def _start_devices(self) -> list[dict[str, object]]:
        """A home's meter, inverter and battery on one port; two more inverters on their own."""
        homes = self._folder / "devices"
        homes.mkdir()
        for number in range(INVERTERS):
            battery = BatterySpec(10_000, 5_000, 5_000, soc0_permille=500) if number == 0 else None
            home = Home(
                name=f"home-{number + 1}", kind="pv", interval_s=900, start_ms=0,
                load_w=[LOAD_W], pv_w=[PV_W], battery=battery, max_import_w=LIMIT_W,
            )  # fmt: skip
            save_home(home, homes / f"{home.name}.json")
        ports = self._folder / "devices.json"
        self.processes.start("devices", "sim.devices", "--homes", homes, "--ports-file", ports)
        self.until("the devices", ports.exists)
        found: list[dict[str, object]] = []
        for number, row in enumerate(json.loads(ports.read_text()).values()):
            wanted = {"meter", "pv", "battery"} if number == 0 else {"pv"}
            for device in row["devices"]:
                if device["name"] in wanted:
                    found.append({**device, "name": f"{device['name']}-{number + 1}"})
        assert len(found) == DEVICES
        return found

    def _write_provisioning(self, devices: list[dict[str, object]]) -> None:
        self.home.mkdir()
        lines = [
            "[home]", 'name = "home-1"', f'claim_code = "{self._claim}"', 'data_dir = "data"',
            "[broker]", f'host = "{HOST}"', f"port = {self._port}",
            "[market]", f'name = "{MARKET}"', 'genesis = "../genesis.json"',
            f'csmdb = "{self._csmdb.id}"',
            f'csmdb_key = "{to_text(self._csmdb.issuing_key.public)}"',
            f'csmdb_box = "{to_text(self._csmdb.box.public)}"',
            "[gateway]", f'socket = "{self.socket.name}"',
        ]  # fmt: skip
        lines += ["[http]", "port = 0"]
        for device in devices:
            lines += ["[[devices]]", *(f"{key} = {json.dumps(v)}" for key, v in device.items())]
        (self.home / "provisioning.toml").write_text("\n".join(lines) + "\n")
