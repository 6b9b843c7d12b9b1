"""
The chain's part of the audit: one valid chain on all validators, and every slot of it settled.

`ledger verify`, a process of its own, re-executes the most advanced validator's chain from the
genesis. That alone would pass for a chain that stopped early: so the others must be where it is,
and it must have settled all slots that the run promised.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ledger import types
from ledger.contracts import keys
from ledger.store import LedgerStore, StoredBlock
from sim.audit_trail import Check, Trail, verdict
from wire.envelope import date_text

VERIFY_TIMEOUT_S = 300
TIP_SPREAD_MAX = 2
"""Blocks that a validator may lack when all are stopped at once."""
Verify = Callable[[Path], dict[str, Any]]
"""Re-executes a chain; see `verify_apart`."""


def most_advanced(folders: list[Path]) -> Path:
    """The chain folder with the highest tip; the first of several."""
    return max(folders, key=_height)


def verify_apart(folder: Path) -> dict[str, Any]:
    """
    What `ledger verify --json` says of a chain folder, in a process of its own.

    Returns:
        `ok`, and the facts of a valid chain or the `error` of another.
    """
    command = [sys.executable, "-m", "ledger.cli", "verify", str(folder), "--json"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=VERIFY_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return {"ok": False, "error": f"not verified in {VERIFY_TIMEOUT_S} s"}
    try:
        facts: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return {"ok": False, "error": done.stderr.strip()[-300:] or "no answer"}
    return facts


def check_chain(folder: Path, verify: Verify) -> Check:
    """The chain, executed again; its money."""
    facts = verify(folder)
    if not facts["ok"]:
        return Check("chain", False, facts["error"])
    money = f"{facts['balances_uc'] / 1e6:.6f} ¤"
    if facts["balances_uc"] != facts["deposits_uc"]:
        return Check("chain", False, f"{money} held, {facts['deposits_uc']} µ¤ deposited")
    text = (
        f"{facts['height']} blocks re-executed from genesis by another process, state root"
        f" {facts['state_root'][:16]}…, {facts['signatures']} signatures; money {money} = deposits,"
        " energy balanced in every slot"
    )
    return Check("chain", True, text, facts)


def check_nodes(folders: list[Path]) -> Check:
    """The validators' tips are together, and they hold one block and one state at the lowest."""
    heights = [_height(folder) for folder in folders]
    lowest, highest = min(heights), max(heights)
    faults = [
        f"validator {number} is at block {height}, another at {highest}"
        for number, height in enumerate(heights, start=1)
        if height == 0 or height < highest - TIP_SPREAD_MAX
    ]
    # a validator that lacks everything has nothing to compare: the others are compared without it
    common = min((height for height in heights if height > 0), default=0)
    blocks = [_block(f, common) for f, h in zip(folders, heights, strict=True) if h >= common > 0]
    faults += [
        f"block {common} of a validator does not have the hash it is kept under"
        for block in blocks
        if block is None or types.header_hash(block.header) != block.hash
    ]
    if len({(block.hash, block.state_root) for block in blocks if block is not None}) > 1:
        faults.append(f"the validators differ at block {common}")
    text = f"one chain and one state on {len(folders)} validators, at blocks {lowest}…{highest}"
    return verdict("nodes", faults, text, {"tips": heights})


def check_settlement(trail: Trail) -> Check:
    """Every slot of the run was settled once, and cleared before where there were orders."""
    faults = [fault for slot in trail.slots for fault in _slot_faults(trail, slot)]
    chain = trail.chain
    cleared = sum(slot in chain.cleared for slot in trail.slots)
    settled = sum(slot in chain.settled for slot in trail.slots)
    text = (
        f"all {settled} slots of the run settled on chain, {cleared} of them after an auction"
        f" between homes ({settled - cleared} had no orders)"
    )
    return verdict("settlement", faults, text, {"settledSlots": settled, "clearedSlots": cleared})


def _slot_faults(trail: Trail, slot: int) -> list[str]:
    chain, name = trail.chain, f"slot {date_text(trail.genesis.grid.start_ms(slot))}"
    times = len(chain.settled.get(slot, ()))
    if times == 0:
        due, last = date_text(trail.genesis.settle_ms(slot)), date_text(chain.time_ms)
        return [f"{name} is not settled: due at {due}, the chain ends at {last}"]
    faults = [f"{name} was settled {times} times"] if times > 1 else []
    if chain.bids.get(slot) and slot not in chain.cleared:
        faults.append(f"{name} has {chain.bids[slot]} orders and was not cleared")
    row = chain.state.get(keys.slot(slot))
    # slots are forgotten when nothing can happen to them any more
    if row is not None and not (row["cleared"] and row["settled"] and row["escrowUc"] == 0):
        faults.append(f"{name} is not closed in the state")
    return faults


def _height(folder: Path) -> int:
    store = LedgerStore.in_folder(folder, read_only=True)
    try:
        return store.height
    finally:
        store.close()


def _block(folder: Path, height: int) -> StoredBlock | None:
    store = LedgerStore.in_folder(folder, read_only=True)
    try:
        return store.get_block(height)
    finally:
        store.close()
