"""
The DSO's decision on a withdrawal (PETra's withdrawAssets). Pure.

A participant asks to have money of its private account, and the right to produce or consume in
coming slots, moved to an address that nobody can connect with it. The DSO says yes when

    the participant   is enrolled, not banned, and the address is one of its own, registered
    money             its account, less what its addresses owe, holds the amount; beyond that it may
                      be drawn down to its credit limit, and when it is below it gets nothing at all
    production        with all it has withdrawn before, on all its addresses, its plant can produce
                      so much and its connection may export so much, in every slot
    consumption       likewise its connection may import so much
    the feeder        with what all its homes have withdrawn, it carries so much, either way

What was returned counts no longer. Limits are powers times the length of a slot.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from market.assets import EnergyAsset, Kind, merge
from wire.errors import Refusal
from wire.withdrawal import Withdrawal

SELLERS = frozenset({"producer", "prosumer"})
BUYERS = frozenset({"consumer", "prosumer"})
SLOTS_AHEAD_MAX = 14 * 96
"""How far ahead energy is given [slots]."""


@dataclass(frozen=True, slots=True)
class SafetyPolicy:
    """What the DSO knows of its grid beside the CSM-DB's limits. See `aggregator.config`."""

    opening_uc: int = 0
    """What a participant's private account holds at first [µ¤]."""
    plant_w: Mapping[str, int] | None = None
    """Production capacity by participant [W]; who is not named has its export limit."""
    feeder_w: Mapping[str, int] | None = None
    """Rating by feeder [W]; one that is not named is not limited."""
    credit_uc: int = 0
    """How far below zero an account may be drawn [µ¤]."""
    batch_s: int = 20
    """Where addresses are fresh, withdrawals leave together at multiples of this [s]."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A participant, as the CSM-DB and the DSO's books have it."""

    roles: frozenset[str]
    banned: str
    feeder: str
    max_import_w: int
    max_export_w: int
    holds_address: bool
    """The CSM-DB granted the address to this participant."""
    registered: bool
    """The address is known on the ledger."""
    balance_uc: int
    own: tuple[EnergyAsset, ...]
    """What the participant has withdrawn and not returned."""
    on_feeder: tuple[EnergyAsset, ...]
    """What all homes of its feeder have."""
    owed_uc: int = 0
    """What its addresses owe on the ledger, not billed yet."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A failed withdrawal and its reason."""

    refusal: Refusal
    detail: str


def assets_of(asked: Withdrawal) -> list[EnergyAsset]:
    """The energy that a request names."""
    return [
        EnergyAsset(Kind(one.kind), one.energy_wh, one.start_slot, one.end_slot)
        for one in asked.assets
    ]


def decide(
    asked: Withdrawal,
    who: Standing,
    participant: str,
    policy: SafetyPolicy,
    slot: int,
    slot_s: int,
    *,
    energy: bool,
) -> Failed | None:
    """
    May this withdrawal be made?

    Args:
        slot: the current one
        slot_s: length of a slot [s]
        energy: whether energy is withdrawn at all in this market, or given at registration

    Returns:
        BANNED, NOT_ALLOWED, NOT_FOUND, IN_DEBT, QUANTITY_OUT_OF_RANGE, SLOT_CLOSED, SLOT_TOO_FAR,
        INSUFFICIENT_FUNDS, PRODUCTION_CAPACITY, EXPORT_LIMIT, IMPORT_LIMIT, FEEDER_RATING, each
        with a sentence; or None: yes.
    """
    if who.banned:
        return Failed(Refusal.BANNED, who.banned)
    if not who.holds_address:
        return Failed(Refusal.NOT_ALLOWED, "the address is not granted to you")
    if not who.registered:
        return Failed(Refusal.NOT_FOUND, "register the address on the ledger first")
    left_uc = who.balance_uc - who.owed_uc + policy.credit_uc
    if left_uc < 0:
        return Failed(Refusal.IN_DEBT, f"{-left_uc} µ¤ below the credit limit; pay the bill first")
    if asked.amount_uc == 0 and not asked.assets:
        return Failed(Refusal.QUANTITY_OUT_OF_RANGE, "nothing is asked for")
    if asked.assets and not energy:
        return Failed(Refusal.NOT_ALLOWED, "energy is given at registration here")
    if asked.amount_uc > left_uc:
        return Failed(Refusal.INSUFFICIENT_FUNDS, f"{left_uc} µ¤ can be withdrawn")
    wanted = assets_of(asked)
    for asset in wanted:
        failed = _check_form(asset, who, slot)
        if failed is not None:
            return failed
    for kind in Kind:
        part = [asset for asset in wanted if asset.kind is kind]
        failed = _check_limits(kind, part, who, participant, policy, slot_s) if part else None
        if failed is not None:
            return failed
    return None


