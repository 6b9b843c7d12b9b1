"""
The home's light client: what the ledger says of our money, by proof and not by anybody's word.

The wallet believes what f + 1 validators say. Beside it this follows final headers
(`ledger.light_sync`), lets the row of our address be proved up to one, and compares. It changes
nothing in the home: a difference is a warning, once, and stands in health until it is gone.

The wallet hears of a change by an event, a proof comes when it is asked for, so one may be ahead of
the other for a moment. They differ only when two proofs in a row contradict the same belief, which
is not newer than either of them.

It asks on the trading lane, under the address itself: on the home's lane the question would tell
who owns the address. Where addresses change, each is asked for on its own lane, and headers on the
home's: how far we have read them would connect the addresses. Its place is kept a few times an
hour: after a crash it takes the way since once more. Source: docs/concepts/light-client.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec
import structlog

from hem.config import Light
from hem.ems.wallet import Wallet
from ledger.checkpoint import (
    CHECKPOINT_FILE,
    Checkpoint,
    genesis_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from ledger.genesis import Genesis
from ledger.light import ConflictError, TrustExpiredError
from ledger.light_sync import EVIDENCE_FILE, LightFollower, NoProofError, keep_evidence
from runtime.ports import Bus, Clock, Store
from wire.canonical import decode, encode
from wire.errors import ConfigError

KEEP_EVERY_S = 900.0
"""Its place is kept so often, and whenever something else than the height has changed [real s]."""
SILENT_AFTER_S = 600.0
"""Without a proof for so long, somebody may want to know [real s]."""
KEPT = "light"

log = structlog.get_logger(component="hem")


class LightState(StrEnum):
    """What the light client makes of the home's balance."""

    OFF = "off"
    WAITING = "waiting"
    """No proof yet."""
    SAME = "same"
    """The ledger proves what the home believes."""
    DIFFERS = "differs"
    SILENT = "silent"
    """No validator has given a proof for long."""
    EXPIRED = "expired"
    """Offline for longer than the trust period: a checkpoint is needed."""
    CONFLICT = "conflict"
    """Two blocks are final that exclude each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LightView:
    """What is known by proof; −1 is the height of what is not known yet."""

    state: LightState = LightState.OFF
    address: str = ""
    verified_height: int = -1
    """Of the newest final header, or of the checkpoint it began with."""
    verified_ms: int = 0
    """Its market time [ms]."""
    proved_height: int = -1
    """After this block the address had the money below."""
    balance_uc: int = 0
    locked_uc: int = 0

    @property
    def money(self) -> dict[str, int]:
        """As `Wallet.balance` has it [µ¤]."""
        return {"balanceUc": self.balance_uc, "lockedUc": self.locked_uc}

    def to_json(self) -> dict[str, Any]:
        """For the command line."""
        return {
            "state": self.state.value,
            "verifiedHeight": self.verified_height,
            "verifiedMs": self.verified_ms,
            "provedHeight": self.proved_height,
            "provedBalanceUc": self.balance_uc,
            "provedLockedUc": self.locked_uc,
        }


@dataclass(frozen=True, slots=True)
class Belief:
    """What the wallet believes."""

    money: dict[str, int]
    """[µ¤]"""
    height: int
    """Of the block that changed it last."""

    @classmethod
    def of(cls, wallet: Wallet) -> Belief:
        """Now."""
        return cls(wallet.balance_of(wallet.address), wallet.balance_height)


def compare(view: LightView, belief: Belief, doubted: Belief | None) -> LightState | None:
    """
    Judge a belief by a proof.

    Args:
        doubted: the belief that the proof before contradicted

    Returns:
        SAME or DIFFERS; None when this proof alone does not tell.
    """
    if view.money == belief.money:
        return LightState.SAME
    if belief.height <= view.proved_height and belief == doubted:
        return LightState.DIFFERS
    return None


def trusted_point(folder: Path, config: Light, genesis: Genesis) -> Checkpoint:
    """
    Where to go on: the newest of the genesis, our own place and what the installer gave.

    A light client that is switched off has the genesis, and reads no file.

    Raises:
        ConfigError: a checkpoint file is wrong, or of another chain.
    """
    kept, found = folder / CHECKPOINT_FILE, genesis_checkpoint(genesis)
    files = [kept] if kept.exists() else []
    if config.checkpoint is not None:
        files.append(config.checkpoint)
    for file in files if config.enabled else []:
        trust = read_checkpoint(file)
        if trust.chain_id != genesis.chain_id:
            remedy = "remove it" if file == kept else "correct light.checkpoint"
            raise ConfigError(f"{file}: of chain {trust.chain_id}; {remedy}")
        found = max(found, trust, key=lambda one: one.height)
    return found


def kept_view(store: Store, address: str) -> LightView:
    """What was kept last, for reading; that nothing is known of an address that is another's."""
    raw = store.get(KEPT)
    row = {} if raw is None else decode(raw)
    if row.get("address") != address:
        return LightView()
    return msgspec.convert(row, LightView)


