"""
What a chain costs as it grows: a transaction, a byte on disk, a new node, a light client.

    python -m bench.growth [--json] [--out DIR] [--small]

- Time to execute and store a block of 16 bids, from 10³ to 10⁶ rows in the state, at a low and at a
  high height. A Merkle tree and a B-tree are logarithmic, so ×1000 rows should cost about ×2.
- Bytes on disk for each transaction, all tables and indexes counted.
- A year: the rows that a feeder of 100 homes keeps after any time. A new node joins by snapshot
  (chunks by hash, Merkle root, store); beside it the full replay, extrapolated from the measured
  cost of a transaction and of a seal. Neither waits for a network.
- A light client's bytes for that year, with a change of the validators every month.

States are made up row by row, in the form of the contracts, not executed: 10⁶ rows take seconds.
Ratios within one run compare machines; times do not. Processor time, but for joining: others may
share the machine. Real SQLite files in a temporary folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import structlog

from bench.growth_plot import draw
from bench.light import START_MS, key_of, year_bytes
from ledger import merkle, types
from ledger.checkpoint import checkpoint_json, genesis_checkpoint
from ledger.contracts import accounts, keys
from ledger.execution import Ledger, genesis_rows
from ledger.genesis import Genesis, GenesisValidator, Supervisor, genesis_bytes, seal_genesis
from ledger.joining import restore
from ledger.schedule import Epochs
from ledger.snapshot import check_chunk, check_offer, read_offer
from ledger.snapshots import Snapshots, SnapshotTaker, answer_chunk, answer_snapshot
from ledger.state import State
from ledger.store import LedgerStore
from wire.canonical import encode
from wire.envelope import new_req_id
from wire.keys import SigningKey, to_text
from wire.transactions import Transaction, make_transaction

SLOT_MS = 900_000
FIRST_SLOT = START_MS // SLOT_MS
SLOTS_PER_YEAR = 35_040
ACTIVE = 64
"""Homes that bid; the rest is rows."""
BLOCK_TXS = 16
BLOCKS = 60
FUNDS_UC = 10**9
HOMES_OF_A_YEAR = 100
KEPT_SLOTS = 99
"""A slot's rows are dropped when no late receipt may come any more."""
TXS_PER_HOME_AND_SLOT = 2
"""A bid and a receipt."""
LIGHT_AIM_BYTES = 1_000_000


