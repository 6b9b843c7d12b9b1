"""
A finished run in a folder, as `hearthgrid demo` leaves it, without its processes.

The CSM-DB, the validators' stores and the DSO's are the real ones, filled through the code that
fills them in a run (enrolment, block execution, the DSO's auditor); only the time between is left
out. Four homes trade three slots: home-01 sells to home-02 in each, and to the aggregator in the
last; home-01 changes its address before the last slot; home-03's receipt of the second slot comes
after the settlement.

    run = FinishedRun(tmp_path / "run")            # whole
    run = FinishedRun(tmp_path / "run", silent={"home-04"})
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support import chain_builder
from support.chain_builder import Chain, asset, auction, auction_bid, bid, deposit, events_of
from support.enrolment import AskingHome

from aggregator.auditor import Auditor
from aggregator.store import AggregatorStore
from csmdb.setup import open_csmdb
from ledger.store import FILE_NAME, LedgerStore
from sim.feeder import DEPOSIT_UC, Feeder, build_feeder
from wire.canonical import encode
from wire.certificates import AddressGrant, dump
from wire.keys import SigningKey, seal_to, to_text
from wire.metering import ZERO_DIGEST, Reading, Receipt, digest, record_json, sign_record

HOMES, SLOTS, HOUR = 4, 3, 12
LAST = SLOTS - 1
NETS_WH = {
    "home-01": (-700, -650, -600, -90), "home-02": (400, 380, 417, 80),
    "home-03": (-120, 90, 0, 70), "home-04": (33, -1, 7, 60),
}  # fmt: skip
"""What flows at each home in each slot, and in the one after the run [Wh]."""
LATE = ("home-03", 1)
"""The receipt (home, index of the slot) that comes after its settlement."""
Operation = dict[str, Any]
Bundle = tuple[SigningKey, list[Operation]]


@dataclass
class FinishedRun:
    """
    Build a run.

    Args:
        out: its folder
        silent: homes that never send a receipt
        never: receipts (home, index of the slot) that never come
        lies: what a receipt says instead [Wh]
        settled: how many slots' settlements the chain reaches
    """

    out: Path
    silent: Collection[str] = ()
    never: Collection[tuple[str, int]] = ()
    lies: Mapping[tuple[str, int], int] = field(default_factory=dict)
    settled: int = SLOTS

    def __post_init__(self) -> None:
        self.feeder: Feeder = build_feeder(self.out, HOMES, 1, SLOTS, None, HOUR)
        self.genesis = self.feeder.genesis
        self.first = self.feeder.first_slot
        self.homes = {home.name: AskingHome(home.name) for home in self.feeder.homes}
        self.readings = {name: self._readings_of(name) for name in self.homes}
        self._grants: dict[str, list[AddressGrant]] = defaultdict(list)
        self._receipts: list[dict[str, Any]] = []
        self._enrol()
        self._trade()
        self._audit_as_dso()

    @property
    def dso_file(self) -> Path:
        """The DSO's database."""
        return self.out / "aggregator" / "data" / "aggregator.sqlite"

    def chain_file(self, number: int) -> Path:
        """A validator's database."""
        return self.feeder.ledger_folder(number) / FILE_NAME

    def address(self, name: str, index: int) -> SigningKey:
        """The key under which a home trades in a slot."""
        return self.homes[name].address(int(name == "home-01" and index == LAST))

    # --- who is who -------------------------------------------------------------------------------

    def _enrol(self) -> None:
        now_ms = self.genesis.start_ms
        with open_csmdb(self.out / "csmdb") as csmdb:
            for name, home in self.homes.items():
                who = home.ems.id
                csmdb.desk.enroll(who, home.enrolment(self.feeder.claims[name]), now_ms)
                spans = [(0, LAST - 1), (LAST, LAST)] if name == "home-01" else [(0, LAST)]
                for number, (start, end) in enumerate(spans):
                    request = {
                        "addresses": [home.address_row(number)], "startSlot": self.first + start,
                        "endSlot": self.first + end,
                    }  # fmt: skip
                    granted = csmdb.desk.grant_addresses(who, request, now_ms)
                    assert isinstance(granted, list), granted
                    self._grants[name] += granted
                identity = {"participant": who, "address": self._grants[name][-1].address}
                folder = self.out / "homes" / name / "data"
                folder.mkdir()
                (folder / "identity.json").write_text(json.dumps(identity))

    def _readings_of(self, name: str) -> list[Reading]:
        """Signed readings from the run's beginning to one slot after its end."""
        meter, imported, exported, found = self.homes[name].meter, 5_000, 7_000, []
        previous = ZERO_DIGEST
        for seq, net_wh in enumerate((0, *NETS_WH[name])):
            imported += max(net_wh, 0) + 10
            exported += max(-net_wh, 0) + 10
            slot = self.first - 1 + seq
            unsigned = Reading(
                meter=meter.id, seq=seq, slot=slot, time_ms=self.genesis.grid.end_ms(slot) + 900,
                import_wh=imported, export_wh=exported, generation_wh=100 * seq, previous=previous,
            )  # fmt: skip
            found.append(sign_record(unsigned, meter, self.genesis.chain_id))
            previous = digest(found[-1])
        return found

    # --- the chain --------------------------------------------------------------------------------

    def _trade(self) -> None:
        folder = self.feeder.ledger_folder(0)
        end_ms = self.genesis.settle_ms(self.first + self.settled)
        chain_builder.KEYS.update({v.key.id: v.key for v in self.feeder.validators})
        chain = Chain(LedgerStore.in_folder(folder), self.genesis)
        for time_ms, bundles in sorted(self._timetable(), key=lambda row: row[0]):
            if time_ms >= end_ms:
                break
            txs = [chain.tx(sender, *operations) for sender, operations in bundles]
            result = chain.block(time_ms, *txs)
            codes = {code for done in result.receipts for code in (done.code, *done.codes)}
            assert codes <= {"OK"}, result.receipts
            self._receipts += events_of(result, "receipt")
        chain.store.close()
        for number in range(1, len(self.feeder.validators)):
            shutil.copy(folder / FILE_NAME, self.chain_file(number))

    def _timetable(self) -> list[tuple[int, list[Bundle]]]:
        """Blocks: when, and what is in them."""
        grid, genesis, desk = self.genesis.grid, self.genesis, self.feeder.aggregator.key
        begin_ms = grid.start_ms(self.first - 1)
        rows = [(begin_ms + 60_000, self._registrations()), (begin_ms + 70_000, self._endowments())]
        for index in range(SLOTS):
            slot = self.first + index
            bids_ms = grid.start_ms(slot - 1) + 120_000
            if index == LAST:
                offer = auction("evening", "reverse", slot, 150, 250_000, "as-bid")
                answer = auction_bid("evening", 90, 151_003)
                rows.append((bids_ms - 10_000, [(desk, [offer])]))
                rows.append((bids_ms + 10_000, [(self.address("home-01", index), [answer])]))
            rows.append((bids_ms, self._bids(index)))
            rows.append((genesis.gate_ms(slot) + 1, []))
            rows.append((grid.end_ms(slot) + 5_000, self._deliveries(index, late=False)))
            rows.append((genesis.settle_ms(slot) + 1, []))
            rows.append((genesis.settle_ms(slot) + 9_000, self._deliveries(index, late=True)))
        return rows

    def _registrations(self) -> list[Bundle]:
        return [
            (home.address(number), [{"op": "register-address", "grant": dump(grant)}])
            for name, home in self.homes.items()
            for number, grant in enumerate(self._grants[name])
        ]

    def _endowments(self) -> list[Bundle]:
        operations = []
        for grant in (grant for grants in self._grants.values() for grant in grants):
            who = SimpleId(grant.address)
            operations += [
                asset(who, kind, 2_000, grant.start_slot, grant.end_slot)
                for kind in ("production", "consumption")
            ]
            operations.append(deposit(who, DEPOSIT_UC))
        return [(self.feeder.aggregator.key, operations)]

    def _bids(self, index: int) -> list[Bundle]:
        slot = self.first + index
        return [
            (self.address("home-01", index), [bid("sell", slot, 303, 101_001)]),
            (self.address("home-02", index), [bid("buy", slot, 411, 240_007)]),
            (self.address("home-03", index), [bid("sell", slot, 77, 120_009)]),
        ]

    def _deliveries(self, index: int, *, late: bool) -> list[Bundle]:
        found = []
        for name, home in self.homes.items():
            entry = (name, index)
            if name in self.silent or entry in self.never or (entry == LATE) != late:
                continue
            key = self.address(name, index)
            receipt = Receipt(
                address=key.id, slot=self.first + index,
                net_wh=self.lies.get(entry, NETS_WH[name][index]),
                reading=digest(self.readings[name][index + 1]),
            )  # fmt: skip
            signed = sign_record(receipt, home.meter.derive(key.id), self.genesis.chain_id)
            found.append((key, [{"op": "receipt", "receipt": record_json(signed)}]))
        return found

    # --- the DSO ----------------------------------------------------------------------------------

    def _audit_as_dso(self) -> None:
        self.dso_file.parent.mkdir()
        store = AggregatorStore(self.dso_file)
        genesis, box = self.genesis, self.feeder.box
        auditor = Auditor(store, box, genesis.chain_id, genesis.grid, genesis.poe)
        auditor.directory.add([
            {
                "participant": home.ems.id, "meterKey": to_text(home.meter.public),
                "addresses": [grant.address for grant in self._grants[name]],
            }
            for name, home in self.homes.items()
        ])  # fmt: skip
        now_ms = genesis.grid.end_ms(self.first + SLOTS + 1)
        for name, home in self.homes.items():
            for reading in self.readings[name]:
                sealed = seal_to(box.public, encode(record_json(reading)))
                auditor.take_reading(home.ems.id, sealed, now_ms)
        for event in self._receipts:
            auditor.take_receipt(event, now_ms)
        store.close()


@dataclass(frozen=True)
class SimpleId:
    """An address whose key is not needed."""

    id: str
