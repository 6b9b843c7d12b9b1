"""
What a stopped run left on disk, as the audit reads it: who the homes are, what the chain says.

The homes' addresses come from the CSM-DB's grants (a home may trade under several in turn), the
market's history from the events of the most advanced validator, whose whole store `ledger verify`
executes again from the genesis.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from csmdb.setup import open_csmdb
from ledger.genesis import Genesis, load_genesis
from ledger.store import LedgerStore
from sim.audit_history import History, read_history
from sim.feeder import Feeder
from wire.keys import KEY_BYTES, from_text, id_of

GENESIS_FILE = "genesis.json"
Entry = tuple[int, str]
"""(slot, address)."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was checked."""

    name: str
    passed: bool
    text: str
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """As it is printed."""
        return f"{'ok    ' if self.passed else 'FAILED'} {self.name}: {self.text}"


def verdict(name: str, faults: list[str], text: str, facts: dict[str, Any] | None = None) -> Check:
    """A check that passes when there are no faults; otherwise it says how many, and the first."""
    if not faults:
        return Check(name, True, text, facts or {})
    many = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return Check(name, False, f"{faults[0]}{many}", facts or {})


@dataclass(frozen=True, slots=True)
class HomeRecord:
    """A home as the CSM-DB knows it."""

    name: str
    participant: str
    meter: str
    """Identity of its certified meter; empty when it never enrolled."""
    addresses: frozenset[str]


@dataclass(slots=True)
class ChainRecord:
    """What happened in the market, out of a validator's events."""

    height: int
    time_ms: int
    """Of the last block."""
    state: dict[str, Any]
    """All rows of the state at the end."""
    receipts: dict[Entry, list[int]]
    """Net energy [Wh] of each receipt that was taken."""
    settled: dict[int, list[dict[str, Any]]]
    """The settlements of each slot (there should be one)."""
    trued_up: dict[Entry, list[dict[str, Any]]]
    """Settlements of late receipts; `amountUc` is the difference that was paid."""
    bids: dict[int, int]
    """Orders that were taken, by slot."""
    cleared: dict[int, dict[str, Any]]
    history: list[History]
    """Every block: what was signed, and what was announced because of it."""


@dataclass(frozen=True, slots=True)
class Trail:
    """Everything that the checks read more than once."""

    genesis: Genesis
    slots: range
    """The slots that the run promised to trade and settle."""
    homes: list[HomeRecord]
    meter_keys: dict[str, bytes]
    """Public keys of all certified meters, by identity."""
    chain: ChainRecord

    @property
    def home_of_address(self) -> dict[str, str]:
        """Which home trades under an address."""
        return {address: home.name for home in self.homes for address in home.addresses}

    @property
    def demanded(self) -> int:
        """How many receipts there must be: one for each home and slot."""
        return len(self.homes) * len(self.slots)


def read_trail(feeder: Feeder, chain_folder: Path) -> Trail:
    """Read what the checks need; `chain_folder` is the chain that is believed."""
    homes, keys = read_homes(feeder)
    return Trail(
        genesis=load_genesis(feeder.out / GENESIS_FILE),
        slots=range(feeder.first_slot, feeder.first_slot + feeder.slots),
        homes=homes,
        meter_keys=keys,
        chain=read_chain(chain_folder),
    )


def read_homes(feeder: Feeder) -> tuple[list[HomeRecord], dict[str, bytes]]:
    """The homes with all addresses they were granted, and the keys of all certified meters."""
    rows, keys = _enrolled(feeder.out / "csmdb")
    return [_home(feeder, home.name, rows) for home in feeder.homes], keys


def _home(feeder: Feeder, name: str, rows: dict[str, tuple[str, frozenset[str]]]) -> HomeRecord:
    home = next(home for home in feeder.homes if home.name == name)
    try:
        participant = feeder.identity(home)["participant"]
    except FileNotFoundError:
        participant = ""
    meter, addresses = rows.get(participant, ("", frozenset[str]()))
    return HomeRecord(name, participant, meter, addresses)


def _enrolled(folder: Path) -> tuple[dict[str, tuple[str, frozenset[str]]], dict[str, bytes]]:
    """Per participant its meter and addresses; the meters' keys."""
    meters: dict[str, str] = {}
    addresses: dict[str, set[str]] = defaultdict(set)
    keys: dict[str, bytes] = {}
    with open_csmdb(folder) as csmdb:
        for row in csmdb.repository.list_participants():
            certificate = csmdb.repository.certificate_of(row["id"])
            for meter in certificate.meter if certificate is not None else ():
                key = from_text(meter.meter_key, KEY_BYTES)
                keys[id_of(key)] = key
                meters[row["id"]] = id_of(key)
        for granted in csmdb.repository.db.query("SELECT participant, address FROM address_grants"):
            addresses[granted["participant"]].add(granted["address"])
    return {who: (meter, frozenset(addresses[who])) for who, meter in meters.items()}, keys


def read_chain(folder: Path) -> ChainRecord:
    """The history that a validator's store tells."""
    store = LedgerStore.in_folder(folder, read_only=True)
    try:
        tip = store.tip
        record = ChainRecord(
            height=store.height, time_ms=tip.header.time_ms if tip is not None else 0,
            state=dict(store.state_rows()), receipts=defaultdict(list), settled=defaultdict(list),
            trued_up=defaultdict(list), bids=defaultdict(int), cleared={},
            history=list(read_history(store)),
        )  # fmt: skip
        for height in store.event_heights("market", 0, record.height):
            for event in store.events(height, "market"):
                _note(record, event)
    finally:
        store.close()
    return record


def _note(record: ChainRecord, event: dict[str, Any]) -> None:
    match event["event"]:
        case "receipt":
            record.receipts[event["slot"], event["address"]].append(event["netWh"])
        case "settled":
            record.settled[event["slot"]].append(event)
        case "trued-up":
            for row in event["rows"]:
                entry = (event["slot"], row["address"])
                record.trued_up[entry].append({**row, "amountUc": event["amountUc"]})
        case "bid-accepted":
            record.bids[event["slot"]] += 1
        case "bid-revealed" if not event["auction"]:
            record.bids[event["slot"]] += 1
        case "cleared":
            record.cleared[event["slot"]] = event