class GrowthChain:
    """A chain in a folder whose state holds made-up homes and orders."""

    def __init__(self, folder: Path, rows: int) -> None:
        self.validators = [key_of(f"validator {number}") for number in range(4)]
        self.homes = [key_of(f"growth home {number}") for number in range(ACTIVE)]
        self.genesis = _genesis(self.validators)
        self.store = LedgerStore.in_folder(folder)
        made = dict(_state_rows(self.genesis, self.homes, rows))
        self.store.write_genesis(
            genesis_bytes(self.genesis), {name: encode(value) for name, value in made.items()}
        )
        self.ledger = Ledger(self.genesis, self.store, State(made.items()))
        self.ledger.state.root()
        self.epochs = Epochs(self.genesis, self.ledger, self.store)
        self.epoch = self.epochs.current()
        self._nonces = [0] * ACTIVE
        self._sent = self._view = 0

    def bids(self, number: int) -> list[Transaction]:
        """The next bids, one of each active home in turn."""
        found = []
        for count in range(number):
            home = (self._sent + count) % ACTIVE
            nonce = self._nonces[home]
            self._nonces[home] += 1
            operation = {
                "op": "bid-offer", "side": "sell", "slot": FIRST_SLOT + 12 + nonce // 8 % 70,
                "energyWh": 10, "priceUcPerKwh": 100_000 + nonce,
            }  # fmt: skip
            seed = hashlib.sha256(f"{home} {nonce}".encode()).digest()
            found.append(
                make_transaction(
                    self.homes[home], self.genesis.chain_id, nonce, 10**9, [operation],
                    new_req_id(START_MS, seed), START_MS,
                )
            )  # fmt: skip
        self._sent += number
        return found

    def block(self, txs: list[Transaction], *, seal: bool = False) -> float:
        """
        Add a block.

        Returns:
            Processor time to execute and store it [s]; nothing in it waits for the disk.
        """
        ledger, executed = self.ledger, self.ledger.executed_height
        self._view += 1
        time_ms = (ledger.slot + 1) * SLOT_MS if seal else ledger.time_ms + 1
        following = self.epochs.next_validators(self.epoch.epoch).hash if seal else b""
        header = types.Header(
            chain_id=self.genesis.chain_id,
            epoch=self.epoch.epoch,
            view=self._view,
            height=executed + 1,
            parent_hash=ledger.tip_hash,
            justify_hash=bytes(32),
            tx_root=merkle.root([tx.txid for tx in txs]),
            n_tx=len(txs),
            exec_height=executed,
            state_root=ledger.state_root(executed),
            receipts_root=ledger.receipts_root(ledger.covered_height, executed),
            validators_hash=self.epoch.validators.hash,
            schedule_root=self.epoch.schedule_root,
            time_ms=time_ms,
            proposer=self.epoch.validators.ids[self.epoch.leader(self._view)],
            seal=seal,
            next_validators_hash=following,
        )
        votes = [
            types.make_vote(
                one, header.chain_id, number, header.epoch, header.view,
                types.VoteKind.FINALIZE, types.header_hash(header),
            )
            for number, one in enumerate(self.validators[:3])
        ]  # fmt: skip
        finality = types.Finality(types.make_certificate(votes))
        started_s = time.process_time()
        result = ledger.execute(header, txs, types.encode(finality))
        taken_s = time.process_time() - started_s
        assert all(one.codes == ("OK",) for one in result.receipts), result.receipts
        if seal:
            self.epoch, self._view = self.epochs.after_seal(header, finality), 0
        return taken_s

    def tx_us(self, blocks: int = BLOCKS) -> float:
        """Processor time of a transaction, in blocks of 16 [µs]: the lower quartile."""
        taken_s = [self.block(self.bids(BLOCK_TXS)) for _ in range(blocks)]
        return statistics.quantiles(taken_s, n=4)[0] / BLOCK_TXS * 1e6


