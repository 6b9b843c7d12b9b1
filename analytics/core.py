"""
Measures: plain formulas over energy and latencies. Pure; each formula stands in its docstring.

Shares are in permille (integers), so that a page and a report round the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


def percentile(values: Sequence[int], share: float) -> int | None:
    """Nearest-rank percentile of `values`, in any order; `share` 0.95 is the 95th; None of none."""
    if not values:
        return None
    ordered = sorted(values)
    rank = max(1, -(-len(ordered) * round(share * 1000) // 1000))
    return ordered[rank - 1]


def permille(part: int, whole: int) -> int | None:
    """`part / whole` in permille, kept within 0…1000; None when `whole` is not positive."""
    if whole <= 0:
        return None
    return min(1000, max(0, round(part * 1000 / whole)))


@dataclass(frozen=True, slots=True)
class EnergyBalance:
    """Energy of a feeder over a span of slots [Wh]."""

    load_wh: int
    """L: what the homes consumed."""
    generation_wh: int
    """G: what their panels produced."""
    import_wh: int
    """I = Σ_slot max(0, Σ_home net): drawn from outside the feeder."""
    export_wh: int
    """X = Σ_slot max(0, −Σ_home net): sent outside the feeder."""
    home_import_wh: int
    """Σ_slot Σ_home max(0, net): what the homes' own meters drew."""
    home_export_wh: int
    """Σ_slot Σ_home max(0, −net): what the homes' own meters sent."""

    @property
    def shared_wh(self) -> int:
        """Energy that left one home's meter and entered another's in the same slot."""
        return self.home_import_wh - self.import_wh

    @property
    def self_sufficiency_permille(self) -> int | None:
        """Share of the load met on the feeder: (L − I) / L."""
        return permille(self.load_wh - self.import_wh, self.load_wh)

    @property
    def self_consumption_permille(self) -> int | None:
        """Share of the generation used on the feeder: (G − X) / G."""
        return permille(self.generation_wh - self.export_wh, self.generation_wh)


def energy_balance(
    nets_by_slot: Iterable[Iterable[int]], load_wh: int, generation_wh: int
) -> EnergyBalance:
    """
    Balance of a feeder from its homes' metered nets.

    Args:
        nets_by_slot: for each slot, each home's import − export [Wh]
        load_wh: consumption of all homes [Wh]
        generation_wh: production of all homes [Wh]
    """
    imported = exported = home_import = home_export = 0
    for nets in nets_by_slot:
        total = 0
        for net in nets:
            total += net
            home_import += max(0, net)
            home_export += max(0, -net)
        imported += max(0, total)
        exported += max(0, -total)
    return EnergyBalance(load_wh, generation_wh, imported, exported, home_import, home_export)
