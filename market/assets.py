"""
Energy assets: the right to produce, or to consume, so many watt-hours in every slot of an interval.

An asset is a rectangle, energy by slots. Splitting one, by energy or by interval, and merging the
parts again gives what was there before: nothing is created and nothing is lost. Assets of one kind
are alike, so what somebody holds is their sum, a step function over the slots. `merge` writes that
sum in the one shortest form: runs of slots that do not overlap, in order, neighbours of different
energy. Two holdings are equal when their merged forms are.

Source: PETra section 4.1 (assets) and 4.2 (accepting an offer for a part of it).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum
from itertools import groupby

import msgspec


class Kind(StrEnum):
    """What an asset allows."""

    PRODUCTION = "production"
    CONSUMPTION = "consumption"

    @property
    def opposite(self) -> Kind:
        """The kind that it is exchanged for."""
        return Kind.CONSUMPTION if self is Kind.PRODUCTION else Kind.PRODUCTION


class EnergyAsset(msgspec.Struct, frozen=True, order=True, gc=False):
    """
    Energy of one kind in every slot of an interval.

    The fields are not checked here: what comes from outside passes `is_sound` first.
    """

    kind: Kind
    energy_wh: int
    """In each slot, at least 1 [Wh]."""
    start_slot: int
    end_slot: int
    """Inclusive."""

    @property
    def slots(self) -> range:
        """The slots of its interval."""
        return range(self.start_slot, self.end_slot + 1)

    @property
    def total_wh(self) -> int:
        """Energy over all its slots [Wh]."""
        return self.energy_wh * len(self.slots)

    def with_energy(self, energy_wh: int) -> EnergyAsset:
        """Other energy in the same interval."""
        return EnergyAsset(self.kind, energy_wh, self.start_slot, self.end_slot)

    def turned(self) -> EnergyAsset:
        """The same energy and interval of the opposite kind."""
        return EnergyAsset(self.kind.opposite, self.energy_wh, self.start_slot, self.end_slot)

    def within(self, start_slot: int, end_slot: int) -> EnergyAsset | None:
        """Its part in an interval; None when they do not overlap."""
        start, end = max(self.start_slot, start_slot), min(self.end_slot, end_slot)
        return EnergyAsset(self.kind, self.energy_wh, start, end) if start <= end else None


Holding = tuple[EnergyAsset, ...]
"""Assets of one kind in their merged form."""


class Exchange(msgspec.Struct, frozen=True):
    """What an exchange does to the assets of its two sides."""

    traded: Holding
    """What changes hands, named by the kind of the first side."""
    first_rest: Holding
    """What the first side gets back."""
    second_rest: Holding
    """What the second side gets back."""


def is_sound(asset: EnergyAsset) -> bool:
    """True when an asset holds energy in at least one slot."""
    return asset.energy_wh >= 1 and 0 <= asset.start_slot <= asset.end_slot


def split_energy(asset: EnergyAsset, energy_wh: int) -> tuple[EnergyAsset, EnergyAsset]:
    """
    Cut an asset in two over its whole interval.

    Args:
        energy_wh: what the first part holds per slot; more than nothing, less than all [Wh]

    Returns:
        The part, and the rest.

    Raises:
        ValueError: the cut leaves one side empty.
    """
    if not 0 < energy_wh < asset.energy_wh:
        raise ValueError(f"{energy_wh} Wh cannot be split from {asset.energy_wh} Wh")
    return asset.with_energy(energy_wh), asset.with_energy(asset.energy_wh - energy_wh)


def split_interval(asset: EnergyAsset, first_slot: int) -> tuple[EnergyAsset, EnergyAsset]:
    """
    Cut an asset in two in time.

    Args:
        first_slot: where the second part begins

    Returns:
        The earlier part, and the later one.

    Raises:
        ValueError: the cut leaves one side empty.
    """
    if not asset.start_slot < first_slot <= asset.end_slot:
        raise ValueError(f"slot {first_slot} does not split {asset.start_slot}…{asset.end_slot}")
    before = EnergyAsset(asset.kind, asset.energy_wh, asset.start_slot, first_slot - 1)
    return before, EnergyAsset(asset.kind, asset.energy_wh, first_slot, asset.end_slot)


def merge(assets: Iterable[EnergyAsset]) -> Holding:
    """
    The sum of assets of one kind, in its shortest form. Cost: n log n of their number.

    Raises:
        ValueError: they are of both kinds.
    """
    return _sum((asset, 1) for asset in assets)


def subtract(held: Iterable[EnergyAsset], taken: Iterable[EnergyAsset]) -> Holding:
    """
    What is left of a holding.

    Raises:
        ValueError: more is taken in some slot than is held, or the kinds differ.
    """
    return _sum([*((asset, 1) for asset in held), *((asset, -1) for asset in taken)])


def energy_at(held: Iterable[EnergyAsset], slot: int) -> int:
    """Energy that assets hold in a slot [Wh]."""
    return sum(a.energy_wh for a in held if a.start_slot <= slot <= a.end_slot)


def exchange(first: EnergyAsset, second: Iterable[EnergyAsset]) -> Exchange:
    """
    Exchange an asset for assets of the opposite kind, where they overlap.

    In every slot that both sides have, the smaller energy changes hands; all else goes back to its
    owner. Without a common slot nothing is traded.

    Args:
        first: one asset
        second: assets of the opposite kind; their sum counts

    Raises:
        ValueError: the kinds are not opposite.
    """
    provided = merge(second)
    if any(asset.kind is not first.kind.opposite for asset in provided):
        raise ValueError(f"{first.kind} is exchanged for {first.kind.opposite} only")
    overlaps = (first.within(asset.start_slot, asset.end_slot) for asset in provided)
    common = [
        overlap.with_energy(min(overlap.energy_wh, asset.energy_wh))
        for overlap, asset in zip(overlaps, provided, strict=True)
        if overlap is not None
    ]
    traded = merge(common)
    given = [
        EnergyAsset(first.kind.opposite, a.energy_wh, a.start_slot, a.end_slot) for a in common
    ]
    return Exchange(traded, subtract([first], traded), subtract(provided, given))


def _sum(signed: Iterable[tuple[EnergyAsset, int]]) -> Holding:
    """Sweep over the slots at which a sum of signed assets changes."""
    steps: list[tuple[int, int]] = []
    kinds: set[Kind] = set()
    for asset, sign in signed:
        kinds.add(asset.kind)
        steps.append((asset.start_slot, sign * asset.energy_wh))
        steps.append((asset.end_slot + 1, -sign * asset.energy_wh))
    if len(kinds) > 1:
        raise ValueError("production and consumption do not add up")
    return tuple(EnergyAsset(kind, *run) for kind in kinds for run in _runs(steps))


def _runs(steps: list[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """(energy, first slot, last slot) of each run of equal energy above zero."""
    level_wh, since = 0, 0
    for slot, group in groupby(sorted(steps), key=lambda step: step[0]):
        change_wh = sum(energy_wh for _, energy_wh in group)
        if change_wh == 0:
            continue
        if level_wh:
            yield level_wh, since, slot - 1
        level_wh, since = level_wh + change_wh, slot
        if level_wh < 0:
            raise ValueError(f"{-level_wh} Wh too much are taken in slot {slot}")
