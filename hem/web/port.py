"""
What the page asks of a home: the one interface between the two.

`hem.web.living_home` answers for the home that runs, a test by itself. Energies are in Wh, powers
in W with import and discharge positive, money in µ¤.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hem.ems.daylog import DayRow
from hem.ems.health import Health
from hem.ems.standing import Standing
from wire.slots import SlotGrid


@dataclass(frozen=True, slots=True)
class Moment:
    """How the home is now."""

    time_ms: int
    fresh: bool
    """The gateway has answered lately; else the powers are old or zero."""
    grid_w: int
    pv_w: int
    battery_w: int
    load_w: int
    soc_permille: int
    """Negative: no battery."""
    price_uc_per_kwh: int | None
    """Clearing price of the slot that runs; None: nothing was traded."""
    bought_wh: int
    sold_wh: int
    """Contracted for the slot that runs."""
    balance_uc: int
    health: Health


@dataclass(frozen=True, slots=True)
class Expected:
    """What is expected of a slot to come."""

    slot: int
    load_wh: int
    pv_wh: int


@dataclass(frozen=True, slots=True)
class PlanRow:
    """What the planner wants to do in a slot."""

    slot: int
    load_wh: int
    pv_wh: int
    charge_wh: int
    discharge_wh: int
    import_wh: int
    export_wh: int
    soc_wh: int
    """At the slot's end."""
    import_price_uc_per_kwh: int
    export_price_uc_per_kwh: int


@dataclass(frozen=True, slots=True)
class Tariff:
    """The supplier's prices for what neighbours do not trade [µ¤/kWh]."""

    retail_uc_per_kwh: int
    feed_in_uc_per_kwh: int


@dataclass(frozen=True, slots=True)
class Account:
    """Our address on the ledger."""

    address: str
    """Empty while there is none."""
    balance_uc: int
    locked_uc: int


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """A device as it was set up, and how it is."""

    name: str
    kind: str
    """Its kind, or the name of its template."""
    where: str
    """Its connection."""
    status: str
    """`ok`, or why not; empty while the gateway has not told."""


@dataclass(frozen=True, slots=True)
class Nameplate:
    """What the home's plant can do; zero where it is not known."""

    connection_w: int
    battery_wh: int
    charge_w: int
    discharge_w: int


class Household(Protocol):
    """A home, as its page sees it."""

    @property
    def name(self) -> str:
        """What the home is called."""
        ...

    @property
    def grid(self) -> SlotGrid:
        """The market's slots."""
        ...

    @property
    def tariff(self) -> Tariff:
        """The supplier's prices."""
        ...

    @property
    def validator(self) -> str:
        """The validator that the home hosts; empty: none."""
        ...

    @property
    def policy_file(self) -> Path:
        """Where the owner's policy is."""
        ...

    @property
    def policy_at_once(self) -> bool:
        """Whether a saved policy holds at once; else from the next start."""
        ...

    def now_ms(self) -> int:
        """Market time."""
        ...

    async def moment(self) -> Moment:
        """How the home is now; asks the gateway."""
        ...

    def day(self, first_slot: int, last_slot: int) -> Sequence[DayRow]:
        """What was measured, oldest first."""
        ...

    def expected(self, first_slot: int, last_slot: int) -> Sequence[Expected]:
        """What is expected of slots to come; empty while too little is known."""
        ...

    def plan(self) -> Sequence[PlanRow]:
        """The plan that holds; empty: there is none."""
        ...

    def account(self) -> Account:
        """Money on the ledger."""
        ...

    def settlements(self, last: int | None) -> Sequence[Mapping[str, Any]]:
        """The last settled slots, or all of them (`hem.ems.wallet`), oldest first."""
        ...

    def decisions(self, last: int) -> Sequence[Mapping[str, Any]]:
        """The last decisions (`hem.ems.decisions`), newest first; `text` says them in words."""
        ...

    def contracted(self, slot: int) -> Mapping[str, Mapping[str, int]]:
        """`boughtWh` and `soldWh` of a slot, by market."""
        ...

    def price(self, slot: int) -> int | None:
        """Clearing price of a slot [µ¤/kWh]; None: nothing was traded."""
        ...

    def standings(self) -> Sequence[Standing]:
        """The validators' homes, best first."""
        ...

    def devices(self) -> Sequence[DeviceFacts]:
        """The devices that are set up."""
        ...

    def nameplate(self) -> Nameplate:
        """What the plant can do."""
        ...

    def back_up(self, target: Path) -> None:
        """
        Write a backup (slow: call it in a thread).

        Raises:
            ConfigError: it cannot be written.
        """
        ...
