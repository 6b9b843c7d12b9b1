"""
The DSO's desk for readings: opens them, judges them (`aggregator.audit`), keeps what it found.

Readings, receipts and attestations come in any order; each is compared when the last thing needed
for it arrives. A reading whose meter is not known yet is held until the CSM-DB was asked again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import structlog

from aggregator.audit import (
    NO_READING,
    TAMPERED,
    Directory,
    Finding,
    PoeRules,
    fork,
    judge,
    judge_cpf,
    judge_receipt,
    judge_silence,
    net_wh,
)
from aggregator.receipt_case import readings_document
from aggregator.store import AggregatorStore
from runtime.metrics import count_refusal
from wire.canonical import decode, encode
from wire.errors import CertificateError, Refusal, UnknownSenderError, WireError
from wire.keys import BoxKey
from wire.metering import Reading, check_record, load_record, record_json
from wire.slots import SlotGrid

COMPONENT = "dso"
MAX_READING_BYTES = 4 * 1024
MAX_HELD = 20_000
OVERDUE_SLOTS = 200
"""Receipts may come 96 slots late and readings wait in a home's outbox: then it is unproven."""

log = structlog.get_logger(component=COMPONENT)


@dataclass(slots=True)
class Auditor:
    """
    Compares what meters signed with what was said on chain.

    Args:
        store: where everything is kept
        box: opens sealed readings
        chain_id, grid, rules: of the genesis
    """

    store: AggregatorStore
    box: BoxKey
    chain_id: str
    grid: SlotGrid
    rules: PoeRules
    directory: Directory = field(default_factory=Directory.empty)
    stale: bool = True
    """Something named a meter that is not in the directory: the CSM-DB should be asked."""
    listed: bool = False
    """The CSM-DB has told us which meters there are, since we started."""

    # --- readings -------------------------------------------------------------------------------

    def take_reading(self, home: str, payload: bytes, now_ms: int) -> None:
        """
        Judge and keep a sealed reading that `home` published.

        Raises:
            WireError: it cannot be believed; by name.
        """
        try:
            self._judge(home, payload, now_ms)
        except UnknownSenderError:
            self.stale = True
            with self.store.atomic():
                held = self.store.hold(home, payload, MAX_HELD)
            if not held:
                raise

    def refreshed(self, now_ms: int) -> None:
        """The directory was brought up to date: judge what was held, whatever comes of it."""
        self.stale, self.listed = False, True
        directory = self.directory
        with self.store.atomic():
            self.store.adopt(directory.meter_of_address, directory.meter_of_validator)
        for held, home, payload in self.store.held():
            try:
                self._judge(home, payload, now_ms)
            except WireError as error:
                count_refusal(COMPONENT, error.refusal)
            with self.store.atomic():
                self.store.let_go(held)
        with self.store.atomic():
            for meter in directory.meters:
                self._compare(meter, now_ms)

    def _judge(self, home: str, payload: bytes, now_ms: int) -> None:
        reading = load_record(Reading, decode(self.box.open(payload), MAX_READING_BYTES))
        meter = self.directory.meters.get(reading.meter)
        if meter is None:
            raise UnknownSenderError("meter is not certified", meter=reading.meter[:64])
        if meter.participant != home:
            raise CertificateError("reading of another home's meter", meter=meter.id)
        document = encode(record_json(reading)).decode()
        try:
            check_record(reading, meter.key, self.chain_id)
        except WireError:
            detail = f"reading {reading.seq} (slot {reading.slot}) is not signed by the meter"
            with self.store.atomic():
                self._evidence(now_ms, home, [Finding(TAMPERED, detail)], document)
            raise
        with self.store.atomic():
            self._keep(home, reading, document, now_ms)

    def _keep(self, home: str, reading: Reading, document: str, now_ms: int) -> None:
        store, meter = self.store, reading.meter
        known = store.reading(meter, seq=reading.seq) or store.reading(meter, slot=reading.slot)
        if known is not None:
            self._evidence(now_ms, home, fork(known, reading), document)
            return
        before = store.reading(meter, seq=reading.seq - 1)
        after = store.reading(meter, seq=reading.seq + 1)
        store.add_reading(reading, document)
        self._evidence(now_ms, home, judge(reading, before, after, self.grid), document)
        for earlier, later in ((before, reading), (reading, after)):
            if earlier is not None and later is not None:
                self._judge_gap(home, earlier, later, now_ms)
        for slot in (reading.slot, reading.slot + 1):
            first, last = store.reading(meter, slot=slot - 1), store.reading(meter, slot=slot)
            if first is not None and last is not None:
                store.set_net(meter, slot, net_wh(first, last))
                if slot < store.judged_before():
                    self._judge_silence(slot, slot + 1, now_ms, meter)
        self._compare(meter, now_ms)

    # --- what was said on chain -----------------------------------------------------------------

    def take_receipt(self, event: dict[str, Any], now_ms: int) -> None:
        """Keep a finalised receipt and compare it when its readings are there."""
        address = event["address"]
        meter = self.directory.meter_of_address.get(address, "")
        self.stale = self.stale or not meter
        with self.store.atomic():
            self.store.add_receipt(address, event["slot"], meter, event["netWh"])
            if meter:
                self._compare(meter, now_ms)

    def take_grant(self, event: dict[str, Any]) -> None:
        """Keep in which slots an address is in the market: its meter's receipts are due then."""
        with self.store.atomic():
            self.store.add_grant(event["address"], event["startSlot"], event["endSlot"])
        self.stale = self.stale or event["address"] not in self.directory.meter_of_address

    def take_cpf(self, event: dict[str, Any], now_ms: int) -> None:
        """Keep a finalised attestation and compare it when its readings are there."""
        validator = event["validator"]
        meter = self.directory.meter_of_validator.get(validator, "")
        self.stale = self.stale or not meter
        with self.store.atomic():
            self.store.add_attestation(
                validator, event["endSlot"], meter, event["cpfQ16"], event["eligible"]
            )
            if meter:
                self._compare(meter, now_ms)

    def give_up_overdue(self, current_slot: int, now_ms: int) -> None:
        """Receipts whose readings never came are evidence too, and so are missing receipts."""
        before = current_slot - OVERDUE_SLOTS
        with self.store.atomic():
            self._judge_silence(self.store.judged_before(), before, now_ms)
            self.store.put_judged_before(max(before, self.store.judged_before()))
            for row in self.store.overdue_receipts(before):
                finding = Finding(NO_READING, f"slot {row['slot']}: receipt without readings")
                self._evidence(now_ms, self._home(row["meter"]) or row["address"], [finding])
                self.store.close_receipt(row["address"], row["slot"], "unproven")

    def _judge_silence(self, first: int, before: int, now_ms: int, meter: str = "") -> None:
        """Slots whose receipt can come no more: what flowed is the DSO's to bill."""
        for row in self.store.unreceipted(first, before):
            owner = self.directory.meter_of_address.get(row["address"], "")
            if owner and owner == row["meter"] and meter in ("", owner):
                findings = judge_silence(row["slot"], row["slot"], row["net_wh"])
                self._evidence(now_ms, self._home(owner), findings)

    def _judge_gap(self, home: str, before: Reading, after: Reading, now_ms: int) -> None:
        """Neighbours in the chain that are slots apart: no receipt covers what flowed between."""
        first, last = before.slot + 1, after.slot
        mine = [a for a, meter in self.directory.meter_of_address.items() if meter == after.meter]
        if first < last and any(self.store.in_market(a, first, last) for a in mine):
            self._evidence(now_ms, home, judge_silence(first, last, net_wh(before, after)))

    def _compare(self, meter: str, now_ms: int) -> None:
        """Compare what can be compared of a meter's open receipts and attestations."""
        store, home = self.store, self._home(meter)
        for row in store.open_receipts(meter):
            slot = row["slot"]
            before, after = store.reading(meter, slot=slot - 1), store.reading(meter, slot=slot)
            findings = judge_receipt(slot, row["net_wh"], before, after)
            if findings is not None:
                self._evidence(now_ms, home, findings, readings_document(before, after))
                store.close_receipt(row["address"], slot, "false" if findings else "ok")
        for row in store.open_attestations(meter):
            end = row["end_slot"]
            readings = store.readings(meter, end - self.rules.window_slots, end)
            findings = judge_cpf(end, row["cpf_q16"], bool(row["eligible"]), readings, self.rules)
            if findings is not None:
                self._evidence(now_ms, home, findings)
                store.close_attestation(row["validator"], end, "false" if findings else "ok")

    def _home(self, meter: str) -> str:
        known = self.directory.meters.get(meter)
        return known.participant if known is not None else ""

    def _evidence(
        self, now_ms: int, home: str, findings: list[Finding], document: str = ""
    ) -> None:
        for finding in findings:
            if self.store.add_evidence(now_ms, home, finding, document):
                count_refusal(COMPONENT, Refusal.NOT_ALLOWED)
                log.warning("evidence", home=home, kind=finding.kind, detail=finding.detail)
