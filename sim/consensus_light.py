"""
What must always hold in `sim.consensus_ledger`, checked after every executed block, and a relay
that tries to make a light client believe something else.

Beyond what `sim.consensus.Watcher` checks:

- state root, receipts root and events of a height are the same at all correct nodes;
- Σ balances + locks + escrows + pool is what was deposited, counted here from the transactions;
- in every cleared slot as much energy is bought as sold, and settlements leave none over;
- nobody who follows the protocol is accused or banned, and who was caught is banned in the end;
- a light client is only ever led to headers of the final chain, and the rows and receipts that it
  believes are those of the honest nodes;
- what honest people submit is final soon after the world has healed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from random import Random
from typing import TYPE_CHECKING, Any

import msgspec

from ledger.checkpoint import genesis_checkpoint
from ledger.contracts import keys
from ledger.execution import BlockResult, genesis_rows
from ledger.light import ConflictError
from ledger.proofs import Anchor, Proof, ReceiptFact, RowFact, StateProof
from ledger.prover import NotProvableError, Prover
from ledger.types import Certificate, Finality, Header, ValidatorSet, Vote, VoteKind, header_hash
from sim.consensus import Node, Watcher
from sim.consensus_market import SUPERVISOR_UC, deposited_uc
from wire.canonical import encode
from wire.errors import WireError
from wire.keys import SigningKey, id_of
from wire.transactions import Transaction

if TYPE_CHECKING:
    from sim.consensus_ledger import LedgerNode, LedgerWorld

FINAL_S = 8.0
"""Within this time after submission, or after the world has healed, it has to be final."""
LAG_S = 3.0
"""What one correct node has executed for so long all others must have, in the end."""
BAN_S = 8.0
"""So long after evidence was found, or the world healed, the guilty have to be banned."""
MEMORY = 64
"""Headers and certificates that the relay remembers."""


class LedgerWatcher(Watcher):
    """Sees everything, changes nothing."""

    def __init__(self, world: LedgerWorld) -> None:
        super().__init__(world)
        self._ledgers = world
        self.relay = Relay(world)
        self.bans: set[str] = set()
        self.blocks_lost = 0
        """By power cuts."""
        """Honest blocks that were refused because their leader lagged behind."""
        self.accounts: dict[int, dict[str, Any]] = {0: genesis_rows(world.market.genesis)}
        """The accounts after each height, as the first correct node had them."""
        self.receipts: dict[str, dict[str, Any]] = {}
        self.seals: dict[int, int] = {}
        """Height of each epoch's seal."""
        self.codes: dict[str, int] = {}
        """How often each operation had each code."""
        self._final_s: dict[int, float] = {}
        self._found: dict[int, tuple[bytes, bytes, bytes]] = {}
        self._held_uc = {0: SUPERVISOR_UC}
        self._caught_s: dict[str, float] = {}

    def block_hash(self, height: int) -> bytes | None:
        """Of the final chain."""
        return self._blocks.get(height)

    def heard(self, node: Node, vote: Vote) -> None:
        """No honest double vote; Eve listens too."""
        super().heard(node, vote)
        if node in self._world.correct:
            self._ledgers.market.heard(vote)

    def saw_certificate(self, node: Node, certificate: Certificate) -> None:
        """One notarization per view; the relay gets everything."""
        super().saw_certificate(node, certificate)
        self.relay.saw_certificate(certificate)

    def refused(self, node: LedgerNode, header: Header, reason: str) -> None:
        """An honest node finds no honest leader's block wrong while it may still vote for it."""
        correct = self._ledgers.correct
        leads = header.proposer in {one.key.id for one in self._ledgers.nodes if one in correct}
        if node not in correct or not leads or header.view < node.core.view:
            return
        self.fail(f"a block of the honest is refused: {reason}")

    def caught(self, node: LedgerNode, first: Vote, second: Vote) -> None:
        """Evidence never accuses the honest."""
        name = node.epoch.validators.ids[first.validator]
        self.evidence.add(first.validator)
        if name not in self._ledgers.guilty:
            self.fail(f"the honest {name} is accused")
        if node in self._ledgers.correct:
            self._caught_s.setdefault(name, self._world.now_s)

    def saw_result(
        self,
        node: LedgerNode,
        header: Header,
        txs: Sequence[Transaction],
        result: BlockResult,
        finality: Finality,
    ) -> None:
        """Everything that a block changed."""
        if node not in self._ledgers.correct:
            return
        height = header.height
        events = hashlib.sha256(encode(result.events)).digest()
        found = (result.state_root, result.receipts_root, events)
        first = height not in self._found
        if self._found.setdefault(height, found) != found:
            self.fail(f"block {height} has another state, receipts or events")
        if first:
            self._note(node, header, txs, result)
        self._check_money(node, height)
        self._check_energy(node, height, result.events)
        if first:
            self._ledgers.market.executed(result.events)
            self.relay.play(node, Anchor(header, finality))

    def _note(
        self, node: LedgerNode, header: Header, txs: Sequence[Transaction], result: BlockResult
    ) -> None:
        height = header.height
        self._world.note(node.place, f"block {height}", result.state_root)
        self._final_s[height] = self._world.now_s
        self.accounts[height] = dict(node.ledger.state.scan(keys.ACCOUNT))
        if header.seal:
            self.seals[header.epoch] = height
        brought_uc = 0
        for tx, receipt in zip(txs, result.receipts, strict=True):
            self.receipts[tx.txid.hex()] = receipt.to_json()
            brought_uc += deposited_uc(tx, receipt.codes)
            for operation, code in zip(tx.operations, receipt.codes, strict=False):
                name = f"{operation['op']} {code}"
                self.codes[name] = self.codes.get(name, 0) + 1
        self._held_uc[height] = self._held_uc[height - 1] + brought_uc
        for event in result.events:
            if event["event"] == "evidence":
                self.bans.add(event["validator"])
                if event["validator"] not in self._ledgers.guilty:
                    self.fail(f"the honest {event['validator']} is banned")

    def _check_money(self, node: LedgerNode, height: int) -> None:
        state = node.ledger.state
        held_uc = sum(
            row["balanceUc"] + row["lockedUc"] for _, row in state.scan(keys.ACCOUNT)
        ) + sum(row["escrowUc"] for _, row in state.scan(keys.SLOT))
        pool = state.get(keys.POOL)
        held_uc += 0 if pool is None else pool["rewardsUc"]
        wanted_uc = self._held_uc[height]
        if held_uc != wanted_uc:
            self.fail(f"block {height}: {held_uc} µ¤ are held, {wanted_uc} were deposited")

    def _check_energy(self, node: LedgerNode, height: int, events: list[dict[str, Any]]) -> None:
        state = node.ledger.state
        for key, row in state.scan(keys.SLOT):
            if row["cleared"]:
                number = int(key.removeprefix(keys.SLOT))
                held = [position for _, position in state.scan(keys.positions(number))]
                bought_wh = sum(one["boughtWh"] for one in held)
                sold_wh = sum(one["soldWh"] for one in held)
                if bought_wh != sold_wh:
                    self.fail(
                        f"block {height}: slot {number}: {bought_wh} Wh bought, {sold_wh} sold"
                    )
        for event in events:
            if event["event"] == "settled":
                for one in event["rows"]:
                    contracted_wh = one["boughtWh"] - one["soldWh"]
                    if one["netWh"] != contracted_wh + one["residualWh"]:
                        self.fail(f"block {height}: energy of {one['address']} is lost")

    # --- In the end -------------------------------------------------------------------------------

    def check_progress(self, submitted: list[bytes]) -> None:
        """What was submitted is final in time, everywhere; the guilty are banned."""
        world = self._ledgers
        for txid, at_s in world.market.must.items():
            due_s = max(at_s, world.plan.heal_s) + FINAL_S
            height = self.transactions.get(txid)
            final_s = world.plan.end_s if height is None else self._final_s[height]
            if final_s > due_s or (height is None and due_s <= world.plan.end_s):
                self.fail(f"a transaction of {at_s:.1f} s is not final at {due_s:.1f} s")
                break
        old = [one for one, at_s in self._final_s.items() if at_s < world.plan.end_s - LAG_S]
        for node in world.correct:
            if node.height < max(old, default=0):
                self.fail(f"{node.index} stands at height {node.height} of {max(old)}")
        self._check_bans()
        self.relay.check_all()

    def _check_bans(self) -> None:
        world = self._ledgers
        for name, at_s in self._caught_s.items():
            if max(at_s, world.plan.heal_s) + BAN_S <= world.plan.end_s and name not in self.bans:
                self.fail(f"{name} was caught at {at_s:.1f} s and is not banned")


