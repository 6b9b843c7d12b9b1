"""
The simulator's world with the real ledger in it: what `sim.consensus` does to the core alone, this
does to the core with execution, mempool, store, epochs, duties and light clients.

A `LedgerNode` is the shell of the real node without its asyncio: `ledger.judging` builds and
judges, `ledger.execution` executes, `ledger.duties` accuses, reveals seeds, joins and leaves; votes
are signed with Ed25519. Its store is SQLite in memory; a power cut takes back what was not synced,
as `synchronous=NORMAL` allows. Market time runs 300 times faster, so gates close, slots settle and
epochs seal within a run. `sim.consensus_market` is what people submit, `sim.consensus_light` what
is checked.

    world = LedgerWorld(Plan(seed=7, node=LedgerNode, submit_s=13.0, end_s=25.0))
    assert not world.run().violations
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, cast

from ledger.consent import Consent
from ledger.contracts import keys
from ledger.duties import LEAVE_FILE, LICENCE_FILE, Duties, Seeds
from ledger.execution import ChainError, Ledger
from ledger.judging import Verdict, build_content, judge, work_is_due
from ledger.light import LightClient
from ledger.mempool import Mempool
from ledger.merkle import root
from ledger.protocol import (
    BodiesReady,
    CertificateReceived,
    Content,
    Crypto,
    Epoch,
    Event,
    KeyCrypto,
    ProposalBuilt,
    ProposalReceived,
    RequestProposal,
    Start,
    WorkAvailable,
    decode_record,
    encode_record,
)
from ledger.schedule import Epochs
from ledger.simplex import ForkError
from ledger.store import BlockRecord, LedgerStore
from ledger.types import (
    Finality,
    Header,
    Proposal,
    ValidatorSet,
    Vote,
    decode,
    encode,
    header_hash,
    verify_finality,
)
from ledger.wal import frame
from sim.consensus import OLD_LOG, Node, Plan, World
from sim.consensus_light import LedgerWatcher
from sim.consensus_market import FIRST_SLOT, ONION_LAYERS, SLOT_MS, SPEED, Market
from wire.errors import WireError
from wire.keys import SigningKey
from wire.transactions import Transaction

if TYPE_CHECKING:
    from ledger.cpf_inbox import CpfInbox
    from ledger.node import Node as RealNode

HOUSEKEEPING_S = 0.25
BODY_WAIT_S = 0.05
ASK_AGAIN_S = 0.3
RESUBMIT_S = 1.0
BLOCKS_PER_ANSWER = 16
JOIN_S = 1.0
LEAVE_S = 7.0
Block = tuple[Header, tuple[bytes, ...], Finality, list[bytes]]
"""A final block as it is served: header, txids, finality, bodies."""


class Disk(LedgerStore):
    """A store in memory that a power cut takes back to a state since the last sync."""

    def __init__(self) -> None:
        super().__init__(":memory:")
        self._unsynced: list[bytes] = []
        """Images of the file before each write that nothing waited for."""

    def write_block(self, record: BlockRecord) -> None:
        """Not waited for."""
        self._unsynced.append(self._db.serialize())
        super().write_block(record)

    @contextmanager
    def _durable(self) -> Iterator[None]:
        with super()._durable():
            yield
        self._unsynced.clear()

    def power_cut(self, rng: Random) -> int:
        """Lose some of the unsynced writes, the last ones; returns how many."""
        lost = rng.randint(0, len(self._unsynced))
        if lost:
            self._db.deserialize(self._unsynced[-lost])
        self._unsynced.clear()
        return lost


class Papers:
    """A node's folder, as far as `ledger.duties` reads it."""

    def __init__(self) -> None:
        self.files: dict[str, str] = {}

    def __truediv__(self, name: str) -> _Paper:
        return _Paper(self.files, name)


class _Paper:
    def __init__(self, files: dict[str, str], name: str) -> None:
        self._files = files
        self.name = name

    def exists(self) -> bool:
        return self.name in self._files

    def read_text(self) -> str:
        if self.name not in self._files:
            raise FileNotFoundError(self.name)
        return self._files[self.name]


class Clock:
    """The world's time, as a node asks for it."""

    def __init__(self, world: World) -> None:
        self._world = world

    def now_ms(self) -> int:
        """Market time."""
        return self._world.market_ms

    def wall_ms(self) -> int:
        """As good as any: the world has one time."""
        return self._world.market_ms

    def monotonic_s(self) -> float:
        """Real time."""
        return self._world.now_s


class _NoInbox:
    """No home leaves an attestation here: the simulated homes send theirs."""

    def operation(self, _slot: int) -> None:
        """Nothing waits."""


