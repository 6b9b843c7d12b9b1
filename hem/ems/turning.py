"""
From one address to the next: grants ahead, registration, money, and an end without a trace.

    granted ─► its moment: lane opened, registered ─► funded ─► in use ─► settled ─► its moment:
    deposited ─► lane closed, over

When each of this happens is `wire.rotation`'s to say, the same in every home; nothing here depends
on what the home trades. Everything is looked at again after a start, and done once: registration
and deposit by their keys in the outbox, the withdrawal by its name.

An address that the ledger did not come to know while it was in use (the home was cut off) is given
up: what flowed then has no receipt, and is the DSO's to bill by the sealed readings.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from hem.ems.addresses import AddressBook
from hem.ems.closing import LATE_SLOTS, SlotsToClose
from hem.ems.funds import AddressFunds
from hem.ems.lanes import NOT_REGISTERED, Lanes
from hem.ems.wallet import Wallet
from hem.gateway.client import GatewayError
from ledger.genesis import Genesis
from runtime.csmdb_client import CsmDbRefusedError
from runtime.ports import BusDownError, Clock, Rng
from wire.certificates import AddressGrant, dump
from wire.errors import WireError

LOOKS_PER_SLOT = 60
"""How often we look what is to be done."""
LOOK_MIN_S, LOOK_MAX_S = 0.2, 15.0
"""Least and most time between two looks [real s]."""
ASK_WITHIN_PARTS = 8
"""Grants are asked for within this part of a day: homes need them at the same moment."""
ASK_PAUSE_S = 5.0
"""Least time between two requests for grants [real s]."""

log = structlog.get_logger(component="hem")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What changing addresses takes."""

    genesis: Genesis
    book: AddressBook
    lanes: Lanes
    wallet: Wallet
    funds: AddressFunds
    to_close: SlotsToClose
    clock: Clock
    rng: Rng
    caught_up: Callable[[], bool]
    """Do we know what is final?"""
    ask: Callable[[], Awaitable[None]]
    """Asks the CSM-DB for what the book misses. Raises as `Enrolment.obtain_addresses`."""
    turned: Callable[[str], Awaitable[None]]
    """Told the address that is in use from now on."""


