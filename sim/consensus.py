"""
A deterministic world for the consensus core: one seed, one schedule of everything.

n validators run the very `ledger.simplex.Core` of the real node, over a network that delays, drops,
duplicates, reorders and splits, on machines that crash in the middle of a turn and come back from
their logs, of which the disk lost, cut or garbled whatever was not synced. The application is
trivial: transactions are random hashes, the state is the hash chain of executed blocks, and the
first block of a new slot seals the epoch.

After `heal_s` the faults stop, and everything submitted must become final at every correct node.
What must always hold is checked after every event (`Watcher`).

    result = run(seed=7, n=4)
    assert not result.violations

Adapted ideas: FoundationDB's and TigerBeetle's simulation testing (one seed reproduces a run).
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random

from ledger.poe import Candidate, leader_order
from ledger.protocol import (
    BodiesReady,
    BroadcastCertificate,
    BroadcastProposal,
    BroadcastVote,
    CertificateReceived,
    CertificateRecord,
    Content,
    Crypto,
    Effect,
    EnterView,
    Epoch,
    Event,
    Evidence,
    Finalized,
    Persist,
    ProposalBuilt,
    ProposalReceived,
    RequestMissing,
    RequestNullifications,
    RequestProposal,
    SetTimer,
    Start,
    TimerFired,
    ValidateProposal,
    VoteReceived,
    WorkAvailable,
    conflict,
    decode_record,
    encode_record,
)
from ledger.simplex import Core, ForkError
from ledger.types import (
    Certificate,
    Finality,
    Header,
    Proposal,
    ValidatorSet,
    Vote,
    VoteKind,
    certificate_votes,
    genesis_hash,
    header_hash,
    proposal_vote,
    vote_message,
)
from ledger.wal import frame, read_entries

CHAIN_ID = "hg-sim"
START_MS = 1_000_000
SLOT_MS = 3_000
MAX_BLOCK_TXS = 20
BUILD_DELAY_S = 0.03
NULLIFICATIONS_PER_ANSWER = 8
RESEND_S = 3.0
HOLE = 0.3
"""How often a torn write has a hole: later sectors were written before earlier ones."""
KINDS = (*(kind.name for kind in VoteKind), "ProposalReceived", "CertificateReceived")
"""Of messages, as a broker tells them apart."""
OLD_LOG = 0.5
"""How often a machine that dies at the end of an epoch has not replaced its log yet."""
FIRST_ROOT = hashlib.sha256(b"state").digest()


@dataclass(frozen=True)
class Faults:
    """What the network and the machines do until `heal_s`."""

    drop: float = 0.1
    duplicate: float = 0.05
    delay_s: tuple[float, float] = (0.002, 0.08)
    partitions: int = 2
    crashes: int = 3
    lost_blocks_max: int = 2
    """Executed blocks that a crash may take back (they are re-executed)."""
    moods: int = 0
    """How often the broker changes its mind about whom it shows what."""
    hide: float = 0.0
    """Share of what one validator says to another, by kind of message, that it hides in a mood."""


CALM = Faults(drop=0.0, duplicate=0.0, partitions=0, crashes=0)


@dataclass(frozen=True)
class Plan:
    """One run."""

    seed: int
    n: int = 4
    faults: Faults = Faults()
    transactions: int = 60
    submit_s: float = 8.0
    heal_s: float = 8.0
    end_s: float = 20.0
    patience_s: float = 40.0
    """How much longer it may take: where messages take longer than Δ0, Δ has to grow first."""
    byzantine: Mapping[int, type[Node]] = field(default_factory=dict)
    """Nodes that are not the honest kind, by index."""
    twins: frozenset[int] = frozenset()
    """Validators that run twice with one key (they count as Byzantine)."""
    node: type[Node] | None = None
    """The honest kind, when it is not `Node`: a mutant of the shell."""
    core: type[Core] = Core
    validator_set: type[ValidatorSet] = ValidatorSet
    keep_log: bool = True
    """False: a mutant that restarts without its log."""


@dataclass
class Result:
    """What came of a run."""

    violations: list[str]
    heights: dict[int, int]
    """Final height of each correct node."""
    epochs: int
    nullified_views: int
    transactions_final: int
    evidence: set[int]
    """Validators that were caught."""
    messages: int
    views: int
    """Views that some correct node entered."""
    log_hash: str
    """Hash over all events: equal for equal seeds."""
    hidden: int = 0
    """Messages that the broker showed to others only."""


class SimCrypto:
    """Signatures without the cost: a keyed hash that only this object can make."""

    def __init__(self, me: int) -> None:
        self._me = me

    def sign(self, message: bytes) -> bytes:
        """My signature."""
        return _mac(self._me, message)

    def verify(self, validator: int, message: bytes, signature: bytes) -> bool:
        """Check anybody's."""
        return signature == _mac(validator, message)


