"""
The ledger node: the shell around the consensus core and the state machine.

It carries the core's effects out in order, with one fdatasync for all votes of a turn of the event
loop *before* any of them is published; executes final blocks, one SQLite transaction each;
publishes their events; answers what peers and wallets ask; and fetches what it missed.

Whatever arrives is only put down by its handler and used in the next turn, because an error in a
turn ends the process: a node that cannot write or execute must not go on half alive.

A node without a validator key in the genesis is an observer: it follows, executes and answers, and
says nothing in consensus.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from ledger.duties import Duties
from ledger.execution import Ledger
from ledger.fetch import Fetcher
from ledger.genesis import Genesis
from ledger.judging import DRIFT_MS, Verdict, build_content, judge, work_is_due
from ledger.mempool import Mempool
from ledger.protocol import (
    BodiesReady,
    BornRecord,
    BroadcastCertificate,
    BroadcastProposal,
    BroadcastVote,
    CertificateReceived,
    Effect,
    EnterView,
    Epoch,
    Event,
    Evidence,
    Finalized,
    KeyCrypto,
    Persist,
    ProposalBuilt,
    ProposalReceived,
    ProposalRecord,
    Refused,
    RequestMissing,
    RequestNullifications,
    RequestProposal,
    SetTimer,
    Start,
    TimerFired,
    ValidateProposal,
    VoteReceived,
    VoteRecord,
    WorkAvailable,
    decode_record,
    encode_record,
)
from ledger.pruning import Pruner
from ledger.publish import Publisher
from ledger.schedule import Epochs
from ledger.simplex import Core
from ledger.snapshots import SnapshotTaker, default_every_epochs
from ledger.store import LedgerStore
from ledger.types import (
    Certificate,
    Finality,
    Header,
    Proposal,
    Vote,
    VoteKind,
    decode,
    encode,
    header_hash,
)
from ledger.wal import WriteAheadLog
from runtime.metrics import count_refusal
from runtime.ports import Bus, Clock, Message, Rng
from runtime.rng import SystemRng
from wire import topics
from wire.errors import WireError
from wire.keys import SigningKey

MAX_PROPOSAL_BYTES = 120 * 1024
MAX_VOTE_BYTES = 1024
MAX_CERTIFICATE_BYTES = 16 * 1024
BODY_WAIT_S = 0.15
"""Real time given to bodies on their way before they are asked for."""
HOUSEKEEPING_S = 1.0
EARLY_WAIT_S = 0.3
MAX_EARLY = 256
MAX_PROPOSED = 1024
Spoken = VoteRecord | ProposalRecord
"""Records that a validator which speaks leaves in its log (of proposals, those it voted for)."""
Heard = ProposalReceived | VoteReceived | CertificateReceived
"""Events that say what others said; the rest is about one core only."""

log = structlog.get_logger(component="ledger")


class Node:
    """
    One ledger node.

    Args:
        genesis: the chain
        folder: holds ledger.sqlite and votes.wal; what else it may hold see `ledger.duties`
        key: the validator key, or any key for an observer
        bus: a lane under `key.id`
        clock: market time for blocks, real time for timers
        block_interval_s: real time a leader leaves between its blocks, to gather transactions
        rng: for request ids
        votes: False: only follow, whatever seat the key has or gets
        keep_epochs: how many ended epochs stay on the disk; None: all
        settle_s: real time that a node with an empty folder listens before it speaks
    """

    def __init__(
        self,
        genesis: Genesis,
        folder: Path,
        key: SigningKey,
        bus: Bus,
        clock: Clock,
        block_interval_s: float = 0.02,
        rng: Rng | None = None,
        *,
        votes: bool = True,
        keep_epochs: int | None = None,
        settle_s: float = 0.5,
    ) -> None:
        self.genesis = genesis
        self.clock = clock
        self.bus = bus
        self.key = key
        self.store = LedgerStore.in_folder(folder)
        self.ledger = Ledger.open(genesis, self.store)
        self.mempool = Mempool(self.ledger)
        self.epochs = Epochs(genesis, self.ledger, self.store)
        self._snapshots = SnapshotTaker(self.store, default_every_epochs(genesis))
        self._pruner = Pruner(self.store, clock, keep_epochs) if keep_epochs is not None else None
        self._votes = WriteAheadLog(folder / "votes.wal")
        self._spoke = False
        """True once something of ours is in the vote log."""
        self._born = self._read_birth()
        self._settle_s = settle_s
        self._settling = self._born.fresh and not self._spoke
        """True until it is known whether the chain was there before this folder."""
        self._kept_bodies: set[bytes] = set()
        self._publisher = Publisher(self)
        self._fetcher = Fetcher(self)
        self._duties = Duties(self, folder, rng or SystemRng())
        self._interval_s = block_interval_s
        self._may_vote = votes
        self._last_block_s = self._entered_s = 0.0
        self._events: deque[Event] = deque()
        self._early: deque[Event] = deque(maxlen=MAX_EARLY)
        self._jobs: deque[Callable[[], None]] = deque()
        self._look = False
        """True when bodies came or blocks were executed: something may be judged or done now."""
        self._wake = asyncio.Event()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._judging: dict[bytes, ValidateProposal] = {}
        self._building: RequestProposal | None = None
        self._to_execute: deque[tuple[Proposal, Finality | None]] = deque()
        self._proposed_s: dict[bytes, float] = {}
        self._epoch: Epoch
        self._core: Core
        self._swept_s = 0.0

    def find_proposal(self, block_hash: bytes) -> Proposal | None:
        """An unfinalised proposal that the core knows."""
        return self._core.proposal(block_hash)

    @property
    def epoch(self) -> Epoch:
        """The running epoch."""
        return self._epoch

    @property
    def view(self) -> int:
        """The present view."""
        return self._core.view

    @property
    def executed_height(self) -> int:
        """Height of the last executed block."""
        return self.ledger.executed_height

    async def run(self) -> None:
        """
        Follow the chain until cancelled.

        Raises:
            Exception: whatever broke. Nothing was signed or stored in halves; start again, or look
                at the disk.
        """
        self._recover_bodies()
        self._new_core(self.epochs.current(), restore=True)
        self._subscribe()
        await self.bus.start()
        try:
            async with asyncio.TaskGroup() as tasks:
                for work in (
                    self._turn_for_ever,
                    self._housekeeping,
                    self._fetcher.run,
                    self._settle,
                ):
                    tasks.create_task(work())
        except ExceptionGroup as group:
            log.critical("the node stops", reason=str(group.exceptions[0]))
            raise group.exceptions[0] from None
        finally:
            self._cancel_timers()
            self._snapshots.close()
            await self.bus.stop()
            self._votes.close()
            self.store.close()

    # --- What comes in ---------------------------------------------------------------------------

    def _subscribe(self) -> None:
        market = self.genesis.market
        for kind, leaf, handler in (
            (topics.TX, "+", self._take_transaction),
            (topics.CONSENSUS_PROPOSAL, "", self._take_proposal),
            (topics.CONSENSUS_VOTE, "+", self._take_vote),
            (topics.CONSENSUS_CERT, "", self._take_certificate),
            (topics.SYNC_REQ, "+", self._publisher.take_request),
            (topics.SYNC_RSP, self.key.id, self._fetcher.take_answer),
        ):
            self.bus.subscribe(topics.build(market, kind, leaf), handler)

    async def _take_transaction(self, message: Message) -> None:
        try:
            sender = topics.parse(message.topic).leaf
            self.mempool.add(message.payload, self.clock.now_ms(), sender)
        except WireError as error:
            count_refusal("mempool", error.refusal)
            log.info("transaction refused", reason=error.refusal.value, topic=message.topic[-12:])
            return
        self.look()

    async def _take_proposal(self, message: Message) -> None:
        self.take_proposal(decode(Proposal, message.payload, MAX_PROPOSAL_BYTES))

    def take_certificate(self, certificate: Certificate) -> None:
        """Hand a fetched certificate to the core."""
        self._post_of(certificate.epoch, CertificateReceived(certificate))

    def nullifications(self, epoch: int, first: int, last: int, limit: int) -> list[Certificate]:
        """What the core knows of an epoch's nullified views."""
        return self._core.nullifications(first, last, limit) if epoch == self._epoch.epoch else []

    def take_proposal(self, proposal: Proposal) -> None:
        """Hand a published or fetched proposal to the core."""
        if len(self._proposed_s) < MAX_PROPOSED:  # a validator may invent as many as it likes
            self._proposed_s.setdefault(header_hash(proposal.header), self.clock.monotonic_s())
        self._post_of(proposal.header.epoch, ProposalReceived(proposal))

    async def _take_vote(self, message: Message) -> None:
        vote = decode(Vote, message.payload, MAX_VOTE_BYTES)
        self._post_of(vote.epoch, VoteReceived(vote))

    async def _take_certificate(self, message: Message) -> None:
        self.take_certificate(decode(Certificate, message.payload, MAX_CERTIFICATE_BYTES))

    def _post_of(self, epoch: int, event: Event) -> None:
        """
        Hand a consensus message to its epoch's core.

        Validators turn the epoch within moments of each other: what comes from the next one waits
        a little for us to turn too, before the core takes it as a sign of being behind.
        """
        if epoch != self._epoch.epoch + 1:
            self._post(event)
            return
        if not self._early:
            self._later("early", EARLY_WAIT_S, self._release_early)
        self._early.append(event)

    def _release_early(self) -> None:
        for event in self._early:
            self._post(event)
        self._early.clear()

    def _post(self, event: Event) -> None:
        self._events.append(event)
        self._wake.set()

    def do_soon(self, job: Callable[[], None]) -> None:
        """Let a turn do something that may execute blocks; a `WireError` in it is counted."""
        self._jobs.append(job)
        self._wake.set()

    def look(self) -> None:
        """Bodies came: judge, execute and build in the next turn what waited for them."""
        self._look = True
        self._wake.set()

    # --- Turns -----------------------------------------------------------------------------------

    async def _turn_for_ever(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            self.turn()
            await asyncio.sleep(0)

    def turn(self) -> None:
        """Do all that waits: jobs first, then the core's events and what it wants done."""
        while self._jobs or self._look or self._events:
            while self._jobs:
                self._do(self._jobs.popleft())
            if self._look:
                self._look = False
                self._execute_ready()
                for block_hash in list(self._judging):
                    self._judge(block_hash)
                self._tell_work()
            self._step()

    def _do(self, job: Callable[[], None]) -> None:
        try:
            job()
        except WireError as error:
            count_refusal("fetch", error.refusal)
            log.info("answer refused", reason=str(error))

    def _step(self) -> None:
        """Step the core through all waiting events, then carry out what it wants."""
        effects: list[Effect] = []
        while self._events:
            event = self._events.popleft()
            effects += self._core.step(event, self.clock.monotonic_s())
        durable = False
        for effect in effects:
            if isinstance(effect, Persist):
                self._votes.append(encode_record(effect.record))
                self._spoke = self._spoke or isinstance(effect.record, Spoken)
                durable = durable or effect.durable
        if durable:
            self._votes.sync()
        core = self._core
        for effect in effects:
            if core is not self._core:
                break  # the epoch ended: what the old core still wanted is void
            self._perform(effect)

    def _perform(self, effect: Effect) -> None:  # noqa: PLR0912
        match effect:
            case BroadcastProposal(proposal):
                self._proposed_s.setdefault(header_hash(proposal.header), self.clock.monotonic_s())
                self._say(topics.CONSENSUS_PROPOSAL, "", encode(proposal))
            case BroadcastVote(vote):
                self._say(topics.CONSENSUS_VOTE, self.key.id, encode(vote))
            case BroadcastCertificate(certificate):
                final = certificate.kind == VoteKind.FINALIZE
                self._say(topics.CONSENSUS_CERT, "", encode(certificate), retain=final)
            case SetTimer(timer, view, seconds):
                self._set_timer(timer.value, seconds, TimerFired(timer, view))
            case RequestProposal():
                self._building = effect
                self._build()
            case ValidateProposal(block_hash=block_hash):
                self._judging[block_hash] = effect
                self._judge(block_hash)
            case Finalized(blocks=blocks):
                for number, proposal in enumerate(blocks):
                    self._to_execute.append((proposal, effect.finality(number)))
                self._execute_ready()
            case RequestMissing(block_hash, above_height):
                self._fetcher.missing(block_hash, above_height)
            case RequestNullifications(first_view, last_view):
                self._fetcher.nullifications_wanted(self._epoch.epoch, first_view, last_view)
            case EnterView(view, leader, nullified):
                self._building = None
                self._entered_s = self.clock.monotonic_s()
                if nullified:
                    log.info("view nullified", epoch=self._epoch.epoch, view=view, leader=leader)
            case Evidence(first, second):
                self._duties.accuse(first, second)
            case Refused(reason, what):
                count_refusal("consensus", reason)
                log.debug("refused", reason=reason.value, what=what)
            case Persist():
                pass

    def _say(self, kind: str, leaf: str, payload: bytes, *, retain: bool = False) -> None:
        # Not waited for: what is lost is said again by R6.
        self.bus.publish_soon(topics.build(self.genesis.market, kind, leaf), payload, retain=retain)

    # --- Building and judging --------------------------------------------------------------------

    def _build(self) -> None:
        """Answer the core's request for a block, when its time has come and there is work."""
        request = self._building
        if request is None:
            return
        wait_s = self._wait_s(request)
        if wait_s > 0:
            self._later("build", wait_s, lambda: self.do_soon(self._build))
            return
        content = build_content(
            request,
            self.ledger,
            self.mempool,
            self._epoch,
            self.clock.now_ms(),
            self._unexecuted(),
        )
        if content is None:
            return
        self._building = None
        self._last_block_s = self.clock.monotonic_s()
        self._keep_bodies(content.txids)
        self._post(ProposalBuilt(request.view, request.parent_hash, content))

    def _wait_s(self, request: RequestProposal) -> float:
        """How long a leader still waits: between blocks, and in each view while finality lags."""
        if self._core.lagging:
            due_s = self._entered_s + self._core.delta_s / 2
        elif request.must:
            return 0.0
        else:
            due_s = self._last_block_s + self._interval_s
        return due_s - self.clock.monotonic_s()

    def _judge(self, block_hash: bytes) -> None:
        request = self._judging.get(block_hash)
        if request is None:
            return
        newest = self._to_execute[-1][0].header.height if self._to_execute else self.executed_height
        if request.proposal.header.height <= newest:
            del self._judging[block_hash]  # decided without us
            return
        verdict, reason = judge(
            request,
            self.ledger,
            self.mempool,
            self._epoch,
            self.clock.now_ms(),
            self._unexecuted(),
        )
        if verdict is Verdict.WAIT:
            missing = self.mempool.missing(request.proposal.txids)
            if missing:
                self._fetcher.bodies_wanted(missing, BODY_WAIT_S)
            return
        del self._judging[block_hash]
        if verdict is Verdict.VALID:
            self._keep_bodies(request.proposal.txids)
            self._post(BodiesReady(block_hash, True))
            return
        log.warning("proposal is not valid", reason=reason, view=request.proposal.header.view,
                    proposer=request.proposal.header.proposer)  # fmt: skip
        # Not at once: if, by a mistake, nobody's proposals were found valid, views would race.
        answer = BodiesReady(block_hash, False)
        self._later(f"invalid {block_hash.hex()}", self._core.delta_s, lambda: self._post(answer))

    def _tell_work(self) -> None:
        now_ms = self.clock.now_ms()
        pending = work_is_due(self.ledger, now_ms) or self.mempool.has_work(now_ms)
        self._post(WorkAvailable(pending))

    def _unexecuted(self) -> list[bytes]:
        """Transactions of final blocks that wait for bodies."""
        return [txid for proposal, _ in self._to_execute for txid in proposal.txids]

    def _keep_bodies(self, txids: Sequence[bytes]) -> None:
        """Put bodies on the disk: what I vote for must not be lost with me."""
        new = [tx for txid in txids if (tx := self.mempool.get(txid)) is not None]
        new = [tx for tx in new if tx.txid not in self._kept_bodies]
        self.store.keep_bodies((tx.txid, tx.raw) for tx in new)
        self._kept_bodies.update(tx.txid for tx in new)

    def _recover_bodies(self) -> None:
        """Take the kept bodies back; a sender's registration may come after what depends on it."""
        waiting = self.store.kept_bodies()
        while waiting:
            unknown = []
            for raw in waiting:
                try:
                    self._kept_bodies.add(self.mempool.add_fetched(raw).txid)
                except WireError:
                    unknown.append(raw)
            if len(unknown) == len(waiting):
                log.warning("kept bodies are of no use", number=len(unknown))
                return
            waiting = unknown

    # --- Execution -------------------------------------------------------------------------------

    def _execute_ready(self) -> None:
        """Execute final blocks in order, as far as their bodies are here."""
        while self._to_execute:
            proposal, finality = self._to_execute[0]
            if proposal.header.height <= self.executed_height:
                self._to_execute.popleft()
                continue
            missing = self.mempool.missing(proposal.txids)
            if missing:
                self._fetcher.bodies_wanted(missing, 0.0)
                break
            self.execute(proposal.header, proposal.txids, finality)
            if self._to_execute and self._to_execute[0][0] is proposal:
                self._to_execute.popleft()
            self.look()

    def execute(self, header: Header, txids: Sequence[bytes], finality: Finality | None) -> None:
        """
        Execute one final block whose bodies are here, publish its events, turn the epoch.

        Args:
            finality: None when that of a later block covers it; never of a seal
        """
        txs = [tx for txid in txids if (tx := self.mempool.get(txid)) is not None]
        assert len(txs) == len(txids)
        result = self.ledger.execute(header, txs, b"" if finality is None else encode(finality))
        self._snapshots.executed(header)
        self._duties.saw_block(header, [tx.sender for tx in txs])
        self.mempool.remove(txids)
        self._kept_bodies.difference_update(txids)
        started_s = self._proposed_s.pop(header_hash(header), None)
        finality_ms = (
            round((self.clock.monotonic_s() - started_s) * 1000) if started_s is not None else -1
        )
        self._publisher.block_executed(header, result, finality_ms)
        if header.seal:
            assert finality is not None
            epoch = self.epochs.after_seal(header, finality)
            self._to_execute.clear()
            self._new_core(epoch, restore=False)

    def jumped(self, header: Header, finality: Finality) -> None:
        """A fetched block was executed: let the core of its epoch go on from there."""
        if self._settling and self._born.fresh:
            self._born = BornRecord(self.clock.now_ms(), fresh=False)
            self._start_log_anew()
        if not header.seal:
            effects = self._core.jump(header, finality.certificate)
            for effect in effects:
                if isinstance(effect, Persist):
                    self._votes.append(encode_record(effect.record))
            self._votes.sync()
            for effect in effects:
                self._perform(effect)
        self.look()

    def _new_core(self, epoch: Epoch, *, restore: bool) -> None:
        self._cancel_timers()
        self._judging.clear()
        self._proposed_s.clear()
        self._building = None
        self._events = deque(e for e in self._events if isinstance(e, Heard))
        self._events.appendleft(Start())
        self._wake.set()
        self._epoch = epoch
        crypto = KeyCrypto(self.genesis.chain_id, epoch.validators, self.key)
        self._core = Core(epoch, self._seat(epoch), crypto)
        if restore:
            self._core.restore([decode_record(raw) for raw in self._votes.entries()])
            self._jump_to_tip()
        else:
            self._start_log_anew()
        early, self._early = self._early, deque(maxlen=MAX_EARLY)
        for event in early:
            self._post(event)

    def _seat(self, epoch: Epoch) -> int | None:
        """
        Our index among the epoch's validators; None when we have no seat or must not use it.

        A log that was begun within this epoch does not hold what was signed in it before: without
        it we might contradict ourselves, so we only watch until the next epoch. A founder that
        begins with the chain has signed nothing before: it has its seat in the first epoch, and in
        one that begins about when its log does.
        """
        seat = epoch.validators.index(self.key.id) if self._may_vote else None
        if seat is None:
            return None
        if self._settling:
            return None
        age_ms = epoch.base_time_ms - self._born.time_ms
        if age_ms > DRIFT_MS:
            return seat
        if self._born.fresh and (epoch.epoch == 0 or age_ms >= -DRIFT_MS):
            return seat
        log.warning("watching: the vote log is younger than this epoch", epoch=epoch.epoch)
        return None

    def _read_birth(self) -> BornRecord:
        """When the vote log was begun; it is now when there is none."""
        records = [decode_record(raw) for raw in self._votes.entries()]
        if not records:
            born = BornRecord(self.clock.now_ms(), fresh=self.store.tip is None)
            self._votes.append(encode_record(born))
            self._votes.sync()
            return born
        self._spoke = any(isinstance(one, Spoken) for one in records)
        found = [one for one in records if isinstance(one, BornRecord)]
        return found[0] if found else BornRecord(0, fresh=True)

    async def _settle(self) -> None:
        """
        Listen, with an empty folder, before the first word.

        If others have final blocks already, our key may have voted from another folder: then this
        log is not a founder's (`jumped`). Founders that begin together find none, and begin. Only
        proven blocks count: what a liar says of epochs to come must not keep founders silent.
        """
        if self._settling:
            await self.bus.wait_connected()
            self._fetcher.missing(b"", 0)
            await asyncio.sleep(self._settle_s / 2)
            self._fetcher.missing(b"", self.executed_height)
            await asyncio.sleep(self._settle_s / 2)
            self.do_soon(self._settled)

    def _settled(self) -> None:
        self._settling = False
        self._core.me = self._seat(self._epoch)
        self.look()

    def _jump_to_tip(self) -> None:
        """Tell a restored core what was executed in its epoch."""
        tip = self.store.tip
        if tip is None or tip.header.seal or tip.header.epoch != self._epoch.epoch:
            return
        if not tip.certificate:
            return  # killed in the middle of a long run: the core finds its end in its log
        self._core.jump(tip.header, decode(Finality, tip.certificate).certificate)

    def _start_log_anew(self) -> None:
        """Drop what the log holds of ended epochs: their blocks are on the disk (`Epochs`)."""
        records = [self._born, *self._core.records()]
        self._votes.rewrite(encode_record(record) for record in records)

    # --- Time ------------------------------------------------------------------------------------

    async def _housekeeping(self) -> None:
        """Begin-block work comes due with market time: look often enough, cheaply."""
        while True:
            due_ms = self.ledger.next_due_ms()
            wait_s = HOUSEKEEPING_S
            if due_ms is not None:
                wait_s = min(wait_s, max(0.01, self.clock.real_seconds_until(due_ms)))
            await asyncio.sleep(wait_s)
            if work_is_due(self.ledger, self.clock.now_ms()):
                self._tell_work()
            if self.clock.monotonic_s() - self._swept_s >= HOUSEKEEPING_S:
                self._swept_s = self.clock.monotonic_s()
                self._drop_useless()
                if self._may_vote:
                    self.do_soon(self._duties.tend)
                if self._pruner is not None:
                    self._pruner.tend()
                self._publisher.tell_refusals()

    def _drop_useless(self) -> None:
        """
        Forget what can never be executed: expired, or with a nonce that was used.

        But for what undecided blocks hold: it may have expired since it was proposed, and must
        still be here when they are final.
        """
        undecided = set(self._unexecuted())
        undecided.update(*(block.proposal.txids for block in self._core.tree.blocks()))
        useless = self.mempool.drop_useless(self.clock.now_ms(), undecided)
        if useless:
            gone = [tx.txid for tx in useless]
            self.store.forget_bodies(gone)
            self._kept_bodies.difference_update(gone)

    def _set_timer(self, name: str, seconds: float, event: Event) -> None:
        self._later(name, seconds, lambda: self._post(event))

    def _later(self, name: str, seconds: float, call: Callable[[], None]) -> None:
        """Call something that only puts down what a turn then does."""
        old = self._timers.pop(name, None)
        if old is not None:
            old.cancel()

        def fire() -> None:
            del self._timers[name]
            call()

        self._timers[name] = asyncio.get_running_loop().call_later(seconds, fire)

    def _cancel_timers(self) -> None:
        for handle in self._timers.values():
            handle.cancel()
        self._timers.clear()
