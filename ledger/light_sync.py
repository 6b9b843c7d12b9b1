"""
A light client on the bus: for a service, or a home without a validator, that must not believe.

It asks validators on `sync/req/<own id>`, one at a time, and checks every answer (`ledger.light`):
a wrong answer costs a question to the next validator, a missing one a timeout. `follow` asks f + 1
of them for newer headers, so at least one honest validator is among those who did not name one, and
compares what two of them call final at one height.

Questions: kind "proof" or "anchor" with a key of `ledger.prover.answer_proof` or `answer_anchor`.
Answers: a node's signed statement whose value is the proof in base64url ("" when there is none).
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import structlog

from ledger.checkpoint import Checkpoint, genesis_checkpoint, write_checkpoint
from ledger.genesis import Genesis
from ledger.light import Conflict, ConflictError, LightClient, RollbackError, TrustExpiredError
from ledger.proofs import (
    AT,
    INCLUSION,
    NEXT,
    RECEIPT,
    Evidence,
    Fact,
    InclusionFact,
    ReceiptFact,
    RowFact,
    Step,
    decode,
    decode_proof,
)
from ledger.proofs import encode as encode_proof
from ledger.statements import read_message
from ledger.types import header_hash
from runtime.metrics import count_refusal
from runtime.ports import Bus, BusDownError, Clock, Message, Rng
from runtime.rng import SystemRng
from wire import topics
from wire.canonical import encode
from wire.envelope import new_req_id
from wire.errors import MalformedError, WireError
from wire.keys import from_text

ANSWER_TIMEOUT_S = 1.0
"""Real time given to one validator."""
MAX_STEPS = 512
"""Changes of the validators walked in one go."""
FOLLOW_EVERY_S = 10.0
EVIDENCE_FILE = "evidence.msgpack"
"""Two final headers that exclude each other (`ledger.proofs.Evidence`)."""

log = structlog.get_logger(component="ledger.light")


class NoProofError(ConnectionError):
    """No validator gave a proof that holds (temporary)."""


class LightFollower:
    """
    Follows a chain by headers and answers by proofs.

    Args:
        bus: a lane whose identity may ask on `sync/req/<client_id>`
        trust: where to go on; by default the genesis
    """

    def __init__(
        self,
        bus: Bus,
        genesis: Genesis,
        clock: Clock,
        client_id: str,
        *,
        trust: Checkpoint | None = None,
        rng: Rng | None = None,
    ) -> None:
        self.light = LightClient(trust or genesis_checkpoint(genesis))
        self._bus = bus
        self._genesis = genesis
        self._clock = clock
        self._client_id = client_id
        self._rng = rng or SystemRng()
        self._turn = 0
        self._waiting: dict[str, tuple[str, asyncio.Future[str]]] = {}
        self._proving: tuple[Bus, str] | None = None
        """The lane on which proofs are asked for, where it is another one."""

    async def start(self) -> None:
        """Subscribe; works before the bus is connected."""
        topic = topics.build(self._genesis.market, topics.SYNC_RSP, self._client_id)
        self._bus.subscribe(topic, self._take_answer)

    def prove_on(self, bus: Bus, client_id: str) -> None:
        """
        Ask for proofs on another lane from now on: a question tells whom a row matters to.

        Args:
            client_id: identity of the lane
        """
        self._proving = (bus, client_id)
        topic = topics.build(self._genesis.market, topics.SYNC_RSP, client_id)
        bus.subscribe(topic, self._take_answer)

    async def follow(self) -> bool:
        """
        Take newer headers of f + 1 validators, and compare the newest with another one's.

        Returns:
            True when a second validator calls the newest header final too.

        Raises:
            ConflictError: two validators show what excludes each other; it holds the evidence.
            TrustExpiredError: offline for too long, a checkpoint is needed.
            NoProofError: no validator answered with a final header.
        """
        heard, source = 0, ""
        for validator in self.in_turn():
            before = self.light.trust
            if not await self.attempt(self._walk(validator), validator):
                continue
            heard += 1
            if self.light.trust != before:
                source = validator
            if heard > self.light.trust.validators.f:
                break
        if not heard:
            raise NoProofError("no validator answered with a final header; is the broker there?")
        others = [validator for validator in self.in_turn() if validator != source]
        for validator in others:
            if await self.attempt(self._confirm(validator), validator):
                return True
        return False

    async def prove(self, key: str) -> Fact:
        """
        Know a row of the state (`account/<address>`), what became of a transaction (`RECEIPT` and
        its txid in hex), or that it is in a final block (`INCLUSION` and its txid in hex).

        Raises:
            NoProofError: no validator gave a proof that holds.
            TrustExpiredError: offline for too long, a checkpoint is needed.
        """
        found: list[Fact] = []
        for validator in self.in_turn():
            if await self.attempt(self._check(validator, key, found), validator):
                return found[0]
        raise NoProofError(f"no validator gave a proof of {key} that holds")

    async def prove_row(self, key: str) -> RowFact:
        """Know a row of the state, or that there is none; raises as `prove`."""
        fact = await self.prove(key)
        assert isinstance(fact, RowFact), "a key of the state is answered by a row"
        return fact

    async def run(self, file: Path) -> None:
        """
        Follow until cancelled; keep the place in a checkpoint file.

        Raises:
            ConflictError, TrustExpiredError: see `follow`.
        """
        while True:
            before, confirmed = self.light.trust, False
            try:
                confirmed = await self.follow()
            except NoProofError as error:  # perhaps only after some way
                log.warning("no answer", reason=str(error), height=self.light.trust.height)
            trust = self.light.trust
            if trust != before:
                await asyncio.to_thread(write_checkpoint, trust, file)
                log.info("final", height=trust.height, epoch=trust.epoch, confirmed=confirmed)
            await asyncio.sleep(FOLLOW_EVERY_S)

    async def _walk(self, validator: str) -> None:
        """Go where one validator leads: over changes of the validators to its newest header."""
        for _ in range(MAX_STEPS):
            trust = self.light.trust
            key = f"{NEXT}{trust.height}/{trust.validators.hash.hex()}"
            step = decode(Step, await self.ask(validator, "anchor", key))
            try:
                self.light.advance(step.anchor, self._clock.now_ms(), step.following())
            except RollbackError:
                return  # it is behind; what it showed is final all the same
            if self.light.trust.validators is trust.validators:
                return

    async def _confirm(self, validator: str) -> None:
        """Raise unless a validator calls our newest header final."""
        trust = self.light.trust
        other = decode(Step, await self.ask(validator, "anchor", f"{AT}{trust.height}")).anchor
        if header_hash(other.header) != trust.block_hash:
            self.light.expose(other)
            raise MalformedError("not the header that was asked for", height=other.header.height)

    async def _check(self, validator: str, key: str, found: list[Fact]) -> None:
        proof = decode_proof(await self.ask(validator, "proof", key))
        fact = self.light.check(proof, self._clock.now_ms())
        if _key_of(fact) != key:
            raise MalformedError("proof of something else", key=_key_of(fact))
        found.append(fact)

    async def attempt(self, work: Coroutine[Any, Any, None], validator: str) -> bool:
        """True when it went well; what one validator does wrong is counted and costs no more."""
        try:
            await work
        except (ConflictError, TrustExpiredError):
            raise
        except WireError as error:
            count_refusal("ledger.light", error.refusal)
            log.info("answer refused", validator=validator, reason=str(error))
        except (TimeoutError, BusDownError):
            return False
        else:
            return True
        return False

    def in_turn(self) -> list[str]:
        """All validators, another one first each time."""
        ids = self.light.trust.validators.ids
        self._turn = (self._turn + 1) % len(ids)
        return [*ids[self._turn :], *ids[: self._turn]]

    async def ask(self, validator: str, kind: str, key: str) -> bytes:
        """
        One validator's answer.

        Raises:
            TimeoutError: none in time, or it has no proof now.
            BusDownError: not connected.
            MalformedError: not base64url.
        """
        req_id = new_req_id(self._clock.wall_ms(), self._rng.bytes(10))
        request = {"reqId": req_id, "kind": kind, "key": key, "to": validator}
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting[req_id] = (validator, answer)
        bus, client_id = self._bus, self._client_id
        if kind == "proof" and self._proving is not None:
            bus, client_id = self._proving
        topic = topics.build(self._genesis.market, topics.SYNC_REQ, client_id)
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await bus.publish(topic, encode(request))
                text = await answer
        finally:
            del self._waiting[req_id]
        if not text:
            raise TimeoutError
        return from_text(text)

    async def _take_answer(self, message: Message) -> None:
        if message.payload[:1] != b"{":
            return  # blocks for a node on the same lane
        validators = self.light.trust.validators
        keys = dict(zip(validators.ids, validators.keys, strict=True))
        validator, _, said = read_message(message.payload, keys, self._genesis.chain_id)
        req_id, text = said.get("reqId"), said.get("value")
        if not isinstance(req_id, str) or not isinstance(text, str):
            return  # another question's answer on the same lane
        asked, answer = self._waiting.get(req_id, ("", None))
        if answer is not None and asked == validator and not answer.done():
            answer.set_result(text)


def keep_evidence(folder: Path, conflict: Conflict) -> Path:
    """Write what proves that validators broke the rules; the file."""
    file = folder / EVIDENCE_FILE
    file.write_bytes(encode_proof(Evidence(conflict.first, conflict.second)))
    return file


def _key_of(fact: Fact) -> str:
    """The question that a fact answers."""
    match fact:
        case RowFact():
            return fact.key
        case ReceiptFact():
            return f"{RECEIPT}{fact.receipt['txid']}"
        case InclusionFact():
            return INCLUSION + fact.txid