@contextlib.contextmanager
def grown(rows: int) -> Iterator[GrowthChain]:
    """A chain with a state of about so many rows, in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        chain = GrowthChain(Path(folder), rows)
        try:
            yield chain
        finally:
            chain.store.close()


def by_rows(counts: tuple[int, ...]) -> list[dict[str, float]]:
    """Cost of a transaction by rows in the state."""
    found = []
    for count in counts:
        with grown(count) as chain:
            found.append({"rows": len(chain.ledger.state), "tx_us": round(chain.tx_us(), 1)})
    return found


def by_height(heights: tuple[int, ...], rows: int = 10_000) -> list[dict[str, float]]:
    """Cost of a transaction by height of the chain, and bytes on disk so far."""
    found = []
    with grown(rows) as chain:
        before = _disk_bytes(chain)
        txs = 0
        for height in heights:
            while chain.ledger.executed_height < height:
                chain.block(chain.bids(1))
                txs += 1
            found.append({"height": height, "tx_us": round(chain.tx_us(), 1)})
            txs += BLOCKS * BLOCK_TXS
        found[-1]["bytes_per_tx"] = round((_disk_bytes(chain) - before) / txs)
    return found


def full_blocks_bytes(rows: int = 10_000, blocks: int = BLOCKS) -> int:
    """Bytes on disk for a transaction in blocks of 16."""
    with grown(rows) as chain:
        before = _disk_bytes(chain)
        for _ in range(blocks):
            chain.block(chain.bids(BLOCK_TXS))
        return round((_disk_bytes(chain) - before) / blocks / BLOCK_TXS)


def year(homes: int = HOMES_OF_A_YEAR, slots: int = SLOTS_PER_YEAR) -> dict[str, float]:
    """A new node after a year: by snapshot, and by executing everything."""
    with grown(homes * (3 + KEPT_SLOTS)) as chain:
        seal_s = statistics.median(chain.block([], seal=True) for _ in range(8))
        chain.block(chain.bids(BLOCK_TXS))
        tx_us = chain.tx_us(20)
        verify_us = _verify_us(chain)
        taker = SnapshotTaker(chain.store, 1)
        chain.block([], seal=True)
        tip = chain.store.tip
        assert tip is not None
        started_s = time.perf_counter()
        taker.executed(tip.header)
        stopped_s = time.perf_counter() - started_s
        taker.close()
        take_s = time.perf_counter() - started_s
        chain.block([])
        join_s, size = _join(chain)
        rows = len(chain.ledger.state)
    txs = slots * homes * TXS_PER_HOME_AND_SLOT
    replay_s = slots * seal_s + txs * (tx_us + verify_us) / 1e6
    return {
        "rows": rows,
        "snapshot_bytes": size,
        "take_s": round(take_s, 3),
        "node_stopped_ms": round(stopped_s * 1000, 2),
        "join_s": round(join_s, 3),
        "year_txs": txs,
        "replay_s": round(replay_s),
        "replay_over_join": round(replay_s / join_s),
    }


def _join(chain: GrowthChain) -> tuple[float, int]:
    """All that a joiner does but waiting for the network: time [s] and bytes fetched."""
    trust = genesis_checkpoint(chain.genesis)
    started_s = time.perf_counter()
    raw = answer_snapshot(chain.store)
    offer = read_offer(raw)
    check_offer(offer, trust, lambda _: trust.validators)
    with tempfile.TemporaryDirectory() as folder:
        chunks = []
        for number in range(len(offer.manifest.hashes)):
            chunk = answer_chunk(chain.store, f"{offer.manifest.height}/{number}")
            check_chunk(offer.manifest, number, chunk)
            chunks.append(chunk)
        snapshots = Snapshots(Path(folder))
        snapshots.write(
            offer.manifest.height, offer.manifest.state_root, chunks, lambda: offer.manifest.rows
        )
        with contextlib.closing(LedgerStore.in_folder(Path(folder))) as store:
            restore(store, chain.genesis, offer, chunks, trust=checkpoint_json(trust))
    return time.perf_counter() - started_s, len(raw) + offer.manifest.size_bytes


def _verify_us(chain: GrowthChain) -> float:
    """Reading a transaction and checking its signature [µs]: a replay does both."""
    from ledger.mempool import Mempool  # noqa: PLC0415

    pool, txs = Mempool(chain.ledger), chain.bids(64)
    started_s = time.perf_counter()
    for tx in txs:
        pool.add(tx.raw, START_MS, tx.sender)
    return (time.perf_counter() - started_s) / len(txs) * 1e6


def _genesis(validators: list[SigningKey]) -> Genesis:
    supervisor = key_of("supervisor")
    return seal_genesis(
        Genesis(
            market="bench",
            start_ms=START_MS,
            issuing_key=to_text(key_of("issuer").public),
            supervisor=Supervisor(
                address=supervisor.id, key=to_text(supervisor.public), balance_uc=10**12
            ),
            validators=tuple(
                GenesisValidator(id=one.id, key=to_text(one.public), controller=f"c{number}")
                for number, one in enumerate(validators)
            ),
        )
    )


def _state_rows(
    genesis: Genesis, active: list[SigningKey], count: int
) -> Iterator[tuple[str, Any]]:
    """Homes with account, grant and asset, and for each its orders of up to `KEPT_SLOTS` slots."""
    first = genesis_rows(genesis)
    totals = dict(first.pop(keys.TOTALS))
    yield from first.items()
    homes = [(one.id, to_text(one.public)) for one in active]
    made = len(first) + 1
    number = 0
    while number < len(homes) or made < count:
        if number < len(homes):
            address, public = homes[number]
        else:
            digest = hashlib.sha256(f"made-up home {number}".encode())
            address, public = f"hg1{digest.hexdigest()[:52]}", to_text(digest.digest())
        number += 1
        totals["depositsUc"] += FUNDS_UC
        home = list(_home_rows(address, public))
        left = max(0, min(KEPT_SLOTS, count - made - len(home)))
        home += [_position_row(address, FIRST_SLOT + 100 + slot) for slot in range(left)]
        made += len(home)
        yield from home
    yield keys.TOTALS, totals


def _home_rows(address: str, public: str) -> Iterator[tuple[str, Any]]:
    slots = [[5_000, FIRST_SLOT, FIRST_SLOT + 400]]
    yield keys.account(address), {**accounts.NEW_ACCOUNT, "balanceUc": FUNDS_UC}
    yield keys.asset(address), {"production": slots, "consumption": slots}
    yield (
        keys.grant(address),
        {
            "key": public, "meterKey": public, "canBuy": True, "canSell": True,
            "maxBuyWh": 5_000, "maxSellWh": 5_000,
            "startSlot": FIRST_SLOT, "endSlot": FIRST_SLOT + 400,
        },
    )  # fmt: skip


def _position_row(address: str, slot: int) -> tuple[str, Any]:
    return keys.position(slot, address), {
        "bids": 1, "buyLockedWh": 0, "sellLockedWh": 100, "boughtWh": 0, "soldWh": 0,
        "receivableUc": 0, "orders": [["sell", 100, 200_000, 0, 1000, 3, 0]],
    }  # fmt: skip


def _disk_bytes(chain: GrowthChain) -> int:
    """Of the file, when all is in it."""
    path = chain.store.path
    assert path is not None
    chain.store.checkpoint()
    return path.stat().st_size


def measure(*, small: bool = False) -> dict[str, Any]:
    """All figures; `small`: a quick version with the same shape."""
    counts = (1_000, 10_000) if small else (1_000, 10_000, 100_000, 1_000_000)
    heights = (10, 200) if small else (10, 10_000)
    light = year_bytes(4)
    return {
        "rows": by_rows(counts),
        "heights": by_height(heights, rows=2_000 if small else 10_000),
        "bytes_per_tx": full_blocks_bytes(2_000 if small else 10_000),
        "year": year(10 if small else HOMES_OF_A_YEAR),
        "light_bytes": {"aim": LIGHT_AIM_BYTES, "monthly": light["year_12"], **light},
    }


def main() -> None:
    """Measure, print, draw."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    arguments = sys.argv[1:]
    found = measure(small="--small" in arguments)
    if "--out" in arguments:
        folder = Path(arguments[arguments.index("--out") + 1])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "growth.json").write_text(json.dumps(found, indent=1))
        (folder / "growth.svg").write_text(draw(found["rows"]))
    if "--json" in arguments:
        print(json.dumps(found))
        return
    _show(found)


