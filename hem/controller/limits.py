"""
Limits from outside: what the connection carries, and what the DSO asks for a while. Pure.

They are obeyed before anything the owner wishes. Each has a side (import or export), a power, a
time from which and one until which it holds; of those that hold at once the tightest counts, and
one that has ended is gone without anybody lifting it.

An import limit that may be asked of a home from outside is never below 4.2 kW: so much stays for
the household.

Source: § 14a EnWG and BNetzA BK6-22-300 (4.2 kW at least); § 9 EEG for export.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

GridSide = Literal["import", "export"]
Origin = Literal["connection", "dso", "household"]
"""Who limits: the connection itself, the DSO, or somebody at this machine (`hem limit`)."""
IMPORT_LEAST_W = 4_200
POWER_MAX_W = 10_000_000
LASTS_MAX_MS = 31 * 86_400_000
"""A limit for longer than this is a mistake, or a connection's."""
FOREVER_MS = 2**53 - 1


@dataclass(frozen=True, slots=True)
class Limit:
    """Not more than so much, for so long."""

    side: GridSide
    power_w: int
    origin: Origin
    from_ms: int = 0
    until_ms: int = FOREVER_MS
    """Market time at which it has ended."""


@dataclass(frozen=True, slots=True)
class Caps:
    """The limits that hold at some time; None: that side is free."""

    import_limit: Limit | None = None
    export_limit: Limit | None = None

    @property
    def import_w(self) -> int | None:
        """Most that may be imported [W]."""
        return None if self.import_limit is None else self.import_limit.power_w

    @property
    def export_w(self) -> int | None:
        """Most that may be exported [W]."""
        return None if self.export_limit is None else self.export_limit.power_w

    def import_wh(self, seconds: int) -> int | None:
        """Most that may be imported in a time [Wh], rounded down."""
        return None if self.import_w is None else self.import_w * seconds // 3600

    def export_wh(self, seconds: int) -> int | None:
        """Most that may be exported in a time [Wh], rounded down."""
        return None if self.export_w is None else self.export_w * seconds // 3600

    def within(self, power_w: int, load_w: int, pv_w: int) -> int:
        """
        The battery power nearest to a wished one with which the grid's power is within the limits.

        Args:
            power_w: of the battery [W, + discharge]

        Returns:
            What the limits ask for, whatever the battery can do.
        """
        net_w = load_w - pv_w
        if self.import_w is not None:
            power_w = max(power_w, net_w - self.import_w)
        if self.export_w is not None:
            power_w = min(power_w, net_w + self.export_w)
        return power_w


FREE = Caps()


def caps_between(limits: Iterable[Limit], start_ms: int, end_ms: int) -> Caps:
    """
    The tightest limits of an interval: one that holds for a moment of it counts.

    Args:
        end_ms: exclusive; after `start_ms`
    """
    tightest: dict[str, Limit] = {}
    for limit in limits:
        if limit.until_ms <= start_ms or end_ms <= limit.from_ms:
            continue
        known = tightest.get(limit.side)
        if known is None or limit.power_w < known.power_w:
            tightest[limit.side] = limit
    return Caps(tightest.get("import"), tightest.get("export"))


def fault_of(limit: Limit, now_ms: int) -> str:
    """
    Why a limit that came from outside is not taken: what is wrong and what would be right.

    Returns:
        Empty: nothing is wrong.
    """
    least_w = IMPORT_LEAST_W if limit.side == "import" else 0
    if not least_w <= limit.power_w <= POWER_MAX_W:
        return f"{limit.side} of {limit.power_w} W; give {least_w} to {POWER_MAX_W} W"
    if limit.until_ms <= max(limit.from_ms, now_ms):
        return "it has ended already; give a later end"
    if limit.until_ms - now_ms > LASTS_MAX_MS:
        return "it lasts for more than 31 days; give an earlier end"
    return ""
