"""
Money and energy of our addresses: withdrawn from our account with the DSO, deposited back.

PETra's digital wallet: what a home trades with on the ledger was withdrawn to its address,
privately and before it trades; the DSO need not be there while people trade. How much is kept there
is the owner's policy. Energy to trade is withdrawn for the slots ahead, a day at most, and again
when the end comes near.

A withdrawal has a name, under which it happens once; it is the same after a restart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import structlog

from hem.controller.policy import WalletPolicy
from hem.ems.addresses import OneAddress
from hem.ems.wallet import Wallet
from runtime.csmdb_client import CsmDbRefusedError
from runtime.ports import Store
from wire.canonical import decode, encode
from wire.certificates import AddressGrant
from wire.errors import Refusal

AHEAD_SLOTS = 90
"""So far ahead energy is withdrawn; the DSO allows 96 [slots]."""
RENEW_SLOTS = 24
"""It is withdrawn again when no more than this is left [slots]."""
ENERGY = "funds/energy"
MONEY = "funds/money"
ADDRESS = "funds/address"
HALVES_MAX = 6
"""So often the money of an address is halved when the account does not hold it."""
KeyedOperation = tuple[str, dict[str, Any]]

log = structlog.get_logger(component="hem")


Shape = Callable[[AddressGrant], AddressGrant]
"""What of a grant's limits the DSO lets this home withdraw (`wire.withdrawal.portioned`)."""


class Dso(Protocol):
    """Our line to the DSO (`runtime.dso_client.DsoClient`)."""

    async def withdraw_assets(
        self,
        withdrawal: str,
        address: str,
        amount_uc: int = 0,
        assets: list[dict[str, Any]] | None = None,
    ) -> str:
        """Raises `CsmDbRefusedError`, `TimeoutError`."""
        ...

    async def show_account(self) -> dict[str, Any]:
        """Raises `CsmDbRefusedError`, `TimeoutError`."""
        ...


def withdrawn(store: Store, address: str) -> dict[str, int]:
    """For reading: until when energy was withdrawn to an address, and when money last [slots]."""
    energy, money = store.get(f"{ENERGY}/{address}"), store.get(f"{MONEY}/{address}")
    found = {}
    if energy is not None and "endSlot" in (row := decode(energy)):
        found["energyUntilSlot"] = int(row["endSlot"])
    if money is not None:
        found["moneyAskedSlot"] = int(decode(money)["slot"])
    return found


class Funds:
    """
    Keeps the wallet on the ledger as full as the owner wants it.

    Args:
        store: kept between starts (synchronous=FULL)
        address: the wallet's; energy is withdrawn within the limits of its grant
        shape: lowers them to what is the home's own
    """

    def __init__(
        self,
        policy: WalletPolicy,
        wallet: Wallet,
        address: OneAddress,
        store: Store,
        dso: Dso,
        shape: Shape = lambda grant: grant,
    ) -> None:
        self._policy, self._wallet, self._address = policy, wallet, address
        self._store, self._dso, self._shape = store, dso, shape

    def renew_policy(self, policy: WalletPolicy) -> None:
        """The owner wishes something else; a withdrawal that began goes on as it was asked for."""
        self._policy = policy

    async def tend(self, slot: int) -> list[KeyedOperation]:
        """
        Withdraw what is missing; called once in a slot.

        Returns:
            The deposit of what is too much, an operation to send; mostly nothing.
        """
        if not (self._policy.withdraw and self._wallet.registered):
            return []
        for withdraw in (self._energy, self._money):
            try:
                await withdraw(slot)
            except CsmDbRefusedError as error:
                log.warning("withdrawal failed", reason=error.reason, detail=str(error)[:200])
            except TimeoutError:
                log.info("the DSO does not answer; asked again in the next slot")
        return self._too_much(slot)

    async def _energy(self, slot: int) -> None:
        """
        Withdraw energy for the slots ahead.

        What is asked for is written down before: asked again after a power cut it is the same
        withdrawal, also when the next slot has begun meanwhile.
        """
        grant, kept = self._address.grant, self._get(ENERGY)
        assert grant is not None
        end_slot = kept.get("endSlot", slot)
        if "askedFirst" in kept:
            first, last = kept["askedFirst"], kept["askedLast"]
        else:
            first = max(end_slot + 1, slot + 1, grant.start_slot)
            last = min(slot + AHEAD_SLOTS, grant.end_slot)
            if first > last or (kept and first > slot + RENEW_SLOTS):
                return
            self._put(ENERGY, {**kept, "askedFirst": first, "askedLast": last})
        assets = _assets(self._shape(grant), first, last)
        if assets:
            name = f"energy-{self._wallet.address[:24].lower()}-{first}"
            try:
                await self._dso.withdraw_assets(name, self._wallet.address, 0, assets)
            except CsmDbRefusedError:
                self._put(ENERGY, _without_asked(kept))  # the next one is another
                raise
        self._put(ENERGY, {"endSlot": last})
        log.info("energy withdrawn", first_slot=first, last_slot=last)

    async def _money(self, slot: int) -> None:
        """
        Top the balance up to the target.

        The withdrawal that was asked for last is taken as done for a slot: the ledger's word may
        still be under way.
        """
        held_uc = sum(self._wallet.balance.values())
        asked_slot = self._get(MONEY).get("slot", -1)
        if held_uc >= self._policy.least_uc or asked_slot >= slot - 1:
            return
        account = await self._dso.show_account()
        amount_uc = min(self._policy.target_uc - held_uc, int(account["balanceUc"]))
        if amount_uc <= 0:
            return
        self._put(MONEY, {"slot": slot})
        await self._dso.withdraw_assets(
            f"money-{self._wallet.address[:24].lower()}-{slot}", self._wallet.address, amount_uc
        )
        log.info("money withdrawn", amount_uc=amount_uc)

    def _too_much(self, slot: int) -> list[KeyedOperation]:
        free_uc = self._wallet.balance["balanceUc"]
        if free_uc <= self._policy.most_uc:
            return []
        operation = {
            "op": "deposit-financial-balance",
            "amountUc": free_uc - self._policy.target_uc,
        }
        return [(f"deposit/{slot}", operation)]

    def _get(self, key: str) -> dict[str, int]:
        raw = self._store.get(f"{key}/{self._wallet.address}")
        found: dict[str, int] = {} if raw is None else decode(raw)
        return found

    def _put(self, key: str, value: dict[str, int]) -> None:
        with self._store.atomic():
            self._store.put(f"{key}/{self._wallet.address}", encode(value))