def _show(found: dict[str, Any]) -> None:
    base = found["rows"][0]["tx_us"]
    print("rows in the state   µs for a transaction   ratio")
    for row in found["rows"]:
        print(f"{row['rows']:>17,}   {row['tx_us']:>20,}   ×{row['tx_us'] / base:.2f}")
    base = found["heights"][0]["tx_us"]
    print("height              µs for a transaction   ratio")
    for row in found["heights"]:
        print(f"{row['height']:>17,}   {row['tx_us']:>20,}   ×{row['tx_us'] / base:.2f}")
    single = found["heights"][-1]["bytes_per_tx"]
    print(f"disk: {found['bytes_per_tx']:,} B a transaction in blocks of {BLOCK_TXS}", end="; ")
    print(f"{single:,} B where most blocks hold one")
    a_year = found["year"]
    print(
        f"after a year: {a_year['rows']:,} rows, snapshot {a_year['snapshot_bytes']:,} B, taken in "
        f"{a_year['take_s']} s (node stopped {a_year['node_stopped_ms']} ms), joined in "
        f"{a_year['join_s']} s"
    )
    print(
        f"full replay of {a_year['year_txs']:,} transactions: {a_year['replay_s']:,} s "
        f"(extrapolated), ×{a_year['replay_over_join']:,}"
    )
    light = found["light_bytes"]
    ratio = light["monthly"] / light["aim"]
    print(f"light client, a year: {light['monthly']:,} B (aim {light['aim']:,} B, ×{ratio:.3f})")


if __name__ == "__main__":
    main()
