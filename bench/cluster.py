"""Four validators as processes behind a broker, and the audit of what they kept."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Iterable, Set
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

from bench.brokers import HOST, Embedded, Mosquitto, RunningBroker, context_of
from bench.limits import cpu_s
from bench.load import Publisher, connect
from bench.watch import Watch
from bench.workload import MARKET, Market
from ledger.genesis import Genesis, genesis_bytes
from ledger.store import LedgerStore
from runtime.bus import lane
from runtime.clock import SystemClock
from runtime.keyfiles import write_secret
from runtime.rng import SystemRng
from sim.processes import Child, Processes
from wire.certificates import Certificate, Signed, dump_text, seal
from wire.errors import ConfigError
from wire.keys import SigningKey, to_text

DAY_MS = 86_400_000
MOSQUITTO, EMBEDDED = "mosquitto", "embedded"
BROKERS = (MOSQUITTO, EMBEDDED)


@dataclass(slots=True)
class Audit:
    """What the validators' stores hold of what was sent."""

    executed: int = 0
    waiting: int = 0
    """Not yet in a block when the run ended: it was sent more than the machine carries."""
    lost: int = 0
    """Said to be final, and in no block."""
    refused: Counter[str] = field(default_factory=Counter)
    """Operations (or transactions) with another code than OK."""
    same: bool = True
    """All validators hold the same block with the same state at their lowest tip."""
    heights: list[int] = field(default_factory=list)


class Cluster:
    """
    A broker and its validators.

    Args:
        folder: everything is written here
        broker: `mosquitto` or `embedded`
        quotas: of the embedded one
    """

    def __init__(
        self, folder: Path, market: Market, genesis: Genesis, broker: str, *, quotas: bool = False
    ) -> None:
        self._folder = folder
        self._market = market
        self.genesis = genesis
        self.processes = Processes(
            folder / "logs", {"HEARTHGRID_LOG": os.environ.get("HEARTHGRID_LOG", "warning")}
        )
        self.names = {key.id: f"validator-{n}" for n, key in enumerate(market.validators)}
        self.broker = self._start_broker(broker, quotas=quotas)
        self._spent_s = 0.0
        """Processor time of killed processes."""

    def _start_broker(self, name: str, *, quotas: bool) -> RunningBroker:
        folder = self._folder / "broker"
        if name == EMBEDDED:
            return Embedded(
                self.processes, folder, MARKET, self._market.issuing.public, quotas=quotas
            )  # fmt: skip
        if name != MOSQUITTO:
            raise ConfigError(f"--broker {name}: want {' or '.join(BROKERS)}")
        services = {key.id: frozenset({"validator"}) for key in self._market.validators}
        services[self._market.supervisor.id] = frozenset({"aggregator", "dso"})
        services[self._market.observer.id] = frozenset({"observer"})
        return Mosquitto(self.processes, folder, MARKET, services)

    def start_validators(self) -> None:
        """Start `ledger run` four times."""
        for key in self._market.validators:
            self._start_validator(key)

    def _start_validator(self, key: SigningKey) -> None:
        name = self.names[key.id]
        folder = self.chain_folder(key.id)
        folder.mkdir()
        (folder / "genesis.json").write_bytes(genesis_bytes(self.genesis))
        write_secret(folder / "validator.key", key.seed)
        (folder / "certificate.json").write_text(dump_text(self.certificate(key, "validator")))
        tls = self.broker.tls_folder(key.id)
        self.processes.start(
            name, "ledger.cli", "run", folder, "--key-file", folder / "validator.key",
            "--certificate", folder / "certificate.json", "--host", HOST,
            "--port", self.broker.port, *(("--tls", tls) if tls is not None else ()),
        )  # fmt: skip

    def chain_folder(self, validator: str) -> Path:
        """Where a validator keeps its chain."""
        return self._folder / self.names[validator]

    def certificate(self, key: SigningKey, *roles: str) -> Certificate:
        """A service's certificate, valid for a day."""
        unsigned = Certificate(
            subject=key.id, key=to_text(key.public), roles=sorted(roles), feeder="feeder-1",
            max_import_w=0, max_export_w=0, not_before_ms=self._market.now_ms - DAY_MS,
            not_after_ms=self._market.now_ms + DAY_MS, serial_no=1, meter=[],
        )  # fmt: skip
        return seal(unsigned, self._market.issuing, MARKET)

    def watch(self) -> Watch:
        """An observer, not started."""
        key = self._market.observer
        bus = lane(
            key, MARKET, self.certificate(key, "observer"), HOST, self.broker.port, SystemClock(),
            SystemRng(), tls=context_of(self.broker, key.id),
        )  # fmt: skip
        return Watch(bus, key.id, self.genesis)

    async def connect(self, credentials: Iterable[tuple[SigningKey, Signed]]) -> list[Publisher]:
        """A publisher for each key, a few at a time."""
        gate = asyncio.Semaphore(8)

        async def one(key: SigningKey, credential: Signed) -> Publisher:
            async with gate:
                return await connect(
                    key, MARKET, credential, HOST, self.broker.port,
                    lambda identity: context_of(self.broker, identity),
                )  # fmt: skip

        return await asyncio.gather(*(one(key, held) for key, held in credentials))

    def validator(self, identity: str) -> Child:
        """The process of a validator."""
        return self.processes.children[self.names[identity]]

    def cpu_s(self) -> tuple[float, float]:
        """Processor time of all validators so far, killed ones too, and of the broker [s]."""
        running_s = sum(cpu_s(self.validator(identity).pid) for identity in self.names)
        return self._spent_s + running_s, cpu_s(self.broker.child.pid)

    def kill(self, identity: str) -> None:
        """`kill -9` at once; whoever starts it again reaps it."""
        pid = self.validator(identity).pid
        self._spent_s += cpu_s(pid)
        os.kill(pid, signal.SIGKILL)

    def audit(self, sent: Set[bytes], waiting: Set[bytes]) -> Audit:
        """
        Look into the stores of stopped validators.

        Args:
            sent: txids of everything that was sent
            waiting: those of them that never were said to be final
        """
        found = Audit()
        with ExitStack() as stack:
            stores = [
                stack.enter_context(closing(LedgerStore.in_folder(folder, read_only=True)))
                for folder in map(self.chain_folder, self.names)
            ]
            found.heights = [store.height for store in stores]
            low = [store.get_block(min(found.heights)) for store in stores]
            found.same = len({(b.hash, b.state_root) if b else None for b in low}) == 1
            fullest = max(stores, key=lambda store: store.height)
            missing = set(sent)
            for height in range(1, fullest.height + 1):
                for receipt in fullest.receipts(height):
                    txid = bytes.fromhex(receipt["txid"])
                    if txid not in missing:
                        continue
                    missing.discard(txid)
                    found.executed += 1
                    codes = receipt["codes"] if receipt["code"] == "OK" else [receipt["code"]]
                    found.refused.update(code for code in codes if code != "OK")
            found.waiting = len(missing & waiting)
            found.lost = len(missing - waiting)
        return found
