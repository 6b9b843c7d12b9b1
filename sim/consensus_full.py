"""
Which schedule of `sim.consensus_ledger` belongs to a seed: the fault mixes of `sim.schedules`, with
Byzantine validators that lie about the ledger too.

With 9 mixes and 10 actors, any 90 seeds in a row are every combination once; each is run with four
validators and, as 5, with four and one that joins while a founder leaves.
"""

from __future__ import annotations

import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from random import Random
from typing import Any

from ledger.protocol import Content, ProposalReceived, RequestProposal
from ledger.types import Header
from sim import schedules
from sim.byzantine import Equivocator, FalseCpf, Forker, Lazy, Silent, TwoFaced
from sim.consensus import Plan
from sim.consensus_ledger import LedgerNode, LedgerWorld
from sim.schedules import MIXES, Outcome

FOUNDERS = 4
SIZES = (FOUNDERS, FOUNDERS + 1)
"""Validators that there are, the last one joining."""
ONE_IN_THREE = 1 / 3
SUBMIT_S, HEAL_S, END_S = 13.0, 8.0, 25.0


class LedgerSilent(Silent, LedgerNode):
    """Never says anything."""


class LedgerLazy(Lazy, LedgerNode):
    """Votes, but never proposes."""


class LedgerEquivocator(Equivocator, LedgerNode):
    """Two blocks, every vote."""

    def _say_everything(self, header: Header) -> None:
        if self.seat >= 0:  # else it was thrown out
            super()._say_everything(header)


class LedgerTwoFaced(TwoFaced, LedgerNode):
    """Two blocks, each for one half, and stands by both."""


class LedgerForker(Forker, LedgerNode):
    """Builds beside the newest block; everything else in its block is right."""

    def _empty(self, request: RequestProposal) -> Content:
        before = request.ancestors[:-1]
        parent = before[-1].header if before else self.core.tree.final_header
        beside = RequestProposal(
            request.view,
            request.ancestors[-1].header.parent_hash,
            parent,
            before,
            any(one.header.seal for one in before),
            True,
        )
        content = LedgerNode.content(self, beside)
        assert content is not None, "it must"
        self._keep_bodies(content.txids)
        return content


class LedgerFalseCpf(FalseCpf, LedgerEquivocator):
    """Its meter attests the best CPF there is; it equivocates."""


class Deceiver(LedgerNode, ABC):
    """As a leader, publishes a block that its own core would not make, signed and justified."""

    def build(self, request: RequestProposal) -> None:
        """A wrong block in two turns of three."""
        core, rng = self.core, self.world.rng
        content, best = self.content(request), core._best_parent()
        if content is None or best is None or rng.random() < ONE_IN_THREE:
            super().build(request)
            return
        parent_hash, justify = best
        chain = core.tree.chain(parent_hash)
        if request.view == core.view and parent_hash == request.parent_hash:
            assert not isinstance(chain, bytes), "it was known when the block was asked for"
            wrong = dataclasses.replace(content, **self.lie(request, content))
            proposal = core._assemble(justify, parent_hash, chain, wrong)
            self.world.broadcast(self, ProposalReceived(proposal))

    @abstractmethod
    def lie(self, request: RequestProposal, content: Content) -> dict[str, Any]:
        """What to change."""


class LedgerRepeater(Deceiver):
    """Puts in again what is in the chain, in the blocks to come, or in the block itself."""

    def lie(self, request: RequestProposal, content: Content) -> dict[str, Any]:
        """One transaction too many."""
        sources = (
            content.txids,
            tuple(txid for one in request.ancestors for txid in one.txids),
            tuple(txid for one in self.store.last_blocks(self.height, 3) for txid in one.txids),
        )
        known = [source for source in sources if source]
        if not known:
            return {}
        rng = self.world.rng
        return {"txids": (*content.txids, rng.choice(rng.choice(known)))}


class Liar(Deceiver):
    """Says something wrong about what was executed, the time, or the end of the epoch."""

    def lie(self, request: RequestProposal, content: Content) -> dict[str, Any]:
        """One thing that is wrong."""
        parent_ms = request.parent.time_ms if request.parent else self.epoch.base_time_ms
        lies: list[dict[str, Any]] = [
            {"state_root": bytes(32)},
            {"receipts_root": bytes(32)},
            {"exec_height": self.height + 1},
            {"exec_height": max(0, self.height - 1)},
            {"time_ms": parent_ms},
            {"time_ms": content.time_ms + 3_600_000},
            {"seal": not content.seal},
            {"seal": True, "next_validators_hash": bytes(32)},
            {"txids": (*content.txids, bytes(32))},
        ]
        return self.world.rng.choice(lies)


ACTORS: dict[str, type[LedgerNode] | None] = {
    "nobody": None,
    "silent": LedgerSilent,
    "lazy": LedgerLazy,
    "equivocator": LedgerEquivocator,
    "twins": None,
    "two-faced": LedgerTwoFaced,
    "forker": LedgerForker,
    "false-cpf": LedgerFalseCpf,
    "repeater": LedgerRepeater,
    "liar": Liar,
}
"""Of four validators one."""


def combination(seed: int) -> tuple[str, str]:
    """The fault mix and the actor of a seed."""
    mixes, actors = tuple(MIXES), tuple(ACTORS)
    return mixes[seed % len(mixes)], actors[seed // len(mixes) % len(actors)]


def plan_of(seed: int, n: int) -> Plan:
    """The schedule that a seed is, among n validators."""
    mix, actor = combination(seed)
    place = Random(f"{seed}/{n}").randrange(FOUNDERS)
    kind = ACTORS[actor]
    return Plan(
        seed=seed,
        n=n,
        faults=MIXES[mix],
        byzantine={} if kind is None else {place: kind},
        twins=frozenset({place}) if actor == "twins" else frozenset(),
        node=LedgerNode,
        submit_s=SUBMIT_S,
        heal_s=HEAL_S,
        end_s=END_S,
    )


def play(seed: int, n: int, **world: Any) -> Outcome:
    """
    Run one schedule; an error in the code under test is a violation too.

    Args:
        world: mutants, see `LedgerWorld`
    """
    started_s = time.process_time()
    mix, actor = combination(seed)
    running = LedgerWorld(plan_of(seed, n), joining=n > FOUNDERS, **world)
    try:
        result = running.run()
        violations, views, log_hash = result.violations, result.views, result.log_hash
    except Exception as error:
        violations, views, log_hash = [f"{type(error).__name__}: {error}"], 0, ""
    return Outcome(
        seed=seed,
        validators=n,
        mix=mix,
        actor=actor,
        violations=tuple(violations),
        views=views,
        blocks=max(node.height for node in running.nodes),
        evidence=len(running.watcher.evidence),
        log_hash=log_hash,
        seconds=time.process_time() - started_s,
    )


def play_all(seeds: range) -> Iterator[list[Outcome]]:
    """Run every seed with and without a change of the validators (`sim.schedules.play_all`)."""
    return schedules.play_all(seeds, play_one=play, sizes=SIZES)