class SimDuties(Duties):
    """What a validator has to say, with short onions, and a payee for its rewards."""

    def __init__(self, node: LedgerNode) -> None:
        self._node = cast("RealNode", node)
        self._folder = cast("Path", node.papers)
        self._rng = SeededRng(node.world.rng)
        self._seeds = Seeds(node.key, ONION_LAYERS)
        self._consent = Consent(self._folder, node.key.id)
        self._cpf = cast("CpfInbox", _NoInbox())
        self._flight: Transaction | None = None
        self._sent_s = 0.0
        self._asked_s = {}
        self._eventful = False
        self._payee = node.payee

    def accuse(self, first: Vote, second: Vote) -> None:
        """Keep evidence until it has been judged; the simulator expects it and is not warned."""
        self._node.store.keep_evidence(first, second)

    def _send(self, transaction: Transaction) -> None:
        """Of two machines with one key the slower is refused, time and again: no news here."""
        node = self._node
        self._sent_s = node.clock.monotonic_s()
        try:
            node.mempool.add(transaction.raw, node.clock.now_ms())
        except WireError:
            self._flight = None
            return
        node.bus.publish_soon("", transaction.raw)
        node.look()

    def _due(self) -> list[dict[str, Any]]:
        due = super()._due()
        row = self._node.ledger.query(keys.validator(self._node.key.id))
        known = self._node.ledger.query(keys.grant(self._payee)) is not None
        if not due and row is not None and row["payee"] == "" and known:
            return [{"op": "set-payee", "address": self._payee}]
        return due


class SeededRng:
    """`runtime.ports.Rng` from the world's lot."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def bytes(self, size: int) -> bytes:
        """The next bytes."""
        return self._rng.randbytes(size)

    def uniform(self, low: float, high: float) -> float:
        """The next number."""
        return self._rng.uniform(low, high)


class SharedCrypto(KeyCrypto):
    """Ed25519; what one machine found to be a good signature is not computed again by another."""

    def __init__(
        self, world: LedgerWorld, validators: ValidatorSet, key: SigningKey | None
    ) -> None:
        super().__init__(world.chain_id, validators, key)
        self._known = world.signatures

    def verify(self, validator: int, message: bytes, signature: bytes) -> bool:
        """Check one signature."""
        asked = (self._keys[validator], message, signature)
        found = self._known.get(asked)
        if found is None:
            found = self._known[asked] = super().verify(validator, message, signature)
        return found


class LedgerWorld(World):
    """
    Time, network, machines and a market.

    Args:
        plan: `n` counts the founders only; `node` has to be a `LedgerNode`
        joining: one more validator joins, and a founder leaves
        ledger: the state machine; a mutant in tests
        light: the light client; a mutant in tests
    """

    fatal = (ForkError, ChainError)
    nodes: list[LedgerNode]  # type: ignore[assignment]
    watcher: LedgerWatcher

    def __init__(
        self,
        plan: Plan,
        *,
        joining: bool = False,
        ledger: type[Ledger] = Ledger,
        light: type[LightClient] = LightClient,
    ) -> None:
        self.plan = plan
        self.ledger_type, self.light_type = ledger, light
        self.signatures: dict[tuple[bytes, bytes, bytes], bool] = {}
        self.market = Market(self, plan.n - joining, joining=joining)
        self.chain_id = self.market.genesis.chain_id
        self.clock = Clock(self)
        super().__init__(plan)
        if joining:
            self._schedule_membership()

    @property
    def market_ms(self) -> int:
        """Market time: the same on every machine."""
        return FIRST_SLOT * SLOT_MS + int(self.now_s * 1000 * SPEED)

    @property
    def slot(self) -> int:
        """The running slot."""
        return self.market_ms // SLOT_MS

    @property
    def guilty(self) -> set[str]:
        """Identities of the validators that do not follow the protocol."""
        honest = self.correct
        return {node.key.id for node in self.nodes if node not in honest}

    def make_watcher(self) -> LedgerWatcher:
        """Who checks this world."""
        return LedgerWatcher(self)

    def send(self, sender: Node, receiver: Node, event: Event) -> None:
        """Send to one; light clients' relay listens."""
        if isinstance(event, ProposalReceived):
            self.watcher.relay.saw_header(event.proposal.header)
        elif isinstance(event, CertificateReceived):
            self.watcher.relay.saw_certificate(event.certificate)
        super().send(sender, receiver, event)

    def submit(self, tx: Transaction, part: int | None = None) -> None:
        """
        Publish a transaction, again and again until it is final.

        Args:
            part: 0 or 1: only every other node is shown it
        """
        self._publish(tx.raw, part)
        self.after(RESUBMIT_S, lambda: self._resubmit(tx, part))

    def _resubmit(self, tx: Transaction, part: int | None) -> None:
        if tx.txid not in self.watcher.transactions and self.slot <= tx.expires_slot:
            self.submit(tx, part)

    def _publish(self, raw: bytes, part: int | None) -> None:
        for node in self.nodes:
            hidden = part is not None and node.place % 2 != part
            if not hidden and not (self.faulty and self.rng.random() < self.plan.faults.drop):
                delay_s = self.rng.uniform(*self.plan.faults.delay_s)
                self.after(delay_s, lambda node=node: node.take_body(raw))  # type: ignore[misc]

    def _schedule_work(self) -> None:
        self.market.open()

    def _schedule_membership(self) -> None:
        joiner = self.nodes[self.plan.n - 1]
        text = self.market.licence(joiner.key)
        leaver = next((one for one in self.nodes[:-1] if one in self.correct), joiner)
        self.after(JOIN_S, lambda: joiner.papers.files.update({LICENCE_FILE: text}))
        self.after(LEAVE_S, lambda: leaver.papers.files.update({LEAVE_FILE: ""}))