class Relay:
    """
    Somebody between light clients and the chain, who shows them whatever he has: headers that are
    final, that are not, that never were; certificates of other blocks; proofs with other values.
    """

    def __init__(self, world: LedgerWorld) -> None:
        self._world = world
        self._rng = Random(f"{world.plan.seed}/relay")
        self.light = world.light_type(genesis_checkpoint(world.market.genesis))
        self.accepted: list[Header] = []
        self.refused = 0
        self.believed = 0
        """Rows and receipts that the client took for true."""
        self._headers: dict[Header, None] = {}
        self._certificates: dict[Certificate, None] = {}
        self._anchors: list[Anchor] = []
        self._proofs: list[Proof] = []

    def saw_header(self, header: Header) -> None:
        """Proposed by somebody."""
        _remember(self._headers, header)

    def saw_certificate(self, certificate: Certificate) -> None:
        """Of any kind."""
        _remember(self._certificates, certificate)

    def play(self, node: LedgerNode, anchor: Anchor) -> None:
        """A block became final: try everything."""
        self._anchors.append(anchor)
        for trick in (
            self._mixed, self._weakened, self._altered, self._renamed, self._old,
        ):  # fmt: skip
            if (offer := trick()) is not None:
                self._offer(offer, self._following(node))
        if self._rng.random() < 0.5:
            self._lead(node)
        for make in (self._row, self._receipt):
            if (proof := make(node)) is not None:
                self._proofs.append(proof)
                self._show(self._rng.choice(self._proofs))
                self._show(self._falsified(proof))
                self._show(proof)

    # --- Headers ----------------------------------------------------------------------------------

    def _mixed(self) -> Anchor | None:
        """Any header with any certificate, with or without headers between."""
        if not self._certificates or not self._headers:
            return None
        headers, rng = list(self._headers), self._rng
        path = tuple(rng.sample(headers, min(len(headers), rng.choice((0, 0, 1, 2)))))
        return Anchor(rng.choice(headers), Finality(rng.choice(list(self._certificates)), path))

    def _weakened(self) -> Anchor:
        """A final header, or the newest of all, with the signatures of less than a quorum."""
        anchor = self._some_anchor()
        certificate = anchor.finality.certificate
        fewer = msgspec.structs.replace(
            certificate,
            bitmap=bytes((certificate.bitmap[0] & (certificate.bitmap[0] - 1),)),
            signatures=certificate.signatures[1:],
        )
        return Anchor(anchor.header, Finality(fewer, anchor.finality.path))

    def _altered(self) -> Anchor:
        """A final header that says something else."""
        anchor = self._some_anchor()
        lie = hashlib.sha256(b"lie").digest()
        change = self._rng.choice(
            (
                {"state_root": lie},
                {"receipts_root": lie},
                {"height": anchor.header.height + 1},
                {"time_ms": anchor.header.time_ms + 1},
                {"seal": not anchor.header.seal, "next_validators_hash": lie},
            )
        )
        return Anchor(msgspec.structs.replace(anchor.header, **change), anchor.finality)

    def _renamed(self) -> Anchor | None:
        """A notarization that calls itself a finalization."""
        found = [one for one in self._certificates if one.kind == VoteKind.NOTARIZE]
        if not found:
            return None
        certificate = self._rng.choice(found)
        header = next(
            (one for one in self._headers if header_hash(one) == certificate.block_hash), None
        )
        if header is None:
            return None
        final = msgspec.structs.replace(certificate, kind=VoteKind.FINALIZE)
        return Anchor(header, Finality(final, ()))

    def _old(self) -> Anchor:
        """Final, but maybe not newer."""
        return self._rng.choice(self._anchors)

    def _some_anchor(self) -> Anchor:
        return self._rng.choice(self._anchors[-8:])

    def _lead(self, node: LedgerNode) -> None:
        """What an honest node would answer, until there is nothing newer."""
        trust = self.light.trust
        try:
            step = Prover(node.store).step(trust.height, trust.validators.hash)
        except NotProvableError:
            return
        self._offer(step.anchor, step.following())

    def _following(self, node: LedgerNode) -> ValidatorSet | None:
        """The validators that a seal may bring in: the true ones, none, or some of one's own."""
        lot = self._rng.random()
        if lot < 0.2:
            return None
        if lot < 0.6:
            return node.ledger.validator_set(node.ledger.epoch)
        mine = [SigningKey(hashlib.sha256(bytes((i,))).digest()).public for i in range(4)]
        return ValidatorSet(tuple(id_of(one) for one in mine), tuple(mine))

    def _offer(self, anchor: Anchor, following: ValidatorSet | None) -> None:
        before = self.light.trust
        try:
            self.light.advance(anchor, self._world.market_ms, following)
        except ConflictError as error:
            self._world.watcher.fail(f"a light client was shown a fork: {error}")
        except WireError:
            self.refused += 1
        trust = self.light.trust
        if trust == before:
            return
        header = anchor.header
        self.accepted.append(header)
        self._check(header, sure=False)
        named = header.next_validators_hash if header.seal else header.validators_hash
        if trust.validators.hash != named:
            self._world.watcher.fail("a light client follows other validators")

    def check_all(self) -> None:
        """Every header that was accepted is on the final chain; and there were some."""
        for header in self.accepted:
            self._check(header, sure=True)
        if not self.accepted or not self.believed:
            self._world.watcher.fail("the light client was led nowhere")

    def _check(self, header: Header, *, sure: bool) -> None:
        watcher = self._world.watcher
        known = watcher.block_hash(header.height)
        if known == header_hash(header) or (known is None and not sure):
            return
        # What a quorum finalised above a seal is dropped; it is empty, so nothing is lost.
        seal = watcher.seals.get(header.epoch)
        empty = header.n_tx == 0 and not header.seal
        if empty and (header.height > seal if seal is not None else not sure):
            return
        watcher.fail(f"a light client accepted a header of height {header.height} not on the chain")

    # --- Proofs -----------------------------------------------------------------------------------

    def _row(self, node: LedgerNode) -> Proof | None:
        homes = self._world.market.homes
        return _made(
            lambda: Prover(node.store).row(node.ledger, keys.account(self._rng.choice(homes).id))
        )

    def _receipt(self, node: LedgerNode) -> Proof | None:
        known = list(self._world.watcher.receipts)
        if not known:
            return None
        txid = bytes.fromhex(self._rng.choice(known[-20:]))
        return _made(lambda: Prover(node.store).receipt(txid))

    def _falsified(self, proof: Proof) -> Proof:
        """With another value, or under another header."""
        rng = self._rng
        if rng.random() < 0.5:
            other = self._some_anchor()
            return msgspec.structs.replace(proof, header=other.header, finality=other.finality)
        if isinstance(proof, StateProof):
            richer = encode({"balanceUc": 10**12, "lockedUc": 0, "nonce": 0})
            return msgspec.structs.replace(proof, value=rng.choice((richer, b"")))
        siblings = bytes(len(proof.siblings)) or bytes(32)
        return msgspec.structs.replace(proof, siblings=siblings)

    def _show(self, proof: Proof) -> None:
        watcher = self._world.watcher
        try:
            fact = self.light.check(proof, self._world.market_ms)
        except WireError:
            self.refused += 1
            return
        self.believed += 1
        if isinstance(fact, RowFact) and fact.value != watcher.accounts[fact.height].get(fact.key):
            watcher.fail(f"a light client believes a wrong balance after {fact.height}")
        if isinstance(fact, ReceiptFact):
            txid = fact.receipt["txid"]
            if fact.receipt != watcher.receipts.get(txid):
                watcher.fail(f"a light client believes a wrong receipt of {txid}")


def _made(make: Callable[[], Proof]) -> Proof | None:
    try:
        return make()
    except NotProvableError:
        return None


def _remember(seen: dict[Any, None], one: object) -> None:
    """Keep the last ones."""
    seen.setdefault(one)
    if len(seen) > MEMORY:
        del seen[next(iter(seen))]
