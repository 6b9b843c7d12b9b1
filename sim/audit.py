"""
The audit at the end of a run: the chain re-executed, the nodes compared, the readings checked.

The chain is re-executed from its genesis by a process of its own (`ledger verify`), which counts
money and energy after every block. The other nodes must hold the same chain. Every reading that the
DSO keeps must carry the signature of a certified meter and follow the one before.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from aggregator.store import AggregatorStore
from csmdb.setup import open_csmdb
from ledger.genesis import load_genesis
from ledger.store import LedgerStore
from sim.feeder import Feeder
from wire.errors import WireError
from wire.keys import KEY_BYTES, from_text, id_of
from wire.metering import ZERO_DIGEST, Reading, check_record, digest

VERIFY_TIMEOUT_S = 300


@dataclass(frozen=True, slots=True)
class Audit:
    """What was checked, line by line, and whether all of it held."""

    passed: bool
    lines: list[str]
    facts: dict[str, Any]


def audit(feeder: Feeder) -> Audit:
    """Audit a stopped run."""
    checks = [_chain(feeder), _nodes(feeder), _readings(feeder), _evidence(feeder)]
    facts: dict[str, Any] = {}
    for _, _, found in checks:
        facts |= found
    lines = [f"{'ok    ' if good else 'FAILED'} {text}" for good, text, _ in checks]
    return Audit(all(good for good, _, _ in checks), lines, facts)


Check = tuple[bool, str, dict[str, Any]]


def _chain(feeder: Feeder) -> Check:
    command = [sys.executable, "-m", "ledger.cli", "verify", str(feeder.ledger_folder(0)), "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=VERIFY_TIMEOUT_S, check=False
    )
    try:
        facts: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        facts = {"ok": False, "error": done.stderr.strip()[-300:] or "no answer"}
    if not facts["ok"]:
        return False, f"chain: {facts['error']}", {}
    conserved = facts["balances_uc"] == facts["deposits_uc"]
    text = (
        f"chain: {facts['height']} blocks re-executed from genesis by another process, state root"
        f" {facts['state_root'][:16]}…, {facts['signatures']} signatures;"
        f" money {facts['balances_uc'] / 1e6:.6f} ¤ = deposits, energy balanced in every slot"
    )
    return conserved, text, facts


def _nodes(feeder: Feeder) -> Check:
    """The same block hash at the lowest common height, and every tip on one chain."""
    stores = [
        LedgerStore.in_folder(feeder.ledger_folder(index), read_only=True)
        for index in range(len(feeder.validators))
    ]
    try:
        common = min(store.height for store in stores)
        hashes = {block.hash for store in stores if (block := store.get_block(common))}
        roots = {block.state_root for store in stores if (block := store.get_block(common))}
        heights = sorted(store.height for store in stores)
    finally:
        for store in stores:
            store.close()
    good = common > 0 and len(hashes) == 1 and len(roots) == 1
    return good, f"nodes: one chain and one state on {len(stores)} validators, at {heights}", {}


def _readings(feeder: Feeder) -> Check:
    """Signature, sequence, hash chain and registers of every reading the DSO holds."""
    meters = _certified_meters(feeder.out / "csmdb")
    chain_id = load_genesis(feeder.out / "genesis.json").chain_id
    store = AggregatorStore(feeder.out / "aggregator" / "data" / "aggregator.sqlite")
    faults: list[str] = []
    count = 0
    before: dict[str, Reading] = {}
    try:
        for row in store.db.query("SELECT document FROM readings ORDER BY meter, seq"):
            reading = msgspec.json.decode(row["document"], type=Reading)
            count += 1
            faults += _reading_faults(reading, before.get(reading.meter), meters, chain_id)
            before[reading.meter] = reading
    finally:
        store.close()
    expected = len(feeder.homes) * feeder.slots
    good = not faults and count >= expected
    text = f"readings: {count} signed by {len(before)} certified meters, unbroken and monotone"
    if faults:
        text = f"readings: {len(faults)} faults, the first: {faults[0]}"
    elif count < expected:
        text = f"readings: {count} of at least {expected} arrived"
    return good, text, {"readings": count}


def _reading_faults(
    reading: Reading, before: Reading | None, meters: dict[str, bytes], chain_id: str
) -> list[str]:
    name = f"{reading.meter[-6:]} #{reading.seq}"
    public = meters.get(reading.meter)
    if public is None:
        return [f"{name}: not a certified meter"]
    try:
        check_record(reading, public, chain_id)
    except WireError as error:
        return [f"{name}: {error}"]
    if before is None:
        first = reading.seq == 0 and reading.previous == ZERO_DIGEST
        return [] if first else [f"{name}: the readings before it are missing"]
    if reading.seq != before.seq + 1 or reading.previous != digest(before):
        return [f"{name}: does not follow #{before.seq}"]
    registers = ("import_wh", "export_wh", "generation_wh")
    if any(getattr(reading, r) < getattr(before, r) for r in registers):
        return [f"{name}: a register went backwards"]
    return []


def _evidence(feeder: Feeder) -> Check:
    """What the DSO found when it compared receipts and CPFs with registers."""
    store = AggregatorStore(feeder.out / "aggregator" / "data" / "aggregator.sqlite")
    try:
        rows = store.evidence()
        checked = {
            row["address"]: row["n"]
            for row in store.db.query(
                "SELECT address, count(*) AS n FROM receipts WHERE status = 'ok' GROUP BY address"
            )
        }
    finally:
        store.close()
    if rows:
        return False, f"receipts: {len(rows)} pieces of evidence, the first: {rows[0]}", {}
    names = {feeder.identity(home)["address"]: home.name for home in feeder.homes}
    facts = {"receiptsOf": {names.get(a, a): n for a, n in checked.items()}}
    text = f"receipts: {sum(checked.values())} agree with the registers they were made from"
    return True, text, facts


def _certified_meters(folder: Path) -> dict[str, bytes]:
    with open_csmdb(folder) as csmdb:
        keys = [
            from_text(meter.meter_key, KEY_BYTES)
            for row in csmdb.repository.list_participants()
            if (certificate := csmdb.repository.certificate_of(row["id"])) is not None
            for meter in certificate.meter
        ]
    return {id_of(key): key for key in keys}
