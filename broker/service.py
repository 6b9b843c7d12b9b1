"""The broker as a process: start, say where, run until told to stop."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sqlite3
import sys
from dataclasses import dataclass
from pathlib import Path

import structlog
from amqtt.errors import BrokerError

from broker.access import Trust
from broker.embedded import EmbeddedBroker
from broker.quota import Quota
from broker.revocations import Revocations, follow, opened
from runtime.clock import clock_from_environment
from runtime.sdnotify import alive
from wire.errors import ConfigError, MalformedError
from wire.keys import KEY_BYTES, from_text
from wire.slots import SlotGrid

log = structlog.get_logger(component="broker")


@dataclass(frozen=True, slots=True)
class Settings:
    """What `broker run` was asked for."""

    trust: Trust
    host: str
    port: int
    state: Path | None
    port_file: Path | None
    as_json: bool
    certfile: Path | None = None
    keyfile: Path | None = None
    quotas: bool = True
    cafile: Path | None = None
    """Of the CSM-DB's X.509 authority: clients must show its certificates."""
    revocations: str | None = None
    """Where the list of revoked keys is: a file, or the CSM-DB's door."""


def load_trust(market: str | None, genesis: Path | None, issuing_key_file: Path | None) -> Trust:
    """
    The market and its issuing key, from a genesis file or given one by one.

    Raises:
        ConfigError: a file is missing or wrong; the message names it and what would be right.
    """
    if genesis is not None:
        return _trust_of_genesis(genesis, market)
    if issuing_key_file is None or market is None:
        raise ConfigError("give --genesis FILE, or --market NAME and --issuing-key-file FILE")
    return Trust(market, _key(_read(issuing_key_file).strip(), str(issuing_key_file)))


async def serve(settings: Settings) -> None:
    """
    Run until SIGTERM or SIGINT.

    Raises:
        ConfigError: the port is taken, or a file cannot be used.
    """
    # amqtt logs a traceback for what we tell in one line
    logging.getLogger("amqtt").setLevel(logging.CRITICAL)
    revocations = Revocations(settings.trust, _kept_list(settings.state))
    fetch = opened(settings.revocations, settings.cafile) if settings.revocations else None
    try:
        broker = EmbeddedBroker(
            settings.trust,
            clock_from_environment(),
            settings.host,
            settings.port,
            settings.state,
            settings.certfile,
            settings.keyfile,
            quota=Quota(limited=settings.quotas),
            cafile=settings.cafile if settings.certfile is not None else None,
            revocations=revocations,
        )
    except (sqlite3.Error, OSError) as error:
        raise ConfigError(f"cannot use {settings.state or settings.certfile}: {error}") from None
    try:
        await broker.start()
    except (BrokerError, OSError) as error:
        raise ConfigError(
            f"cannot listen on {settings.host}:{settings.port}: {error.__cause__ or error}"
        ) from None
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    failed = broker.journal.failed = loop.create_future()
    failed.add_done_callback(lambda _: stop.set())
    _announce(settings, broker.port)
    following = None
    if fetch is not None:
        following = asyncio.create_task(follow(revocations, fetch, broker.end_revoked))
    async with alive():
        await stop.wait()
    if following is not None:
        following.cancel()
    if failed.done():
        log.error("state file cannot be written, stopping", reason=str(failed.exception()))
        raise ConfigError(f"cannot write {settings.state}: {failed.exception()}")
    await broker.shutdown()


def _kept_list(state: Path | None) -> Path | None:
    """Beside the sessions, or nowhere."""
    return state.with_name(f"{state.name}.revocations") if state is not None else None


def _announce(settings: Settings, port: int) -> None:
    """Say where we listen: on standard output, and in the port file (whole, or not at all)."""
    if settings.port_file is not None:
        temporary = settings.port_file.with_suffix(".tmp")
        temporary.write_text(f"{port}\n")
        temporary.replace(settings.port_file)
    facts = {"host": settings.host, "port": port, "market": settings.trust.market}
    text = json.dumps(facts) if settings.as_json else "broker on {host}:{port}, market {market}"
    sys.stdout.write((text if settings.as_json else text.format(**facts)) + "\n")
    sys.stdout.flush()


def _trust_of_genesis(path: Path, market: str | None) -> Trust:
    try:
        genesis = json.loads(_read(path))
        named, key, length_s = genesis["market"], genesis["issuingKey"], genesis["slotLengthS"]
        grid = SlotGrid(int(length_s))
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: not a genesis file (market, issuingKey, slotLengthS): {error!r}"
        ) from None
    if market is not None and market != named:
        raise ConfigError(f"{path}: market is {named!r}, not {market!r}")
    return Trust(str(named), _key(str(key), str(path)), grid)


def _key(text: str, where: str) -> bytes:
    try:
        return from_text(text, KEY_BYTES)
    except MalformedError:
        raise ConfigError(f"{where}: the issuing key is not 32 bytes of base64url") from None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {getattr(error, 'strerror', error)}") from None