def run(seed: int, n: int = 4, **plan: object) -> Result:
    """Run one plan to its end (or to the first violation)."""
    return World(Plan(seed=seed, n=n, **plan)).run()  # type: ignore[arg-type]


class World:
    """Time, network, machines."""

    chain_id = CHAIN_ID
    fatal: tuple[type[Exception], ...] = (ForkError,)
    """What a node stops with when the rules were broken."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.rng = Random(plan.seed)
        self.now_s = 0.0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._log = hashlib.sha256()
        self.messages = 0
        ids = tuple(f"v{index}" for index in range(plan.n))
        keys = tuple(hashlib.sha256(name.encode()).digest() for name in ids)
        self.validators = plan.validator_set(ids, keys)
        self.groups: dict[int, int] = {}
        self.mood: frozenset[tuple[int, int, str]] = frozenset()
        """What the broker hides: the sender's place, the receiver's, and the kind of message."""
        self.hidden = 0
        self.claims = {index: kind.claims_cpf_q16 for index, kind in plan.byzantine.items()}
        """The CPF that a validator says it has; None: whatever the epoch's lot gives it."""
        self.retained: Certificate | None = None
        """What the broker shows to everyone who connects."""
        self.watcher = self.make_watcher()
        self.honest = plan.node or Node
        indexes = [*range(plan.n), *sorted(plan.twins)]
        self.nodes = [
            plan.byzantine.get(index, self.honest)(self, place, index)
            for place, index in enumerate(indexes)
        ]
        self._submitted: list[bytes] = []
        self._schedule_faults()
        self._schedule_work()

    def make_watcher(self) -> Watcher:
        """Who checks this world."""
        return Watcher(self)

    @property
    def market_ms(self) -> int:
        """Market time: the same on every machine."""
        return START_MS + int(self.now_s * 1000)

    @property
    def correct(self) -> list[Node]:
        """The nodes that follow the protocol."""
        return [
            node
            for node in self.nodes
            if type(node) is self.honest and node.index not in self.plan.twins
        ]

    def run(self) -> Result:
        """Until the end, or the first violation."""
        for node in self.nodes:
            self.after(self.rng.uniform(0, 0.05), node.boot)
        while self._queue and not self.watcher.violations:
            self.now_s, _, action = heapq.heappop(self._queue)
            if self.now_s > self.plan.end_s and (
                self.now_s > self.plan.end_s + self.plan.patience_s
                or not self.watcher.lacks(self._submitted)
            ):
                break
            try:
                action()
            except self.fatal as error:
                self.watcher.fail(str(error))
        if not self.watcher.violations:
            self.watcher.check_progress(self._submitted)
        final = self.watcher.transactions
        return Result(
            self.watcher.violations,
            {node.index: node.height for node in self.correct},
            max(node.epoch.epoch for node in self.correct) + 1,
            self.watcher.nullified,
            len(final),
            self.watcher.evidence,
            self.messages,
            len(self.watcher.views),
            self._log.hexdigest(),
            self.hidden,
        )

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something later."""
        self._count += 1
        heapq.heappush(self._queue, (self.now_s + seconds, self._count, action))

    def note(self, place: int, what: str, detail: bytes = b"") -> None:
        """Add to the event log."""
        line = f"{self.now_s:.6f} {place} {what} ".encode() + detail
        self._log.update(hashlib.sha256(line).digest())

    @property
    def faulty(self) -> bool:
        """True before the world heals."""
        return self.now_s < self.plan.heal_s

    def broadcast(self, sender: Node, event: Event) -> None:
        """Send to everybody else."""
        for node in self.nodes:
            if node is not sender:
                self.send(sender, node, event)

    def send(self, sender: Node, receiver: Node, event: Event) -> None:
        """Send to one, as well as the network is today."""
        if (
            self.mood
            and self.faulty
            and (sender.place, receiver.place, kind_of(event)) in self.mood
        ):
            self.hidden += 1
            return
        self.carry(sender, receiver, lambda: receiver.take(event))

    def carry(self, sender: Node, receiver: Node, action: Callable[[], None]) -> None:
        """Let something happen at the receiver, later, never or twice."""
        faults, rng = self.plan.faults, self.rng
        self.messages += 1
        if self.faulty:
            groups = self.groups
            split = groups and groups.get(sender.place, 0) != groups.get(receiver.place, 0)
            if split or rng.random() < faults.drop:
                return
            if rng.random() < faults.duplicate:
                self.after(rng.uniform(*faults.delay_s) * 3, action)
        self.after(rng.uniform(*faults.delay_s), action)

    def _schedule_faults(self) -> None:
        plan, rng = self.plan, self.rng
        for _ in range(plan.faults.partitions):
            start_s = rng.uniform(0.5, plan.heal_s * 0.8)
            groups = {node.place: rng.randrange(2) for node in self.nodes}
            self.after(start_s, lambda groups=groups: self._split(groups))  # type: ignore[misc]
            self.after(start_s + rng.uniform(0.3, plan.heal_s * 0.3), lambda: self._split({}))
        for _ in range(plan.faults.crashes):
            victim = rng.choice(self.nodes)
            self.after(rng.uniform(0.3, plan.heal_s * 0.9), victim.crash_soon)
        for node in self.nodes:
            self.after(plan.heal_s + 0.2, node.connected)

        for number in range(plan.faults.moods):
            self.after(plan.heal_s * number / plan.faults.moods, self._change_mood)

    def _split(self, groups: dict[int, int]) -> None:
        self.groups = groups

    def _change_mood(self) -> None:
        places = range(len(self.nodes))
        self.mood = frozenset(
            (sender, receiver, kind)
            for sender in places
            for receiver in places
            for kind in KINDS
            if self.rng.random() < self.plan.faults.hide
        )

    def _schedule_work(self) -> None:
        for number in range(self.plan.transactions):
            txid = hashlib.sha256(f"{self.plan.seed}/{number}".encode()).digest()
            self._submitted.append(txid)
            self.after(self.rng.uniform(0.1, self.plan.submit_s), lambda t=txid: self._submit(t))  # type: ignore[misc]

    def _submit(self, txid: bytes) -> None:
        for node in self.nodes:
            # A transaction that is lost on the way to some is fetched when it is proposed; one
            # that is lost to all is submitted again by its sender.
            if not (self.faulty and self.rng.random() < self.plan.faults.drop):
                delay_s = self.rng.uniform(*self.plan.faults.delay_s)
                self.after(delay_s, lambda node=node: node.take_transaction(txid))  # type: ignore[misc]
        if self.faulty:
            self.after(self.plan.heal_s - self.now_s + 0.1, lambda: self._submit(txid))
        else:
            self.after(RESEND_S, lambda: self._submit_again(txid))

    def _submit_again(self, txid: bytes) -> None:
        """A sender goes on until its transaction is final: all who had it may have crashed."""
        if txid not in self.watcher.transactions:
            self._submit(txid)


class Node:
    """An honest shell: what the real node does, without the disk and the network."""

    claims_cpf_q16: int | None = None
    """None: an honest meter's, which is drawn by lot for every epoch."""

    def __init__(self, world: World, place: int, index: int) -> None:
        self.world = world
        self.place = place
        self.index = index
        self.disk = b""
        """The vote log's file: what has been synced."""
        self.chain: list[tuple[Proposal | None, Header, tuple[bytes, ...], Finality]] = []
        self.roots = [FIRST_ROOT]
        self._unsynced = b""
        self._bodies: set[bytes] = set()
        self._executed: set[bytes] = set()
        self._judging: dict[bytes, ValidateProposal] = {}
        self._timers: dict[str, int] = {}
        self._life = 0
        self._dying = False
        self.up = False
        self.epoch: Epoch
        self.core: Core

    # --- Life -------------------------------------------------------------------------------------

    @property
    def height(self) -> int:
        """Executed height."""
        return len(self.chain)

    @property
    def seat(self) -> int:
        """Index among the validators of the running epoch."""
        return self.index

    @property
    def crypto(self) -> Crypto:
        """Signs and checks votes of the running epoch."""
        return SimCrypto(self.index)

    def root_after(self, height: int) -> bytes:
        """Root of the state after an executed block."""
        return self.roots[height]

    def boot(self) -> None:
        """Start from the disk."""
        self.up = True
        self._life += 1
        self._judging.clear()
        self._timers.clear()
        seals = [number for number, block in enumerate(self.chain) if block[1].seal]
        self._new_core(self.chain[seals[-1]] if seals else None)
        if self.world.plan.keep_log:
            self.core.restore(decode_record(raw) for raw in self._open_log())
        if self.chain and not self.chain[-1][1].seal:
            _, header, _, finality = self.chain[-1]
            self.perform(self.core.jump(header, finality.certificate))
        self.take(Start())
        self._tell_work()
        self.connected()

    def connected(self) -> None:
        """The broker shows its retained message."""
        if self.world.retained is not None:
            self.take(CertificateReceived(self.world.retained))

    def crash_soon(self) -> None:
        """Crash in the middle of the next turn."""
        self._dying = self.up

    def _crash(self) -> None:
        world = self.world
        world.note(self.place, "crash")
        self.up = self._dying = False
        self.disk += self._torn(self._unsynced)
        self._unsynced = b""
        self._lose_blocks()
        world.after(world.rng.uniform(0.1, 2.0), self.boot)

    def _lose_blocks(self) -> None:
        """The last executed blocks may not have reached the disk."""
        for _ in range(self.world.rng.randint(0, self.world.plan.faults.lost_blocks_max)):
            if self.chain and not self.chain[-1][1].seal:
                _, _, txids, _ = self.chain.pop()
                self.roots.pop()
                self._executed.difference_update(txids)

    def _torn(self, unsynced: bytes) -> bytes:
        """What a crash leaves of an unsynced write: its beginning, maybe with a hole of zeros."""
        rng = self.world.rng
        left = bytearray(unsynced[: rng.randint(0, len(unsynced))])
        if left and rng.random() < HOLE:
            start, end = sorted(rng.randint(0, len(left)) for _ in range(2))
            left[start:end] = bytes(end - start)
        return bytes(left)

    def _open_log(self) -> list[bytes]:
        """Cut off a bad tail; the payloads before it."""
        entries = list(read_entries(self.disk))
        self.disk = self.disk[: entries[-1][1] if entries else 0]
        return [payload for payload, _ in entries]

    def _new_core(
        self, seal: tuple[Proposal | None, Header, tuple[bytes, ...], Finality] | None
    ) -> None:
        world = self.world
        number, base_hash, height, time_ms = 0, genesis_hash(CHAIN_ID), 0, START_MS
        certificate = None
        if seal is not None:
            header = seal[1]
            number, base_hash = header.epoch + 1, header_hash(header)
            height, time_ms, certificate = header.height, header.time_ms, seal[3].certificate
        ids = world.validators.ids
        cpfs = [
            int.from_bytes(hashlib.sha256(base_hash + i.encode()).digest()[:2])
            if (claimed := world.claims.get(index)) is None
            else claimed
            for index, i in enumerate(ids)
        ]
        candidates = [Candidate(i, i, cpf) for i, cpf in zip(ids, cpfs, strict=True)]
        self.epoch = Epoch(
            chain_id=CHAIN_ID,
            epoch=number,
            validators=world.validators,
            schedule=leader_order(candidates, 16_384, "smooth", base_hash),
            base_hash=base_hash,
            base_height=height,
            base_time_ms=time_ms,
            base_certificate=certificate,
            delta_s=0.15,
        )
        self.core = world.plan.core(self.epoch, self.index, self.crypto)

    # --- Turns ------------------------------------------------------------------------------------

    def take(self, event: Event) -> None:
        """One event, and all its effects, unless the machine dies in between."""
        if not self.up:
            return
        self.world.note(self.place, type(event).__name__)
        self.perform(self.core.step(event, self.world.now_s))

    def perform(self, effects: list[Effect]) -> None:
        """Carry out effects in order."""
        core = self.core
        last = self.world.rng.randint(0, len(effects)) if self._dying else len(effects)
        for effect in effects[:last]:
            if core is self.core:
                self.do(effect)
        if self._dying:
            self._write_without_sync(effects[last:])
            self._crash()

    def _write_without_sync(self, effects: list[Effect]) -> None:
        """The machine may die inside a write: what it was about to sync is as good as unsynced."""
        for effect in effects:
            if not isinstance(effect, Persist):
                return
            self._unsynced += frame(encode_record(effect.record))
            if effect.durable:
                return

    def do(self, effect: Effect) -> None:  # noqa: PLR0912
        """Carry out one effect."""
        world, watcher = self.world, self.world.watcher
        match effect:
            case Persist(record, durable):
                self._unsynced += frame(encode_record(record))
                if isinstance(record, CertificateRecord):
                    watcher.saw_certificate(self, record.certificate)
                if durable:
                    self.disk += self._unsynced
                    self._unsynced = b""
            case BroadcastVote(vote):
                watcher.heard(self, vote)
                world.broadcast(self, VoteReceived(vote))
            case BroadcastProposal(proposal):
                watcher.heard(self, proposal_vote(proposal, self.seat))
                world.broadcast(self, ProposalReceived(proposal))
            case BroadcastCertificate(certificate):
                if certificate.kind == VoteKind.FINALIZE:
                    world.retained = certificate
                world.broadcast(self, CertificateReceived(certificate))
            case SetTimer(timer, view, seconds):
                self._timer(timer.value, seconds, TimerFired(timer, view))
            case RequestProposal():
                self._later(BUILD_DELAY_S, lambda: self.build(effect))
            case ValidateProposal(block_hash=block_hash):
                self._judging[block_hash] = effect
                self._later(0.001, lambda: self._judge(block_hash))
            case Finalized(blocks=blocks):
                for number, proposal in enumerate(blocks):
                    finality = effect.finality(number)
                    assert finality is not None, "no schedule lags by so many blocks"
                    self._execute(proposal, proposal.header, proposal.txids, finality)
                    self._bodies.update(proposal.txids)
                self._after_execution()
            case RequestMissing(block_hash, above_height):
                for node in world.nodes:
                    if node is not self:
                        world.carry(
                            self,
                            node,
                            lambda node=node: node.serve(self, block_hash, above_height),  # type: ignore[misc]
                        )
            case RequestNullifications(first_view, last_view):
                for node in world.nodes:
                    if node is not self:
                        world.carry(
                            self,
                            node,
                            lambda node=node: node.serve_nullifications(  # type: ignore[misc]
                                self, first_view, last_view
                            ),
                        )
            case Evidence(first, second):
                self.accuse(first, second)
            case EnterView(view=view):
                watcher.entered(self, view)
            case _:
                pass

    def accuse(self, first: Vote, second: Vote) -> None:
        """Somebody was caught."""
        self.world.watcher.accused(first, second)

    def _later(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something later, if this life lasts."""
        life = self._life
        self.world.after(seconds, lambda: action() if self.up and life == self._life else None)

    def _timer(self, name: str, seconds: float, event: Event) -> None:
        number = self._timers[name] = self._timers.get(name, 0) + 1
        core = self.core

        def fire() -> None:
            if self._timers.get(name) == number and core is self.core:
                self.take(event)

        self._later(seconds, fire)

    # --- The application --------------------------------------------------------------------------

    def take_transaction(self, txid: bytes) -> None:
        """A body arrives."""
        if self.up and txid not in self._bodies:
            self._bodies.add(txid)
            self._tell_work()

    def _tell_work(self) -> None:
        self.take(WorkAvailable(bool(self._bodies - self._executed)))

    def build(self, request: RequestProposal) -> None:
        """Make a block, if there is something to put into it."""
        taken = {txid for one in request.ancestors for txid in one.txids}
        waiting = self.choose(taken)
        if not waiting and not request.must:
            return
        parent_ms = request.parent.time_ms if request.parent else self.epoch.base_time_ms
        time_ms = max(self.world.market_ms, parent_ms + 1)
        seal = not request.empty and self._crosses(time_ms)
        content = Content(
            txids=() if request.empty else tuple(waiting),
            exec_height=self.height,
            state_root=self.roots[-1],
            receipts_root=self.roots[-1],
            time_ms=time_ms,
            seal=seal,
            next_validators_hash=self.epoch.validators.hash if seal else b"",
        )
        self.take(ProposalBuilt(request.view, request.parent_hash, content))

    def choose(self, taken: set[bytes]) -> list[bytes]:
        """The transactions of a new block, without those of its ancestors."""
        return sorted(self._bodies - self._executed - taken)[:MAX_BLOCK_TXS]

    def _crosses(self, time_ms: int) -> bool:
        return time_ms // SLOT_MS > self.epoch.base_time_ms // SLOT_MS

    def _judge(self, block_hash: bytes) -> None:
        request = self._judging.get(block_hash)
        if request is None:
            return
        header = request.proposal.header
        if header.exec_height > self.height:
            return
        if missing := set(request.proposal.txids) - self._bodies:
            self._later(self.world.rng.uniform(0.01, 0.2), lambda: self._fetch(missing, block_hash))
            return
        del self._judging[block_hash]
        valid = (
            self.roots[header.exec_height] == header.state_root
            and header.time_ms <= self.world.market_ms + 100
            and self.is_fresh(request.proposal.txids)
            and (request.empty or header.seal == self._crosses(header.time_ms))
        )
        self.take(BodiesReady(block_hash, valid))

    def is_fresh(self, txids: tuple[bytes, ...]) -> bool:
        """True when none of these was executed before."""
        return self._executed.isdisjoint(txids)

    def _fetch(self, missing: set[bytes], block_hash: bytes) -> None:
        self._bodies |= missing
        self._judge(block_hash)

    def _execute(
        self,
        proposal: Proposal | None,
        header: Header,
        txids: tuple[bytes, ...],
        finality: Finality,
    ) -> None:
        if header.height != self.height + 1:
            return  # executed before, by catching up
        self.chain.append((proposal, header, txids, finality))
        block_hash = header_hash(header)
        self.roots.append(hashlib.sha256(self.roots[-1] + block_hash).digest())
        self._executed.update(txids)
        self.world.watcher.executed(self, header, txids)

    def _after_execution(self) -> None:
        if self.chain and self.chain[-1][1].seal and self.chain[-1][1].epoch == self.epoch.epoch:
            self._new_core(self.chain[-1])
            self._judging.clear()
            if not (self._dying and self.world.rng.random() < OLD_LOG):
                self.disk = b"".join(frame(encode_record(one)) for one in self.core.records())
            self._unsynced = b""
            self.take(Start())
        for block_hash in list(self._judging):
            self._later(0.0, lambda h=block_hash: self._judge(h))  # type: ignore[misc]
        self._later(0.0, self._tell_work)

    # --- Catching up ------------------------------------------------------------------------------

    def serve(self, asker: Node, block_hash: bytes, above_height: int) -> None:
        """Answer a `RequestMissing`."""
        if not self.up:
            return
        proposal = self.core.proposal(block_hash)
        if proposal is not None:
            self.world.send(self, asker, ProposalReceived(proposal))
        elif self.height > above_height:
            blocks = self.chain[above_height:]
            self.world.carry(self, asker, lambda: asker.catch_up(blocks))

    def serve_nullifications(self, asker: Node, first_view: int, last_view: int) -> None:
        """Answer a `RequestNullifications`."""
        if self.up:
            for one in self.core.nullifications(first_view, last_view, NULLIFICATIONS_PER_ANSWER):
                self.world.send(self, asker, CertificateReceived(one))

    def catch_up(
        self, blocks: list[tuple[Proposal | None, Header, tuple[bytes, ...], Finality]]
    ) -> None:
        """Take over final blocks that somebody else has."""
        if not self.up:
            return
        for number, (proposal, header, txids, finality) in enumerate(blocks):
            if header.height != self.height + 1 or not self._proves(header, finality):
                continue
            self._execute(proposal, header, txids, finality)
            self._bodies.update(txids)
            if header.seal:
                self._after_execution()
            elif number == len(blocks) - 1 and header.epoch == self.epoch.epoch:
                self.perform(self.core.jump(header, finality.certificate))
                self._after_execution()

    def _proves(self, header: Header, finality: Finality) -> bool:
        """`types.verify_finality`, with the simulator's signatures."""
        certificate = finality.certificate
        tip = header_hash(header)
        for later in finality.path:
            if later.parent_hash != tip:
                return False
            tip = header_hash(later)
        crypto = self.crypto
        votes = certificate_votes(certificate, self.world.validators)
        return (
            certificate.kind == VoteKind.FINALIZE
            and tip == certificate.block_hash
            and bool(votes)
            and all(crypto.verify(v.validator, _words(v), v.signature) for v in votes)
        )


class Watcher:
    """Checks what must always hold; sees everything, changes nothing."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.violations: list[str] = []
        self.evidence: set[int] = set()
        self.transactions: dict[bytes, int] = {}
        self._blocks: dict[int, bytes] = {}
        self._said: dict[tuple[int, int, int], list[Vote]] = {}
        self._certificates: dict[tuple[int, int], dict[VoteKind, bytes]] = {}
        self.views: set[tuple[int, int]] = set()
        """(epoch, view) that correct nodes entered."""

    @property
    def nullified(self) -> int:
        """Views that were nullified somewhere."""
        return sum(VoteKind.NULLIFY in kinds for kinds in self._certificates.values())

    def fail(self, what: str) -> None:
        """Record a violation."""
        self.violations.append(f"{self._world.now_s:.3f} s: {what}")

    def entered(self, node: Node, view: int) -> None:
        """Count the views."""
        if node in self._world.correct:
            self.views.add((node.epoch.epoch, view))

    def heard(self, node: Node, vote: Vote) -> None:
        """No honest double vote, across restarts; nothing said that is not on the disk."""
        if node not in self._world.correct:
            return
        said = self._said.setdefault((vote.validator, vote.epoch, vote.view), [])
        if vote in said:
            return
        for other in said:
            # What was signed before a crash may be published after what was signed since; the log
            # has the order of signing.
            late = (
                vote.kind == VoteKind.NOTARIZE
                and other.kind == VoteKind.NULLIFY
                and node.disk.find(other.signature) < node.disk.find(vote.signature)
            )
            if conflict(other, vote) or late:
                self.fail(f"{node.index} said {other.kind.name} and then {vote.kind.name}")
        said.append(vote)
        if self._world.plan.keep_log and vote.signature not in node.disk:
            self.fail(f"{node.index} said what is not on its disk")

    def saw_certificate(self, node: Node, certificate: Certificate) -> None:
        """One notarization per view; never both finalized and nullified."""
        if node not in self._world.correct:
            return
        kinds = self._certificates.setdefault((certificate.epoch, certificate.view), {})
        known = kinds.setdefault(certificate.kind, certificate.block_hash)
        if known != certificate.block_hash:
            self.fail(f"two certificates of kind {certificate.kind.name} in one view")
        if VoteKind.FINALIZE in kinds and VoteKind.NULLIFY in kinds:
            self.fail("a view is finalized and nullified")

    def executed(self, node: Node, header: Header, txids: tuple[bytes, ...]) -> None:
        """Agreement per height, linkage, no transaction twice."""
        if node not in self._world.correct:
            return
        block_hash = header_hash(header)
        known = self._blocks.setdefault(header.height, block_hash)
        if known != block_hash:
            self.fail(f"two blocks at height {header.height}")
        parent = self._blocks.get(header.height - 1, genesis_hash(self._world.chain_id))
        if header.parent_hash != parent:
            self.fail(f"block {header.height} is not linked")
        if header.state_root != node.root_after(header.exec_height):
            self.fail(f"block {header.height} has another state root")
        for txid in txids:
            if self.transactions.setdefault(txid, header.height) != header.height:
                self.fail("a transaction is in two blocks")

    def accused(self, first: Vote, second: Vote) -> None:
        """Evidence never accuses the honest."""
        self.evidence.add(first.validator)
        if first.validator in {node.index for node in self._world.correct}:
            self.fail(f"the honest {first.validator} is accused")
        if first.validator != second.validator or not conflict(first, second):
            self.fail("evidence that proves nothing")

    def check_progress(self, submitted: list[bytes]) -> None:
        """After healing, everything submitted is final at every correct node."""
        for what in self.lacks(submitted):
            self.fail(what)

    def lacks(self, submitted: list[bytes]) -> list[str]:
        """What keeps everything submitted from being final everywhere."""
        found = []
        missing = [txid for txid in submitted if txid not in self.transactions]
        if missing:
            found.append(f"{len(missing)} of {len(submitted)} transactions are not final")
        heights = {node.height for node in self._world.correct}
        if len(heights) > 1:
            found.append(f"correct nodes stand at heights {sorted(heights)}")
        return found


def kind_of(event: Event) -> str:
    """What a broker can see of a message: its type, and of a vote what it says."""
    return event.vote.kind.name if isinstance(event, VoteReceived) else type(event).__name__


def _words(vote: Vote) -> bytes:
    return vote_message(vote.epoch, vote.view, vote.kind, vote.block_hash)


def _mac(validator: int, message: bytes) -> bytes:
    return hashlib.sha512(b"sim" + bytes((validator,)) + message).digest()
