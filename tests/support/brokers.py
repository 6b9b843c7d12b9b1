"""
Brokers and identities for tests: `import support.brokers`.

    authority = Authority()                       # an issuing key and its market
    async with running_broker(authority) as broker:
        bus = authority.bus(broker.port, key, roles={"validator"})
        await bus.start()

    with BrokerProcess(authority, tmp_path) as process:   # a real `broker run`
        process.kill(); process.start()                   # the same port again
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from broker.access import Trust
from broker.embedded import EmbeddedBroker
from broker.quota import Quota
from runtime.bus import MqttBus, lane
from runtime.clock import SystemClock
from runtime.rng import SystemRng
from wire.certificates import AddressGrant, Certificate, Signed, seal
from wire.keys import SigningKey, to_text

REPOSITORY = Path(__file__).resolve().parents[2]
DAY_MS = 86_400_000


def make_key(name: str) -> SigningKey:
    """A repeatable key."""
    return SigningKey(bytes(32)).derive(name)


class Authority:
    """An issuing key of one market, and what it signs."""

    def __init__(self, market: str = "test", key: SigningKey | None = None) -> None:
        self.market = market
        self.key = key or make_key("issuing")
        self.clock = SystemClock()

    @property
    def trust(self) -> Trust:
        return Trust(self.market, self.key.public)

    def certificate(
        self,
        key: SigningKey,
        roles: Iterable[str],
        not_before_ms: int | None = None,
        not_after_ms: int | None = None,
    ) -> Certificate:
        """A participant's or service's certificate, valid today unless told otherwise."""
        now_ms = self.clock.now_ms()
        unsigned = Certificate(
            subject=key.id,
            key=to_text(key.public),
            roles=sorted(roles),
            feeder="feeder-1",
            max_import_w=20_000,
            max_export_w=20_000,
            not_before_ms=now_ms - DAY_MS if not_before_ms is None else not_before_ms,
            not_after_ms=now_ms + DAY_MS if not_after_ms is None else not_after_ms,
            serial_no=1,
            meter=[],
        )
        return seal(unsigned, self.key, self.market)

    def grant(self, key: SigningKey, end_slot: int | None = None) -> AddressGrant:
        """A grant to trade under the address of `key`."""
        slot = self.clock.now_ms() // 900_000
        unsigned = AddressGrant(
            address=key.id,
            key=to_text(key.public),
            meter_key=to_text(make_key("meter").public),
            can_buy=True,
            can_sell=True,
            max_buy_wh=10_000,
            max_sell_wh=10_000,
            start_slot=slot - 4,
            end_slot=slot + 96 if end_slot is None else end_slot,
        )
        return seal(unsigned, self.key, self.market)

    def bus(
        self,
        port: int,
        key: SigningKey,
        roles: Iterable[str] = (),
        will: tuple[str, bytes, bool] | None = None,
        credential: Signed | None = None,
    ) -> MqttBus:
        """A lane: with `roles` certified, with {"address"} granted, without any unenrolled."""
        names = set(roles)
        if credential is None and names:
            granted = names == {"address"}
            credential = self.grant(key) if granted else self.certificate(key, names)
        return lane(
            key, self.market, credential, "127.0.0.1", port, self.clock, SystemRng(), will=will
        )


@asynccontextmanager
async def running_broker(
    authority: Authority,
    state: Path | None = None,
    port: int = 0,
    connect_timeout_s: float = 5.0,
    limited: bool = True,
) -> AsyncIterator[EmbeddedBroker]:
    """An embedded broker in this process, on a free port (`broker.port`)."""
    broker = EmbeddedBroker(
        authority.trust,
        authority.clock,
        port=port,
        state=state,
        connect_timeout_s=connect_timeout_s,
        quota=Quota(limited=limited),
    )
    await broker.start()
    try:
        yield broker
    finally:
        await broker.shutdown()


class BrokerProcess:
    """A real `broker run`, which can be killed and started again on the same port."""

    def __init__(self, authority: Authority, folder: Path) -> None:
        self._folder = folder
        self._market = authority.market
        self._key_file = folder / "issuing.key"
        self._key_file.write_text(to_text(authority.key.public) + "\n")
        self._process: subprocess.Popen[str] | None = None
        self.port = 0

    def __enter__(self) -> BrokerProcess:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start (again, on the port it had) and wait until it listens."""
        command = [
            sys.executable, "-m", "broker.cli", "run", "--json",
            "--port", str(self.port),
            "--market", self._market,
            "--issuing-key-file", str(self._key_file),
            "--state", str(self._folder / "broker.sqlite"),
        ]  # fmt: skip
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            text=True,
            cwd=self._folder,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the broker did not start"
        self.port = json.loads(line)["port"]

    def kill(self) -> None:
        """SIGKILL: no chance to write anything."""
        self._end(signal.SIGKILL)

    def stop(self) -> int | None:
        """SIGTERM, and the exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> int | None:
        process, self._process = self._process, None
        if process is None:
            return None
        process.send_signal(number)
        code = process.wait(10)
        if process.stdout is not None:
            process.stdout.close()
        return code
