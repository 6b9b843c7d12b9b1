"""
Escrowed trade: a seller's guarantee and a buyer's money are blocked until the meters have spoken.

The states of a trade, and what moves it (Nazari's transactions in brackets):

    open ──accept (CTP)──► accepted ──delivered (ERC)──► delivered
     │                        └──────delivery deadline──► failed
     ├──give up (CCS)──► withdrawn
     └──acceptance deadline──► expired

An offer (CTS) blocks the guarantee, its acceptance the price. Every end pays out exactly what was
blocked:

    end         buyer     seller                      fund
    delivered   0         price + guarantee           0
    withdrawn   –         guarantee − p·guarantee     p·guarantee
    expired     –         guarantee                   0
    failed      price     guarantee − p·guarantee     p·guarantee, and one penalty is counted

Nazari's Fig. 4 and 6 give the amounts. The fund is the grid supervisor, who delivers in a failing
seller's place at its tariff. It is not the reward pool: validators, who could withhold a receipt,
must not live on failures.

**Hidden amounts.** Where both sides ask for it, an offer names upper bounds and the hash of the
true energy and price with a salt, as the paper's contract hash; the buyer repeats the hash when it
accepts. Money and assets are blocked by the bounds. Either side reveals before the delivery
deadline; a trade that nobody revealed has failed.

Source: Nazari, Khorsandi, Babaki (2021), sections III and V, Table I.
Rounding: the penalty is rounded down; the remainder stays with the seller.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum

import msgspec

from wire.canonical import encode
from wire.units import cost_uc

PERMILLE = 1000


class State(StrEnum):
    """Where a trade is."""

    OPEN = "open"
    ACCEPTED = "accepted"
    DELIVERED = "delivered"
    WITHDRAWN = "withdrawn"
    EXPIRED = "expired"
    FAILED = "failed"


class Terms(msgspec.Struct, frozen=True):
    """What was offered, with the parameters in force for its slot."""

    energy_wh: int
    """To be delivered in the slot; an upper bound while a commitment hides it."""
    price_uc_per_kwh: int
    """As above."""
    guarantee_uc: int
    penalty_permille: int
    accept_before_ms: int
    deliver_before_ms: int

    @property
    def price_uc(self) -> int:
        """What the buyer pays, or what is blocked while the amounts are hidden [µ¤]."""
        return cost_uc(self.energy_wh, self.price_uc_per_kwh)

    @property
    def penalty_uc(self) -> int:
        """What a failure costs the seller [µ¤]."""
        return self.guarantee_uc * self.penalty_permille // PERMILLE


class Payout(msgspec.Struct, frozen=True):
    """The end of a trade: who gets what of the blocked money [µ¤]."""

    state: State
    buyer_uc: int
    seller_uc: int
    fund_uc: int
    penalties: int = 0
    """Counted against the seller."""


class Conduct(msgspec.Struct, frozen=True):
    """A trader's record."""

    count: int = 0
    """Penalties since the last ban."""
    banned_until: int = -1
    """The last slot of its ban."""

    def is_banned(self, slot: int) -> bool:
        """May it neither sell nor buy now?"""
        return slot <= self.banned_until


def least_guarantee_uc(price_uc: int, guarantee_permille: int) -> int:
    """The smallest guarantee for a price [µ¤], rounded up."""
    return -(-price_uc * guarantee_permille // PERMILLE)


def withdraw(terms: Terms, now_ms: int) -> Payout:
    """
    End an offer that nobody accepted: by its seller before the acceptance deadline (scenario 2),
    by itself at the deadline.
    """
    if now_ms >= terms.accept_before_ms:
        return Payout(State.EXPIRED, 0, terms.guarantee_uc, 0)
    kept_uc = terms.guarantee_uc - terms.penalty_uc
    return Payout(State.WITHDRAWN, 0, kept_uc, terms.penalty_uc)


def deliver(terms: Terms, price_uc: int) -> Payout:
    """
    End a trade that was delivered (scenario 1).

    Args:
        terms: as accepted
        price_uc: what the energy costs; less than what was blocked where the amounts were hidden
    """
    assert 0 <= price_uc <= terms.price_uc
    rest_uc = terms.price_uc - price_uc
    return Payout(State.DELIVERED, rest_uc, price_uc + terms.guarantee_uc, 0)


def fail(terms: Terms) -> Payout:
    """End a trade that was not delivered in time (scenario 4)."""
    kept_uc = terms.guarantee_uc - terms.penalty_uc
    return Payout(State.FAILED, terms.price_uc, kept_uc, terms.penalty_uc, penalties=1)


def penalised(before: Conduct, slot: int, max_penalties: int, ban_slots: int) -> Conduct:
    """
    Count a penalty; one more than `max_penalties` begins a ban, and the count anew (scenario 5).

    Args:
        before: the record so far
        slot: the running slot, the first of a ban
        max_penalties: Nazari's k
        ban_slots: how long a ban lasts
    """
    count = before.count + 1
    if count <= max_penalties:
        return Conduct(count, before.banned_until)
    return Conduct(0, max(before.banned_until, slot + ban_slots - 1))


def is_delivered(net_wh: int, bought_wh: int, sold_wh: int, energy_wh: int) -> bool:
    """
    Did the seller's meter see the energy leave, beyond all else the seller had contracted?

    Args:
        net_wh: import − export in the slot, as the seller's meter said
        bought_wh, sold_wh: the seller's position without this trade
        energy_wh: what the trade is about
    """
    return net_wh <= bought_wh - sold_wh - energy_wh


def commitment(offer: str, energy_wh: int, price_uc_per_kwh: int, salt: str) -> str:
    """
    The hash that hides energy and price: SHA-256 in hex of the canonical JSON of all arguments.

    Args:
        offer: the offer's name, so that a commitment is good for one offer
        energy_wh, price_uc_per_kwh: the true amounts
        salt: at least 16 random bytes as text, or the amounts could be guessed
    """
    content = {
        "offer": offer, "energyWh": energy_wh, "priceUcPerKwh": price_uc_per_kwh, "salt": salt,
    }  # fmt: skip
    return hashlib.sha256(encode(content)).hexdigest()
