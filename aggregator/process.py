"""The aggregator's process: files, lane, service; and what `aggregator status` shows."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from aggregator.accounts import Accounts
from aggregator.config import (
    AccountsSection,
    AggregatorConfig,
    Flexibility,
    Funding,
    load_config,
)
from aggregator.core import FlexibilityPolicy, FundingPolicy
from aggregator.store import AggregatorStore
from aggregator.withdrawals import SafetyPolicy
from ledger.genesis import Genesis, load_genesis
from runtime.bus import lane
from runtime.clock import clock_from_environment
from runtime.keyfiles import read_key, read_secret
from runtime.log import configure
from runtime.ports import Bus, Clock, Rng
from runtime.process import run_until_stopped
from runtime.rng import SystemRng
from runtime.store import SqliteStore
from wire.certificates import Certificate, parse
from wire.errors import ConfigError, WireError
from wire.keys import BoxKey, SigningKey, from_text, to_text

DATABASE = "aggregator.sqlite"
OUTBOX = "outbox.sqlite"
ACCOUNTS = "accounts.sqlite"


def run_aggregator(config_path: Path, port: int | None = None) -> None:
    """
    Run until SIGTERM or SIGINT.

    Args:
        port: the broker's, instead of the configured one

    Raises:
        ConfigError: a file is missing or wrong, or they do not belong together.
    """
    from aggregator.service import Aggregator, running  # noqa: PLC0415  (status needs none of it)

    config = load_config(config_path)
    log = configure("aggregator")
    genesis = load_genesis(config.market.genesis)
    key, box = load_keys(config, genesis)
    certificate = read_certificate(config.service.certificate, key)
    folder = config.service.data_dir
    folder.mkdir(parents=True, exist_ok=True)
    store, outbox = AggregatorStore(folder / DATABASE), SqliteStore(folder / OUTBOX)
    accounts = Accounts(folder / ACCOUNTS, config.accounts.opening_uc)
    log.info("starting", id=key.id, chain=genesis.chain_id)

    def build(bus: Bus, clock: Clock, rng: Rng) -> Aggregator:
        return Aggregator(
            genesis, key, box, from_text(config.market.csmdb_box), bus, store, outbox, clock, rng,
            funding_policy(config.funding), flexibility_policy(config.flexibility),
            config.schedule.net_wh_by_slot, config.schedule.history_days, accounts,
            safety_policy(config.accounts),
        )  # fmt: skip

    async def main() -> None:
        clock, rng = clock_from_environment(), SystemRng()
        broker = config.broker
        bus = lane(
            key, genesis.market, certificate, broker.host, port or broker.port, clock, rng
        )  # fmt: skip
        async with running(build(bus, clock, rng)):
            await bus.start()
            try:
                await asyncio.Event().wait()
            finally:
                await bus.stop()

    try:
        run_until_stopped(main)
    finally:
        store.close()
        outbox.close()
        accounts.close()


def load_keys(config: AggregatorConfig, genesis: Genesis) -> tuple[SigningKey, BoxKey]:
    """
    The service key and the DSO's box key.

    Raises:
        ConfigError: they are not the genesis' supervisor and DSO.
    """
    key = read_key(config.service.key)
    box = BoxKey(read_secret(config.service.box_key))
    if key.id != genesis.supervisor.address:
        raise ConfigError(f"{config.service.key}: not the supervisor's key of the genesis")
    if to_text(box.public) != genesis.dso_box_key:
        raise ConfigError(f"{config.service.box_key}: not the DSO's box key of the genesis")
    return key, box


def read_certificate(path: Path, key: SigningKey) -> Certificate:
    """
    Our certificate.

    Raises:
        ConfigError: missing, not a certificate, another's, or without our roles.
    """
    try:
        certificate = parse(Certificate, path.read_text().strip())
    except (OSError, UnicodeDecodeError, WireError) as error:
        raise ConfigError(f"{path}: not a certificate ({error})") from None
    if certificate.subject != key.id:
        raise ConfigError(f"{path}: certificate of {certificate.subject}, not of {key.id}")
    if not {"aggregator", "dso"} <= set(certificate.roles):
        raise ConfigError(f"{path}: needs the roles aggregator and dso")
    return certificate


def funding_policy(section: Funding) -> FundingPolicy:
    """The section as the core takes it."""
    return FundingPolicy(
        section.deposit_uc, section.production_wh, section.consumption_wh, section.slots,
        section.automatic,
    )  # fmt: skip


def safety_policy(section: AccountsSection) -> SafetyPolicy:
    """The section as the desk takes it."""
    return SafetyPolicy(section.opening_uc, section.plant_w, section.feeder_w)


def flexibility_policy(section: Flexibility) -> FlexibilityPolicy:
    """The section as the core takes it."""
    return FlexibilityPolicy(
        band_wh=section.band_wh,
        cap_uc_per_kwh=section.cap_uc_per_kwh,
        floor_uc_per_kwh=section.floor_uc_per_kwh,
        ahead_slots=section.ahead_slots,
        max_energy_wh=section.max_energy_wh,
        pricing=section.pricing,
        known_wh={each.slot_of_day: each.energy_wh for each in section.deviation},
    )


def read_status(config_path: Path) -> dict[str, Any]:
    """
    What the aggregator has done so far, from its files; it may be running.

    Raises:
        ConfigError: it has never run with this configuration.
    """
    folder = load_config(config_path).service.data_dir
    if not (folder / DATABASE).exists():
        raise ConfigError(f"{folder}: the aggregator has not run yet")
    store = AggregatorStore(folder / DATABASE)
    try:
        return {
            "counts": store.counts(),
            "totals": store.totals(),
            "heights": store.heights(),
            "auctions": [
                {"auction": event["auction"], "slot": event["slot"], "boughtWh": bought_wh}
                for event, bought_wh in store.auctions()
            ],
            "evidence": store.evidence()[-20:],
        }
    finally:
        store.close()
