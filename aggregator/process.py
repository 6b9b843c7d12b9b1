"""The aggregator's process: files, lane, service; and what `aggregator status`
and `aggregator schedule` show."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any

from aggregator.accounts import Accounts
from aggregator.bills import Bills
from aggregator.config import (
    AccountsSection,
    Adjustment,
    AggregatorConfig,
    DsoSection,
    Flexibility,
    Funding,
    Proposal,
    Schedule,
    load_config,
)
from aggregator.core import (
    AdjustmentPolicy,
    FlexibilityPolicy,
    FundingPolicy,
    KeyedOperation,
    propose,
)
from aggregator.day_ahead import DAY_S, enough
from aggregator.grid_limits import GridPolicy, Works
from aggregator.scheduler import SchedulePolicy
from aggregator.store import AggregatorStore
from aggregator.withdrawals import SafetyPolicy
from ledger.genesis import Genesis, load_genesis
from runtime.bus import lane
from runtime.clock import clock_from_environment
from runtime.keyfiles import read_key, read_secret
from runtime.lane_tls import certified, service_tls
from runtime.log import configure
from runtime.ports import Bus, Clock, Rng
from runtime.process import run_service
from runtime.rng import SystemRng
from runtime.store import SqliteStore
from wire.certificates import Certificate, parse
from wire.errors import ConfigError, WireError
from wire.keys import BoxKey, SigningKey, from_text, is_id, to_text
from wire.slots import SlotGrid

CONFIG = "aggregator.toml"
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
    check_funding(config, genesis)
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
            schedule_policy(config.schedule), accounts, safety_policy(config.accounts),
            grid_policy(config.dso), config.approve, adjustment_policy(config.adjustment),
            [_proposal(one, genesis.grid) for one in config.propose],
        )  # fmt: skip

    async def main() -> None:
        clock, rng = clock_from_environment(), SystemRng()
        broker = config.broker
        own = service_tls(
            broker.ca, broker.door, folder / "tls", key, genesis.market,
            genesis.issuer, clock, rng,
        )  # fmt: skip
        bus = lane(
            key, genesis.market, certificate, broker.host, port or broker.port, clock, rng,
            tls=own.context_for(key.id) if own is not None else None,
        )  # fmt: skip
        async with certified(own, key.id), running(build(bus, clock, rng)):
            await bus.start()
            try:
                await asyncio.Event().wait()
            finally:
                await bus.stop()

    try:
        run_service(main)
    finally:
        store.close()
        outbox.close()
        accounts.close()


def check_funding(config: AggregatorConfig, genesis: Genesis) -> None:
    """
    Raise where every fresh address would be given money of its own.

    Raises:
        ConfigError: automatic funding in a market whose addresses change.
    """
    if genesis.rotation is not None and config.funding.automatic:
        raise ConfigError(
            "funding.automatic: the addresses of this market change, and each would be given money;"
            " set it to false, and what accounts hold at first in [accounts] opening_uc"
        )


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
    return SafetyPolicy(
        section.opening_uc, section.plant_w, section.feeder_w, section.credit_uc, section.batch_s
    )


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
        sealed=section.sealed,
    )


def schedule_policy(section: Schedule) -> SchedulePolicy:
    """The section as the scheduler takes it."""
    return SchedulePolicy(section.net_wh_by_slot, section.history_days, section.lead_hours)


def grid_policy(section: DsoSection) -> GridPolicy:
    """The section as the DSO's rule takes it."""
    works = [Works(**limit.model_dump()) for limit in section.limit]
    return GridPolicy(section.rating_import_w, section.rating_export_w, works)


def adjustment_policy(section: Adjustment) -> AdjustmentPolicy:
    """The section as the core takes it."""
    return AdjustmentPolicy(section.automatic, section.margin_s)


def _proposal(section: Proposal, grid: SlotGrid) -> KeyedOperation:
    from_ms = int(section.active_from.timestamp() * 1000)
    return propose(section.path, section.value, from_ms, grid)