class LedgerNode(Node):
    """An honest node with the real state machine."""

    world: LedgerWorld

    def __init__(self, world: LedgerWorld, place: int, index: int) -> None:
        super().__init__(world, place, index)
        self.key = world.market.validators[index]
        self.payee = world.market.homes[index % len(world.market.homes)].id
        self.genesis = world.market.genesis
        self.clock = world.clock
        self.papers = Papers()
        self.store = Disk()
        self._open()

    # --- Life -------------------------------------------------------------------------------------

    def _open(self) -> None:
        """From the store; what was in memory is gone."""
        self.ledger = self.world.ledger_type.open(self.genesis, self.store)
        self.mempool = Mempool(self.ledger)
        self.epochs = Epochs(self.genesis, self.ledger, self.store)
        self.epoch = self.epochs.current()
        self.duties = SimDuties(self)
        self._to_execute: deque[tuple[Proposal, Finality]] = deque()
        self._kept_bodies: set[bytes] = set()
        self._wanted: dict[bytes, float] = {}
        """Bodies that a block needs, and from when on they are asked for [s]."""
        self._asking = self._looking = False

    @property
    def height(self) -> int:
        """Executed height."""
        return self.ledger.executed_height

    @property
    def seat(self) -> int:
        """Index among the validators of the running epoch; −1: none."""
        found = self.epoch.validators.index(self.key.id)
        return -1 if found is None else found

    @property
    def crypto(self) -> Crypto:
        """Signs and checks votes of the running epoch."""
        return SharedCrypto(self.world, self.epoch.validators, self.key)

    @property
    def bus(self) -> LedgerNode:
        """For `ledger.duties`: see `publish_soon`."""
        return self

    def publish_soon(self, _topic: str, payload: bytes) -> None:
        """Send a transaction of one's own to the others."""
        for node in self.world.nodes:
            if node is not self:
                self.world.carry(self, node, lambda node=node: node.take_body(payload))  # type: ignore[misc]

    def root_after(self, height: int) -> bytes:
        """Root of the state after an executed block."""
        return self.ledger.state_root(height)

    def boot(self) -> None:
        """Start from the disk."""
        self.up = True
        self._life += 1
        self._judging.clear()
        self._timers.clear()
        self._open()
        self._recover_bodies()
        self._start_core()
        if self.world.plan.keep_log:
            self.core.restore(decode_record(raw) for raw in self._open_log())
        tip = self.store.tip
        if tip is not None and not tip.header.seal and tip.header.epoch == self.epoch.epoch:
            self.perform(self.core.jump(tip.header, decode(Finality, tip.certificate).certificate))
        self.take(Start())
        self.connected()
        self._housekeep()

    def _recover_bodies(self) -> None:
        """Take the kept bodies back; a sender's registration may come after what needs it."""
        waiting = self.store.kept_bodies()
        for _ in range(len(waiting)):
            waiting = [raw for raw in waiting if not self._recover(raw)]

    def _recover(self, raw: bytes) -> bool:
        try:
            self._kept_bodies.add(self.mempool.add_fetched(raw).txid)
        except WireError:
            return False
        return True

    def _lose_blocks(self) -> None:
        self.world.watcher.blocks_lost += self.store.power_cut(self.world.rng)

    def _start_core(self) -> None:
        seat = self.epoch.validators.index(self.key.id)
        self.core = self.world.plan.core(self.epoch, seat, self.crypto)

    def _housekeep(self) -> None:
        undecided = {txid for proposal, _ in self._to_execute for txid in proposal.txids}
        undecided.update(*(block.proposal.txids for block in self.core.tree.blocks()))
        useless = self.mempool.drop_useless(self.world.market_ms, undecided)
        if useless:
            gone = [tx.txid for tx in useless]
            self.store.forget_bodies(gone)
            self._kept_bodies.difference_update(gone)
        self.duties.tend()
        self.look()
        self._later(HOUSEKEEPING_S, self._housekeep)

    def look(self) -> None:
        """Something came: judge, execute and build in the next turn what waited for it."""
        if not self._looking:
            self._looking = True
            self._later(0.0, self._look)

    def _look(self) -> None:
        self._looking = False
        self._execute_ready()
        for block_hash in list(self._judging):
            self._judge(block_hash)
        self._tell_work()

    def _tell_work(self) -> None:
        now_ms = self.world.market_ms
        pending = work_is_due(self.ledger, now_ms) or self.mempool.has_work(now_ms)
        self.take(WorkAvailable(pending))

    def accuse(self, first: Vote, second: Vote) -> None:
        """Keep evidence until the chain has judged it."""
        self.world.watcher.caught(self, first, second)
        self.duties.accuse(first, second)

    # --- Bodies -----------------------------------------------------------------------------------

    def take_body(self, raw: bytes) -> None:
        """Somebody published a transaction."""
        if not self.up:
            return
        try:
            self.mempool.add(raw, self.world.market_ms)
        except WireError:
            return
        self.look()

    def take_bodies(self, bodies: Sequence[bytes]) -> None:
        """Bodies that were asked for."""
        if not self.up:
            return
        for raw in bodies:
            self._keep(raw)
        self.look()

    def _keep(self, raw: bytes) -> None:
        try:
            self.mempool.add_fetched(raw)
        except WireError:
            return

    def _want(self, txids: Sequence[bytes]) -> None:
        due_s = self.world.now_s + BODY_WAIT_S
        for txid in txids:
            self._wanted.setdefault(txid, due_s)
        if not self._asking:
            self._asking = True
            self._later(BODY_WAIT_S, self._ask)

    def _ask(self) -> None:
        """Ask somebody for the bodies that have not come by themselves."""
        now_s = self.world.now_s
        self._wanted = {one: self._wanted[one] for one in self.mempool.missing(self._wanted)}
        due = [txid for txid, due_s in self._wanted.items() if due_s <= now_s]
        if due:
            self._wanted.update(dict.fromkeys(due, now_s + ASK_AGAIN_S))
            peer = self.world.rng.choice([node for node in self.world.nodes if node is not self])
            self.world.carry(self, peer, lambda: peer.serve_bodies(self, due))
        self._asking = bool(self._wanted)
        if self._asking:
            self._later(BODY_WAIT_S, self._ask)

    def serve_bodies(self, asker: LedgerNode, txids: Sequence[bytes]) -> None:
        """Answer what `_ask` asks."""
        if not self.up:
            return
        bodies = [raw for txid in txids if (raw := self._body(txid)) is not None]
        if bodies:
            self.world.carry(self, asker, lambda: asker.take_bodies(bodies))

    def _body(self, txid: bytes) -> bytes | None:
        tx = self.mempool.get(txid)
        return self.store.get_body(txid) if tx is None else tx.raw

    def _keep_bodies(self, txids: Sequence[bytes]) -> None:
        """Put bodies on the disk: what I vote for must not be lost with me."""
        found = [tx for txid in txids if (tx := self.mempool.get(txid)) is not None]
        new = [tx for tx in found if tx.txid not in self._kept_bodies]
        self.store.keep_bodies((tx.txid, tx.raw) for tx in new)
        self._kept_bodies.update(tx.txid for tx in new)

    # --- Building and judging ---------------------------------------------------------------------

    def build(self, request: RequestProposal) -> None:
        """Make a block, if there is something to put into it."""
        content = self.content(request)
        if content is not None:
            self._keep_bodies(content.txids)
            self.take(ProposalBuilt(request.view, request.parent_hash, content))

    def content(self, request: RequestProposal) -> Content | None:
        """What goes into a block."""
        return build_content(
            request, self.ledger, self.mempool, self.epoch, self.world.market_ms, self._unexecuted()
        )

    def _judge(self, block_hash: bytes) -> None:
        request = self._judging.get(block_hash)
        if request is None:
            return
        verdict, reason = judge(
            request, self.ledger, self.mempool, self.epoch, self.world.market_ms, self._unexecuted()
        )
        if verdict is Verdict.WAIT:
            if missing := self.mempool.missing(request.proposal.txids):
                self._want(missing)
            return
        del self._judging[block_hash]
        if verdict is Verdict.VALID:
            self._keep_bodies(request.proposal.txids)
            self.take(BodiesReady(block_hash, True))
            return
        self.world.watcher.refused(self, request.proposal.header, reason)
        self._later(self.core.delta_s, lambda: self.take(BodiesReady(block_hash, False)))

    def _unexecuted(self) -> list[bytes]:
        return [txid for proposal, _ in self._to_execute for txid in proposal.txids]

    # --- Execution --------------------------------------------------------------------------------

    def _execute(
        self,
        proposal: Proposal | None,
        header: Header,
        txids: tuple[bytes, ...],
        finality: Finality,
    ) -> None:
        assert proposal is not None
        assert (header, txids) == (proposal.header, proposal.txids)
        self._to_execute.append((proposal, finality))

    def _after_execution(self) -> None:
        self._execute_ready()

    def _execute_ready(self) -> None:
        """Execute final blocks in order, as far as their bodies are here."""
        while self._to_execute:
            proposal, finality = self._to_execute[0]
            if proposal.header.height <= self.height:
                self._to_execute.popleft()
                continue
            if missing := self.mempool.missing(proposal.txids):
                self._want(missing)
                return
            self._run(proposal.header, proposal.txids, finality)
            if self._to_execute and self._to_execute[0][0] is proposal:
                self._to_execute.popleft()
            self.look()

    def _run(self, header: Header, txids: Sequence[bytes], finality: Finality) -> None:
        """Execute one final block whose bodies are here; turn the epoch after a seal."""
        txs = [tx for txid in txids if (tx := self.mempool.get(txid)) is not None]
        assert len(txs) == len(txids)
        result = self.ledger.execute(header, txs, encode(finality))
        self.duties.saw_block(header, [tx.sender for tx in txs])
        self.mempool.remove(txids)
        self._kept_bodies.difference_update(txids)
        self.world.watcher.executed(self, header, tuple(txids))
        self.world.watcher.saw_result(self, header, txs, result, finality)
        if header.seal:
            self._turn(self.epochs.after_seal(header, finality))

    def _turn(self, epoch: Epoch) -> None:
        """Begin the next epoch."""
        self.epoch = epoch
        self._to_execute.clear()
        self._judging.clear()
        self._wanted.clear()
        self._timers.clear()
        self._start_core()
        if not (self._dying and self.world.rng.random() < OLD_LOG):
            self.disk = b"".join(frame(encode_record(one)) for one in self.core.records())
        self._unsynced = b""
        self.take(Start())

    # --- Catching up ------------------------------------------------------------------------------

    def serve(self, asker: Node, block_hash: bytes, above_height: int) -> None:
        """Answer a `RequestMissing`."""
        assert isinstance(asker, LedgerNode)
        if not self.up:
            return
        proposal = self.core.proposal(block_hash)
        if proposal is not None:
            self.world.send(self, asker, ProposalReceived(proposal))
        elif self.height > above_height:
            last = min(self.height, above_height + BLOCKS_PER_ANSWER)
            blocks = [self._served(height) for height in range(above_height + 1, last + 1)]
            self.world.carry(self, asker, lambda: asker.take_blocks(blocks))

    def _served(self, height: int) -> Block:
        block = self.store.get_block(height)
        assert block is not None
        bodies = [raw for txid in block.txids if (raw := self.store.get_body(txid)) is not None]
        return block.header, block.txids, decode(Finality, block.certificate), bodies

    def take_blocks(self, blocks: Sequence[Block]) -> None:
        """Take over final blocks that somebody else has, each proven final before it is touched."""
        if not self.up:
            return
        last: Header | None = None
        for header, txids, finality, bodies in blocks:
            if header.height != self.height + 1:
                continue
            if not self._is_final(header, txids, finality):
                break
            for raw in bodies:
                self._keep(raw)
            if missing := self.mempool.missing(txids):
                self._want(missing)
                break
            self._run(header, txids, finality)
            last, certificate = header, finality.certificate
        if last is not None and not last.seal and last.epoch == self.epoch.epoch:
            self.perform(self.core.jump(last, certificate))
        self.look()

    def _is_final(self, header: Header, txids: Sequence[bytes], finality: Finality) -> bool:
        return (
            header.parent_hash == self.ledger.tip_hash
            and header.tx_root == root(txids)
            and verify_finality(
                header_hash(header), finality, self.epochs.validators, self.world.chain_id
            )
        )
