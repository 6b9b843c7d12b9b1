"""
The DSO's desk on the bus: private withdrawals in, operations of the supervisor out (ADR 0005);
schedules in, approvals out.

    dso/req/<participant>  withdraw-assets -> CSM-DB: limits, ban, whose address -> decision
                           -> books -> outbox -> ledger;  show-account -> the books
                           approve-schedule -> CSM-DB: an aggregator? -> limits -> books
    ledger events          deposits -> books;  a withdrawal's operation refused -> booked back;
                           debts of addresses, closed accounts -> books: the owner's bill (ADR 0013)

A request passes what one to the CSM-DB passes: rate limit, sealed box, form, time, signature,
replay. The books are written before the outbox, whose keys are theirs, and are asked for what is
unfinished when the desk starts: a crash between the two loses nothing and does nothing twice.

Who watches the broker sees when a participant asks, though not what. So where addresses are fresh,
withdrawals wait for a common moment and leave in an order drawn by lot: which address is paid then
says as little about the asker as there are others who asked (`SafetyPolicy.batch_s`).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import Any

import msgspec
import structlog

from aggregator.accounts import FAILED, Accounts
from aggregator.bills import Bills
from aggregator.grid_limits import GridPolicy, approve, refusal_of
from aggregator.revoked_keys import RevokedKeys
from aggregator.withdrawals import Failed, SafetyPolicy, Standing, decide, operations
from market.assets import EnergyAsset
from runtime.csmdb_client import CsmDbClient, CsmDbRefusedError
from runtime.metrics import count_refusal
from runtime.outbox import OperationOutbox
from runtime.ports import Bus, BusDownError, Clock, Message, Rng
from runtime.rate_limit import RateLimit
from wire import topics
from wire.day_ahead import APPROVE_SCHEDULE, ScheduleRequest, read_schedule
from wire.enrolment import MAX_AGE_MS, MAX_AHEAD_MS, SHOW_PARTICIPANT, make_answer
from wire.envelope import Envelope, EnvelopeReader, parse_envelope
from wire.errors import (
    CertificateError,
    MalformedError,
    Refusal,
    ReplayedError,
    UnknownOperationError,
    WireError,
)
from wire.keys import KEY_BYTES, BoxKey, Domain, SigningKey, from_text, id_of
from wire.replay import ReplayGuard
from wire.slots import SlotGrid
from wire.withdrawal import SHOW_ACCOUNT, WITHDRAW_ASSETS, Withdrawal, read_withdrawal

COMPONENT = "dso"
BURST = 20
PER_SECOND = 2.0
MAX_SENDERS = 20_000
MAX_REQUESTS_REMEMBERED = 100_000
MAX_AT_WORK = 64
"""Requests that wait for the CSM-DB at a time."""
LOOK_UP_S = 10.0
DEPOSITS = ("asset-deposited", "financial-deposited", "account-closed")

log = structlog.get_logger(component=COMPONENT)


class DsoDesk:
    """
    Serves withdrawals and approves schedules on the aggregator's lane.

    Args:
        key: the supervisor's
        box: what requests are sealed to
        limits: what the feeder carries
        rng: draws the order in which withdrawals leave
        energy: whether energy is withdrawn in this market, or given at registration
        batch_s: withdrawals leave at multiples of this in market time [s]; 0: at once
    """

    def __init__(
        self,
        bus: Bus,
        key: SigningKey,
        box: BoxKey,
        market: str,
        grid: SlotGrid,
        accounts: Accounts,
        outbox: OperationOutbox,
        csmdb: CsmDbClient,
        clock: Clock,
        policy: SafetyPolicy,
        limits: GridPolicy,
        rng: Rng,
        *,
        energy: bool,
        batch_s: int = 0,
    ) -> None:
        self.accounts, self.bills = accounts, Bills(accounts)
        self._bus, self._key, self._box = bus, key, box
        self._market, self._grid, self._clock = market, grid, clock
        self._outbox, self._csmdb = outbox, csmdb
        self.revoked = RevokedKeys(csmdb)
        self._policy, self._limits, self._energy = policy, limits, energy
        self._rng, self._batch_ms = rng, batch_s * 1000
        self._ready: dict[str, dict[str, Any]] = {}
        """Operations that wait for the common moment, by key; the books have them too."""
        self._rate = RateLimit(BURST, PER_SECOND, MAX_SENDERS)
        self._reader = EnvelopeReader(
            chain_id=market,
            domain=Domain.MESSAGE,
            key_of=_key_of,
            replay=ReplayGuard(MAX_AGE_MS + MAX_AHEAD_MS + 1_000, MAX_REQUESTS_REMEMBERED),
            max_age_ms=MAX_AGE_MS,
            max_ahead_ms=MAX_AHEAD_MS,
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._standing: list[asyncio.Task[None]] = []
        self._deposits_of = (-1, 0)
        """Height and number of the deposit seen last."""

    def start(self) -> None:
        """Send what is unfinished, and subscribe; works before the bus is connected."""
        for state in self.accounts.unfinished():
            self._send(operations(state.asked, state.reference))
        if self._batch_ms:
            batches = asyncio.create_task(self._every_batch())
            self._standing.append(batches)
        self._bus.subscribe(topics.build(self._market, topics.DSO_REQ, "+"), self.take)

    async def stop(self) -> None:
        """Give up what waits for the CSM-DB; it will be asked for again."""
        tasks = [*self._tasks, *self._standing]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- requests -------------------------------------------------------------------------------

    async def take(self, message: Message) -> None:
        """Handle one request; the CSM-DB is asked in a task of its own."""
        asker = topics.parse(message.topic).leaf
        crowded = len(self._tasks) >= MAX_AT_WORK
        if crowded or not self._rate.admit(asker, self._clock.monotonic_s()):
            count_refusal(COMPONENT, Refusal.RATE_LIMITED)
            return
        try:
            raw = self._box.open(message.payload)
            envelope, _ = parse_envelope(raw)
            box = from_text(_text(envelope.parameters, "boxKey"), KEY_BYTES)
        except WireError as error:
            count_refusal(COMPONENT, error.refusal)
            return
        task = asyncio.create_task(self._serve(asker, raw, envelope, box))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, asker: str, raw: bytes, envelope: Envelope, box: bytes) -> None:
        try:
            self._reader.read(raw, self._clock.wall_ms())
            if envelope.client_id != asker:
                raise CertificateError("request on another's topic", sender=envelope.client_id)
            self.revoked.check(asker)
            answer = await self._decide(envelope)
        except ReplayedError as error:
            count_refusal(COMPONENT, error.refusal)  # it was answered the first time
            return
        except CsmDbRefusedError as error:
            answer = {"refusal": error.reason, "detail": str(error)[:200]}
        except TimeoutError:
            return  # temporary: it will be asked for again
        except WireError as error:
            count_refusal(COMPONENT, error.refusal)
            answer = {"refusal": error.refusal.value, "detail": str(error)[:200]}
        except Exception:
            log.exception("request not served", operation=envelope.operation[:32])
            return
        await self._answer(asker, envelope, answer, box)

    async def _decide(self, envelope: Envelope) -> dict[str, Any]:
        match envelope.operation:
            case op if op == WITHDRAW_ASSETS:
                return await self._withdraw(
                    envelope.client_id, read_withdrawal(envelope.parameters)
                )
            case op if op == SHOW_ACCOUNT:
                return self._show(envelope.client_id)
            case op if op == APPROVE_SCHEDULE:
                return await self._approve_schedule(
                    envelope.client_id, read_schedule(envelope.parameters)
                )
            case other:
                raise UnknownOperationError("not an operation of the DSO", operation=other[:32])

    async def _withdraw(self, participant: str, asked: Withdrawal) -> dict[str, Any]:
        if self.accounts.withdrawal(participant, asked.withdrawal) is None:
            asking = {"participant": participant, "address": asked.address}
            known = (await self._csmdb.ask(SHOW_PARTICIPANT, asking, LOOK_UP_S))["participant"]
            self._take_over(known, participant)
            # From here on nothing waits: two requests cannot spend the same money.
            if self.accounts.withdrawal(participant, asked.withdrawal) is None:
                failed = self._book(participant, asked, known)
                if failed is not None:
                    count_refusal(COMPONENT, failed.refusal)
                    log.info("withdrawal failed", reason=failed.refusal.value)
                    return {"refusal": failed.refusal.value, "detail": failed.detail}
        state = self.accounts.withdrawal(participant, asked.withdrawal)
        assert state is not None
        if state.asked != asked:
            return _refused(Refusal.DUPLICATE, "this name was used for another withdrawal")
        self._send(operations(state.asked, state.reference))
        if state.status == FAILED:
            return {"refusal": state.reason, "detail": "the ledger refused it; booked back"}
        return {"withdrawal": asked.withdrawal, "status": state.status}

    def _book(self, participant: str, asked: Withdrawal, known: dict[str, Any]) -> Failed | None:
        slot = self._grid.slot_at(self._clock.now_ms())
        feeder = str(known["feeder"])
        standing = Standing(
            roles=frozenset(known["roles"]),
            banned=known["banned"],
            feeder=feeder,
            max_import_w=known["maxImportW"],
            max_export_w=known["maxExportW"],
            holds_address=bool(known["grant"]),
            registered=self.accounts.is_registered(asked.address),
            balance_uc=self.accounts.balance_uc(participant),
            own=self.accounts.energy(slot, participant=participant),
            on_feeder=self.accounts.energy(slot, feeder=feeder),
            owed_uc=self.bills.owed_uc(participant),
        )
        failed = decide(
            asked, standing, participant, self._policy, slot, self._grid.length_s,
            energy=self._energy,
        )  # fmt: skip
        if failed is None:
            with self.accounts.atomic():
                self.accounts.withdraw(participant, feeder, asked)
        return failed

    def _take_over(self, known: dict[str, Any], participant: str) -> None:
        """What those had whose place the participant took, under a new key."""
        with self.accounts.atomic():
            for old in known.get("predecessors", ()):
                self.accounts.move(str(old), participant)

    def _show(self, participant: str) -> dict[str, Any]:
        slot = self._grid.slot_at(self._clock.now_ms())
        held = self.accounts.energy(slot, participant=participant)
        return {
            "balanceUc": self.accounts.balance_uc(participant),
            "owedUc": self.bills.owed_uc(participant),
            "withdrawn": [_asset_json(asset) for asset in held],
        }

    async def _approve_schedule(self, asker: str, asked: ScheduleRequest) -> dict[str, Any]:
        # The CSM-DB wants an address named; the asker's own identity never is one.
        asking = {"participant": asker, "address": asker}
        known = (await self._csmdb.ask(SHOW_PARTICIPANT, asking, LOOK_UP_S))["participant"]
        if known["banned"]:
            return _refused(Refusal.BANNED, known["banned"])
        slot, slot_s = self._grid.slot_at(self._clock.now_ms()), self._grid.length_s
        refusal = refusal_of(asked.slots, frozenset(known["roles"]), slot, slot_s)
        if refusal is not None:
            return _refused(refusal, "not a schedule that can be approved")
        before = self.accounts.approved(asker, asked.slots[0][0], asked.slots[-1][0])
        answer = approve(asked.slots, before, self._limits, slot_s)
        with self.accounts.atomic():
            self.accounts.approve(asker, asked.slots, answer)
        log.info("schedule approved", slots=len(answer.slots), changes=len(answer.changes))
        return {
            "slots": [list(row) for row in answer.slots],
            "changes": [msgspec.to_builtins(change) for change in answer.changes],
        }

    async def _answer(
        self, asker: str, request: Envelope, answer: dict[str, Any], box: bytes
    ) -> None:
        try:
            sealed = make_answer(
                self._key, self._market, box, request, answer, self._clock.wall_ms()
            )
            await self._bus.publish(topics.build(self._market, topics.DSO_RSP, asker), sealed)
        except WireError as error:
            count_refusal(COMPONENT, error.refusal)
        except BusDownError:
            log.info("answer not delivered")  # it will be asked for again

    # --- withdrawals that leave -----------------------------------------------------------------

    def _send(self, made: list[tuple[str, dict[str, Any]]]) -> None:
        """Hand operations to the outbox, now or at the common moment; each key is done once."""
        if self._batch_ms:
            self._ready.update(made)
        else:
            self._outbox.add(made)

    async def _every_batch(self) -> None:
        while True:
            due_ms = (self._clock.now_ms() // self._batch_ms + 1) * self._batch_ms
            await self._clock.sleep_until(due_ms)
            try:
                self.send_batch()
            except Exception:
                log.exception("withdrawals wait for the next moment")

    def send_batch(self) -> None:
        """Hand over what waits, in an order that tells nothing of the order it was asked in."""
        lots = self._rng.bytes(32)
        self._outbox.add(
            sorted(
                self._ready.items(), key=lambda one: hashlib.sha256(lots + one[0].encode()).digest()
            )
        )
        self._ready.clear()

    # --- the ledger -----------------------------------------------------------------------------

    def take_event(self, height: int, event: dict[str, Any]) -> None:
        """Take a finalised event: a registration, a balance, or a deposit, each deposit once."""
        name = event["event"]
        if name == "address-registered":
            with self.accounts.atomic():
                self.accounts.register(event["address"])
        elif name == "balance":
            self.bills.take_balance(event["address"], event["balanceUc"])
        elif name in DEPOSITS:
            before, number = self._deposits_of
            number = number + 1 if before == height else 0
            with self.accounts.atomic():
                self.accounts.deposit(height, number, event)
            self._deposits_of = (height, number)  # told again after a failure it is the same one

    def claim(self, owner_of: Callable[[str], str]) -> None:
        """
        Credit deposits that came from addresses of which we knew no owner, and bill their debts.

        Args:
            owner_of: the participant of an address, or empty
        """
        for address in self.accounts.unclaimed():
            participant = owner_of(address)
            if participant:
                with self.accounts.atomic():
                    self.accounts.bind(address, participant)

    def take_result(self, key: str, code: str) -> None:
        """An operation of the outbox is final: a withdrawal's is booked."""
        kind, _, rest = key.partition("/")
        if kind != "withdraw":
            return
        reference, _, number = rest.partition("/")
        with self.accounts.atomic():
            self.accounts.finish(reference, int(number), code)


def _key_of(envelope: Envelope) -> bytes | None:
    """The key comes along; the identity is its hash."""
    public = from_text(_text(envelope.parameters, "key"), KEY_BYTES)
    return public if id_of(public) == envelope.client_id else None


def _text(parameters: dict[str, Any], name: str) -> str:
    text = parameters.get(name)
    if type(text) is not str:
        raise MalformedError("expected a public key", field=name)
    return text


def _refused(refusal: Refusal, detail: str) -> dict[str, Any]:
    count_refusal(COMPONENT, refusal)
    return {"refusal": refusal.value, "detail": detail}


def _asset_json(asset: EnergyAsset) -> dict[str, Any]:
    return {
        "kind": asset.kind.value,
        "energyWh": asset.energy_wh,
        "startSlot": asset.start_slot,
        "endSlot": asset.end_slot,
    }