def read_schedule(config_path: Path, day: str = "") -> dict[str, Any]:
    """
    One day's schedule as asked and approved, beside what was measured.

    Args:
        config_path: the configuration file, or the folder with `aggregator.toml`
        day: UTC date (YYYY-MM-DD); empty: today, or else the last day with a schedule

    Returns:
        `{day, slots: [{slot, start, askedWh, approvedWh, reason, measuredWh, deviationWh}, …]}`;
        what is not known (yet) is None.

    Raises:
        ConfigError: it has never run with this configuration, or `day` is not a date.
    """
    if config_path.is_dir():
        config_path = config_path / CONFIG
    config = load_config(config_path)
    grid = load_genesis(config.market.genesis).grid
    per_day = DAY_S // grid.length_s
    noon_ms = _noon_ms(day) if day else None
    with contextlib.closing(_open_store(config)) as store:
        first_slot = _first_slot(noon_ms, store, grid)
        last_slot = first_slot + per_day - 1
        rows = store.schedule(first_slot, last_slot)
        homes = max((len(store.home_schedule(row["slot"])) for row in rows), default=0)
        least = enough(homes or store.counts()["meters"])
        measured = dict(store.measured(first_slot, last_slot, least))
    slots = []
    for row in rows:
        measured_wh, approved_wh = measured.get(row["slot"]), row["approved_wh"]
        known = measured_wh is not None and approved_wh is not None
        slots.append(
            {
                "slot": row["slot"],
                "start": _utc(grid.start_ms(row["slot"])).isoformat(),
                "askedWh": row["net_wh"],
                "approvedWh": approved_wh,
                "reason": row["reason"],
                "measuredWh": measured_wh,
                "deviationWh": measured_wh - approved_wh if known else None,
            }
        )
    return {"day": _utc(grid.start_ms(first_slot)).date().isoformat(), "slots": slots}


def _noon_ms(day: str) -> int:
    try:
        noon = datetime.combine(date.fromisoformat(day), time(12), UTC)
    except ValueError:
        raise ConfigError(f"{day}: not a date; write it as 2026-01-31") from None
    return int(noon.timestamp()) * 1000


def _first_slot(noon_ms: int | None, store: AggregatorStore, grid: SlotGrid) -> int:
    """The first slot of a day; of none in particular: today, or else the last with a schedule."""
    per_day = DAY_S // grid.length_s
    slot = grid.slot_at(clock_from_environment().now_ms() if noon_ms is None else noon_ms)
    first_slot, last = slot - slot % per_day, store.last_scheduled()
    if noon_ms is not None or last is None or store.schedule(first_slot, first_slot + per_day - 1):
        return first_slot
    return last - last % per_day


def _utc(time_ms: int) -> datetime:
    return datetime.fromtimestamp(time_ms // 1000, UTC)


def _open_store(config: AggregatorConfig) -> AggregatorStore:
    """
    What the service wrote; it may be running.

    Raises:
        ConfigError: it has never run with this configuration.
    """
    folder = config.service.data_dir
    if not (folder / DATABASE).exists():
        raise ConfigError(f"{folder}: the aggregator has not run yet")
    return AggregatorStore(folder / DATABASE)


def read_accounts(config_path: Path) -> list[dict[str, Any]]:
    """
    What each participant has with the DSO: `{participant, balanceUc, owedUc}`.

    Raises:
        ConfigError: it has never run with this configuration.
    """
    with contextlib.closing(_open_accounts(load_config(config_path))) as accounts:
        return [
            {"participant": one.participant, "balanceUc": one.balance_uc, "owedUc": one.owed_uc}
            for one in Bills(accounts).statements()
        ]


def book_payment(config_path: Path, participant: str, amount_uc: int, reference: str) -> bool:
    """
    Book what a participant paid the DSO (below zero: got from it), once under its reference.

    Returns:
        False when the reference was booked before.

    Raises:
        ConfigError: it has never run with this configuration, or not an identity.
    """
    if not is_id(participant):
        raise ConfigError(f"{participant}: expected an identity; see `aggregator accounts`")
    now_ms = clock_from_environment().now_ms()
    with contextlib.closing(_open_accounts(load_config(config_path))) as accounts:
        return Bills(accounts).pay(participant, amount_uc, reference, now_ms)


def _open_accounts(config: AggregatorConfig) -> Accounts:
    path = config.service.data_dir / ACCOUNTS
    if not path.exists():
        raise ConfigError(f"{path.parent}: the aggregator has not run yet")
    return Accounts(path, config.accounts.opening_uc)


def read_status(config_path: Path) -> dict[str, Any]:
    """
    What the aggregator has done so far, from its files; it may be running.

    Raises:
        ConfigError: it has never run with this configuration.
    """
    with contextlib.closing(_open_store(load_config(config_path))) as store:
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