class Turning:
    """Keeps a home in addresses, until it is cancelled."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._rule, self._grid = parts.book.rule, parts.genesis.grid
        self._slot_ms = self._grid.length_s * 1000
        self._since_ms: dict[int, int] = {}
        """When we first looked after a period, in this run."""
        self._dues: dict[tuple[int, str], int] = {}
        self._ask_ms: int | None = None
        self._asked_s = float("-inf")
        self._filling: dict[str, asyncio.Task[bool]] = {}
        self._filled: set[str] = set()

    async def run(self) -> None:
        """Look again and again."""
        try:
            while True:
                try:
                    await self.look()
                except Exception:
                    # a full disk, say: addresses must go on when it is over
                    log.exception("cannot look after the addresses")
                await self._pause()
        finally:
            for task in self._filling.values():
                task.cancel()
            await asyncio.gather(*self._filling.values(), return_exceptions=True)

    async def look(self) -> None:
        """Do what is due."""
        now_ms = self._parts.clock.now_ms()
        slot = self._grid.slot_at(now_ms)
        await self._ask(now_ms, slot)
        for period, grant in self._parts.book.live():
            self._since_ms.setdefault(period, now_ms)
            if now_ms >= self._due_ms(period, "register"):
                await self._tend(period, grant, now_ms, slot)
        in_use = self._parts.book.grant_of(slot)
        if in_use is not None and in_use.address != self._parts.wallet.address:
            self._parts.wallet.turn_to(in_use.address)
            await self._parts.turned(in_use.address)
        past = slot - 2 * LATE_SLOTS
        for address in self._parts.book.forget_before(past):
            self._parts.wallet.forget(address)
            self._parts.funds.forget(address)

    async def _tend(self, period: int, grant: AddressGrant, now_ms: int, slot: int) -> None:
        """Look after one address whose registration has been due."""
        parts, address = self._parts, grant.address
        lane = await parts.lanes.open(grant)
        lane.outbox.add([(f"register/{address}", {"op": "register-address", "grant": dump(grant)})])
        if not parts.wallet.is_registered(address):
            if slot > grant.end_slot and parts.caught_up():
                log.warning("an address was never registered", slots=_slots(grant))
                await self._retire(period, address, NOT_REGISTERED)
        elif slot <= grant.end_slot:
            if now_ms >= self._due_ms(period, "fund"):
                self._fill(grant, slot)
        elif now_ms >= self._due_ms(period, "deposit"):
            await self._wind_up(period, grant, slot)

    def _fill(self, grant: AddressGrant, slot: int) -> None:
        """Withdraw to an address; the DSO may take its time over the answer."""
        address = grant.address
        if address in self._filled:
            return
        task = self._filling.get(address)
        if task is not None and not task.done():
            return
        if task is not None and not task.cancelled() and task.exception() is None and task.result():
            self._filled.add(address)
            del self._filling[address]
            return
        amount_uc = self._rule.float_uc(grant, self._parts.genesis.prices.retail_uc_per_kwh)
        self._filling[address] = asyncio.create_task(self._parts.funds.fill(grant, amount_uc, slot))

    async def _wind_up(self, period: int, grant: AddressGrant, slot: int) -> None:
        """Deposit what is left when nothing is open any more, then be done with the address."""
        parts, address = self._parts, grant.address
        late = slot > grant.end_slot + parts.genesis.grace_slots + LATE_SLOTS
        open_slots = [
            one for one in parts.to_close.waiting() if grant.start_slot <= one <= grant.end_slot
        ]
        lane = parts.lanes.of_address(address)
        busy = bool(open_slots) or (lane is not None and lane.outbox.waiting > 0)
        if (busy or not parts.caught_up()) and not late:
            return
        money = parts.wallet.balance_of(address)
        if money["balanceUc"] > 0 and lane is not None and not late:
            operation = {"op": "deposit-financial-balance", "amountUc": money["balanceUc"]}
            lane.outbox.add([(f"deposit/{address}/{parts.wallet.height_of(address)}", operation)])
        elif late or money["lockedUc"] == 0:
            await self._retire(period, address, NOT_REGISTERED if late else "")

    async def _retire(self, period: int, address: str, code: str) -> None:
        await self._parts.lanes.close(address, code)
        self._parts.book.retire(period)
        self._since_ms.pop(period, None)
        for what in ("register", "fund", "deposit"):
            self._dues.pop((period, what), None)
        self._filled.discard(address)
        self._filling.pop(address, None)

    async def _ask(self, now_ms: int, slot: int) -> None:
        """Ask for more grants, at a moment of our own unless they are needed at once."""
        parts = self._parts
        if not parts.book.missing(slot):
            self._ask_ms = None
            return
        if self._ask_ms is None:
            self._ask_ms = now_ms + int(parts.rng.uniform(0, 86_400_000 / ASK_WITHIN_PARTS))
        now_s = parts.clock.monotonic_s()
        if now_ms < self._ask_ms and not parts.book.is_urgent(slot):
            return
        if now_s - self._asked_s < ASK_PAUSE_S:
            return
        self._asked_s = now_s
        try:
            await parts.ask()
        except (CsmDbRefusedError, TimeoutError, BusDownError, GatewayError, WireError) as error:
            log.warning("no addresses granted, asked again", reason=str(error)[:200] or "no answer")

    def _due_ms(self, period: int, what: str) -> int:
        """When something is done for a period: "register", "fund" or "deposit"."""
        known = self._dues.get((period, what))
        if known is None:
            known = self._dues[period, what] = self._moment(period, what)
        return known

    def _moment(self, period: int, what: str) -> int:
        """
        As planned, or drawn from what is left of the time.

        A home that starts, or gets its grants late, has missed the moments of several addresses;
        making up for all of them at once would tell that they are one home's.
        """
        book, rule, since_ms = self._parts.book, self._rule, self._since_ms[period]
        chance, first = book.chance(period, what), rule.first_slot(period)
        match what:
            case "register":
                due_ms = rule.register_ms(period, chance)
                until_ms = int(self._grid.start_ms(first - 2))
            case "fund":
                due_ms = rule.fund_ms(period, chance)
                until_ms = int(self._grid.start_ms(first - 1))
            case _:
                due_ms = rule.deposit_ms(period, self._parts.genesis.grace_slots, chance)
                until_ms = since_ms + rule.address_slots * self._slot_ms
        due_ms = book.due_ms(period, what) or due_ms
        if since_ms - due_ms > self._slot_ms:
            due_ms = since_ms + int(self._parts.rng.uniform(0, max(until_ms - since_ms, 0)))
            book.put_off(period, what, due_ms)
        return due_ms

    async def _pause(self) -> None:
        """Until the next look, by a clock whose speed may change meanwhile, or which is set."""
        clock = self._parts.clock
        next_ms = clock.now_ms() + self._slot_ms // LOOKS_PER_SLOT
        until_s = clock.monotonic_s() + LOOK_MAX_S
        await asyncio.sleep(LOOK_MIN_S)
        while clock.now_ms() < next_ms and clock.monotonic_s() < until_s:
            await asyncio.sleep(LOOK_MIN_S)


def _slots(grant: AddressGrant) -> str:
    return f"{grant.start_slot}…{grant.end_slot}"