class AddressFunds:
    """
    What each address of a home needs for its slots, withdrawn once; see `wire.rotation`.

    Every home withdraws the same amount to an address with the same grant, whatever it trades. A
    home whose account does not hold that much withdraws a half of it, a quarter, …

    Args:
        store: kept between starts (synchronous=FULL)
        shape: lowers a grant's limits to what is the home's own
    """

    def __init__(self, store: Store, dso: Dso, shape: Shape = lambda grant: grant) -> None:
        self._store, self._dso, self._shape = store, dso, shape

    async def fill(self, grant: AddressGrant, amount_uc: int, slot: int) -> bool:
        """
        Withdraw money and energy to an address, once.

        Args:
            slot: the current one

        Returns:
            Whether that is done, or cannot be done any more.
        """
        kept = self._get(grant.address)
        if kept.get("done"):
            return True
        if "first" not in kept or kept["first"] <= slot:
            first = max(slot + 1, grant.start_slot)
            kept = {"try": kept.get("try", -1) + 1, "first": first, "halves": kept.get("halves", 0)}
            if first > grant.end_slot:
                return self._done(grant.address, kept)
            self._put(grant.address, kept)
        assets = _assets(self._shape(grant), kept["first"], grant.end_slot)
        name = f"address-{grant.address[:24].lower()}-{kept['try']}"
        try:
            await self._dso.withdraw_assets(
                name, grant.address, amount_uc >> kept["halves"], assets
            )
        except CsmDbRefusedError as error:
            log.warning("withdrawal failed", reason=error.reason, detail=str(error)[:200])
            poor = error.reason == Refusal.INSUFFICIENT_FUNDS.value
            halves = min(kept["halves"] + poor, HALVES_MAX)
            self._put(grant.address, {**kept, "try": kept["try"] + 1, "halves": halves})
            return False
        except TimeoutError:
            log.info("the DSO does not answer; asked again")
            return False
        return self._done(grant.address, kept)

    def forget(self, address: str) -> None:
        """Drop what is known of an address that is over."""
        with self._store.atomic():
            self._store.delete(f"{ADDRESS}/{address}")

    def _done(self, address: str, kept: dict[str, int]) -> bool:
        self._put(address, {**kept, "done": 1})
        return True

    def _get(self, address: str) -> dict[str, int]:
        raw = self._store.get(f"{ADDRESS}/{address}")
        found: dict[str, int] = {} if raw is None else decode(raw)
        return found

    def _put(self, address: str, value: dict[str, int]) -> None:
        with self._store.atomic():
            self._store.put(f"{ADDRESS}/{address}", encode(value))


def _assets(grant: AddressGrant, first: int, last: int) -> list[dict[str, Any]]:
    """All the energy that a grant allows, in some slots."""
    sides = (
        ("production", grant.can_sell, grant.max_sell_wh),
        ("consumption", grant.can_buy, grant.max_buy_wh),
    )
    return [
        {"kind": kind, "energyWh": wh, "startSlot": first, "endSlot": last}
        for kind, allowed, wh in sides
        if allowed and wh > 0
    ]


def _without_asked(kept: dict[str, int]) -> dict[str, int]:
    """What was withdrawn, without what was asked for since."""
    return {name: value for name, value in kept.items() if not name.startswith("asked")}