def operations(asked: Withdrawal, reference: str) -> list[tuple[str, dict[str, Any]]]:
    """
    What the supervisor sends, each under its key.

    Args:
        reference: names the withdrawal in the DSO's books
    """
    made: list[dict[str, Any]] = [
        {
            "op": "add-energy-asset",
            "address": asked.address,
            "kind": one.kind,
            "energyWh": one.energy_wh,
            "startSlot": one.start_slot,
            "endSlot": one.end_slot,
        }
        for one in asked.assets
    ]
    if asked.amount_uc:
        made.append(
            {"op": "add-financial-balance", "address": asked.address, "amountUc": asked.amount_uc}
        )
    return [(f"withdraw/{reference}/{number}", one) for number, one in enumerate(made)]


def peak_wh(held: Iterable[EnergyAsset], asset: EnergyAsset) -> int:
    """The most energy that assets hold in one of the slots of `asset` [Wh]."""
    within = (one.within(asset.start_slot, asset.end_slot) for one in held)
    return max((one.energy_wh for one in merge(part for part in within if part)), default=0)


def _check_form(asset: EnergyAsset, who: Standing, slot: int) -> Failed | None:
    if asset.energy_wh < 1:
        return Failed(Refusal.QUANTITY_OUT_OF_RANGE, "an asset holds at least 1 Wh")
    if asset.start_slot <= slot:
        return Failed(Refusal.SLOT_CLOSED, f"slot {asset.start_slot} has begun")
    if asset.end_slot > slot + SLOTS_AHEAD_MAX:
        return Failed(Refusal.SLOT_TOO_FAR, f"at most {SLOTS_AHEAD_MAX} slots ahead")
    allowed = SELLERS if asset.kind is Kind.PRODUCTION else BUYERS
    if not allowed & who.roles:
        return Failed(Refusal.NOT_ALLOWED, f"not for {', '.join(sorted(who.roles))}")
    return None


def _check_limits(
    kind: Kind,
    wanted: list[EnergyAsset],
    who: Standing,
    participant: str,
    policy: SafetyPolicy,
    slot_s: int,
) -> Failed | None:
    own = [*(asset for asset in who.own if asset.kind is kind), *wanted]
    feeder = [*(asset for asset in who.on_feeder if asset.kind is kind), *wanted]
    if kind is Kind.PRODUCTION:
        plant_w = (policy.plant_w or {}).get(participant)
        limits = [
            (Refusal.PRODUCTION_CAPACITY, own, plant_w),
            (Refusal.EXPORT_LIMIT, own, who.max_export_w),
        ]
    else:
        limits = [(Refusal.IMPORT_LIMIT, own, who.max_import_w)]
    limits.append((Refusal.FEEDER_RATING, feeder, (policy.feeder_w or {}).get(who.feeder)))
    for refusal, held, limit_w in limits:
        if limit_w is None:
            continue
        limit_wh = limit_w * slot_s // 3600
        most_wh = max(peak_wh(held, asset) for asset in wanted)
        if most_wh > limit_wh:
            return Failed(refusal, f"{most_wh} Wh in a slot, {limit_wh} Wh are safe")
    return None