class HomeLight:
    """
    Follows headers and compares the wallet with proofs.

    Args:
        follower: on the trading lane
        folder: of the checkpoint, and of evidence should there be any
        clock: real time between proofs
        caught_up: has the wallet heard of all that is final?
        period_s: asked so often [real s]
    """

    def __init__(
        self,
        follower: LightFollower,
        wallet: Wallet,
        store: Store,
        folder: Path,
        clock: Clock,
        caught_up: Callable[[], bool],
        period_s: float,
    ) -> None:
        self._follower = follower
        self._wallet, self._store = wallet, store
        self._folder, self._clock = folder, clock
        self._caught_up, self._period_s = caught_up, period_s
        self._doubted: Belief | None = None
        self._kept_at_s = -KEEP_EVERY_S
        self._proved_at_s = clock.monotonic_s()
        self._found = LightView(state=LightState.WAITING, address=wallet.address)
        if (folder / EVIDENCE_FILE).exists():
            self._be(LightState.CONFLICT)

    @property
    def view(self) -> LightView:
        """What is known by now."""
        trust = self._follower.light.trust
        return replace(self._found, verified_height=trust.height, verified_ms=trust.time_ms)

    async def start(self) -> None:
        """Subscribe; works before the bus is connected."""
        await self._follower.start()

    async def prove_on(self, bus: Bus, address: str) -> None:
        """Another address is in use, on a lane of its own; nothing is known of it yet."""
        self._follower.prove_on(bus, address)
        self._doubted = None
        lasting = (LightState.CONFLICT, LightState.EXPIRED)
        state = self._found.state if self._found.state in lasting else LightState.WAITING
        self._found = LightView(state=state, address=address)
        self._proved_at_s = self._clock.monotonic_s()

    async def run(self, connected: Callable[[], bool]) -> None:
        """Look until cancelled, or until the ledger contradicts itself."""
        while self.view.state is not LightState.CONFLICT:
            if connected():
                await self.look()
            await asyncio.sleep(self._period_s if connected() else min(1.0, self._period_s))

    async def look(self) -> None:
        """Take newer headers and one proof; whatever goes wrong is a state, not an error."""
        before = self.view
        try:
            await self._follower.follow()
            await self._prove()
        except NoProofError as error:
            log.debug("no proof", reason=str(error))
            if self._clock.monotonic_s() - self._proved_at_s >= SILENT_AFTER_S:
                self._be(LightState.SILENT)
        except TrustExpiredError:
            self._be(LightState.EXPIRED)
        except ConflictError as error:
            self._be(LightState.CONFLICT)
            try:
                keep_evidence(self._folder, error.conflict)
            except OSError as problem:
                log.error("evidence not kept", reason=str(problem))
        changed = (self.view.state, self.view.money) != (before.state, before.money)
        if changed or self._clock.monotonic_s() - self._kept_at_s >= KEEP_EVERY_S:
            self.keep()

    def keep(self) -> None:
        """Write our place down, and what we know; without room for it the home goes on."""
        self._kept_at_s = self._clock.monotonic_s()
        try:
            write_checkpoint(self._follower.light.trust, self._folder / CHECKPOINT_FILE)
        except OSError as error:
            log.warning("place of the light client not kept", reason=str(error))
        with self._store.atomic():
            self._store.put(KEPT, encode(msgspec.to_builtins(self.view)))

    async def _prove(self) -> None:
        fact = await self._follower.prove_row(f"account/{self._wallet.address}")
        row = fact.value or {}
        self._proved_at_s = self._clock.monotonic_s()
        self._found = replace(
            self._found,
            proved_height=fact.height,
            balance_uc=int(row.get("balanceUc", 0)),
            locked_uc=int(row.get("lockedUc", 0)),
        )
        belief = Belief.of(self._wallet)
        found = compare(self._found, belief, self._doubted if self._caught_up() else None)
        self._doubted = None if found is LightState.SAME else belief
        if found is not None:
            self._be(found)

    def _be(self, state: LightState) -> None:
        """Be in a state; each change is one line."""
        before, self._found = self._found.state, replace(self._found, state=state)
        if state is before:
            return
        facts = {**self.view.to_json(), "believed": Belief.of(self._wallet).money}
        if state is LightState.SAME:
            log.info("balance proved", **facts)
        elif state is LightState.CONFLICT:
            log.error("two blocks are final that exclude each other", folder=str(self._folder))
        else:
            log.warning("balance not proved", **facts)
