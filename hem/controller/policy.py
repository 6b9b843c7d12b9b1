"""
The owner's policy: what the controller may do, in a file the owner can read.

    participation = "RE+TE"        # trade (TE), rewards for self-consumption (RE), or both
    reserve_permille = 200         # of the battery, never sold
    sell_price_min = 120000        # µ¤/kWh
    buy_price_max = 250000         # µ¤/kWh
    markets = ["double-auction", "auctions", "order-book"]

    [order_book]                   # how to trade with neighbours some slots ahead
    block_slots = 8

    [wallet]                       # keep so much on the ledger, by withdrawal from the DSO
    withdraw = true
    target_uc = 20000000           # µ¤

    [[approve]]                    # changes of the market's rules that we agree to
    path = "prices.*"
    most = 320000

    [[rule]]                       # thresholds with targets, and hours: `hem.controller.sections`
    when = "battery < 20 %"
    buy_to = "40 %"

No file means the defaults. A key we do not know is a mistake and is refused, so that a misspelt
limit is not silently absent. The file stays in the home.

Source: ETSE's policy (PML); TMI section V-E for the three ways to participate.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from hem.controller.battery import degradation_cost_uc_per_kwh
from hem.controller.curves import BID_QUANTITY, OFFER_QUANTITY, Curve, check_curve
from hem.controller.flexible import DeferrablePolicy
from hem.controller.plan import LOADS_MAX
from hem.controller.quantities import EnergyPrice, Level
from hem.controller.sections import (
    NeverSell,
    NumberText,
    PriceCap,
    Reserve,
    Rule,
    Section,
    TariffBand,
)
from ledger.approvals import Approval
from wire.errors import ConfigError

Permille = Annotated[int, Field(ge=0, le=1000)]
Price = Annotated[int, Field(ge=0, le=1_000_000_000)]


RULES_MAX = 64

Market = Literal["double-auction", "auctions", "order-book", "escrow", "schedules"]


class OrderBookPolicy(Section):
    """PETra's order book: what we sell is offered in blocks of slots, what we need is accepted."""

    lead_slots: Annotated[int, Field(ge=3, le=48)] = 4
    """How far ahead the first slot of an offer is [slots]."""
    block_slots: Annotated[int, Field(ge=1, le=48)] = 4
    """How many slots an offer covers at most [slots]."""


class EscrowPolicy(Section):
    """Nazari's escrowed trade: lots of one slot with a guarantee behind them."""

    lead_slots: Annotated[int, Field(ge=3, le=48)] = 3
    """How far ahead the slot is for which we offer or accept [slots]."""
    lot_wh: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    """Energy of one lot: a buyer takes all of it or none [Wh]."""
    lots: Annotated[int, Field(ge=1, le=4)] = 1
    """Lots offered, or accepted, for one slot. Each that fails is a penalty."""
    fee_max_uc: Annotated[int, Field(ge=0, le=10**9)] = 1_000
    """Most that we pay for taking part in one trade [µ¤]."""


class SchedulesPolicy(Section):
    """Baggio's forward session: what we expect to take or give, told beforehand."""

    lead_slots: Annotated[int, Field(ge=2, le=95)] = 4
    """How far ahead the slot is that we schedule [slots]."""


class WalletPolicy(Section):
    """What we keep on the ledger, and what we leave with the DSO."""

    withdraw: bool = False
    """Withdraw money and energy ourselves; else the aggregator gives them at registration."""
    least_uc: Annotated[int, Field(ge=0, le=10**15)] = 2_000_000
    """Below this, money is withdrawn [µ¤]."""
    target_uc: Annotated[int, Field(ge=0, le=10**15)] = 10_000_000
    """Up to this [µ¤]."""
    most_uc: Annotated[int, Field(ge=0, le=10**15)] = 10**15
    """What is above this is deposited back, down to the target [µ¤]."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.least_uc <= self.target_uc <= self.most_uc:
            raise ValueError("expected least_uc <= target_uc <= most_uc")
        return self


class Policy(Section):
    """What the owner wants. Strict: numbers are integers in the unit of the key."""

    participation: Literal["TE", "RE", "RE+TE"] = "RE+TE"
    """TE: trade. RE: only be rewarded for self-consumption. RE+TE: both."""
    soc_min_permille: Permille = 0
    """Least state of charge we plan with; the battery's own protection is below it."""
    soc_max_permille: Permille = 1000
    reserve_permille: Permille = 100
    """Of the capacity, kept for the home: never sold."""
    battery_cost_uc: int = Field(default=2_400_000_000, ge=0, le=10**15)
    """What a new battery costs (eq 8) [µ¤]."""
    lifetime_throughput_wh: int = Field(default=40_000_000, ge=1, le=10**12)
    """What it gives in its life (eq 8) [Wh]."""
    buy_price_max: Price | None = None
    """Never bid more than this [µ¤/kWh]."""
    sell_price_min: Price | None = None
    """Never ask less than this [µ¤/kWh]."""
    margin_permille: Annotated[int, Field(ge=1, le=499)] = 150
    """Of the gap between feed-in and retail: the least gain we trade for."""
    reluctance_uc_per_kwh: Annotated[int, Field(ge=0, le=1_000_000)] = 10_000
    """The battery leaves plain self-consumption for at least this gain: it is not switched to and
    fro for nothing [µ¤/kWh]."""
    certainty_permille: Annotated[int, Field(ge=0, le=1000)] = 900
    """Share of the cautious quantity that is put on the market."""
    min_order_wh: Annotated[int, Field(ge=1, le=1_000_000)] = 10
    """Smaller orders are not worth a message [Wh]."""
    offer_curve: Curve = OFFER_QUANTITY
    """TMI Fig 4: (SoC, share of the discharge limit), permille."""
    bid_curve: Curve = BID_QUANTITY
    """TMI Fig 5: (SoC, share of the charge limit), permille."""
    markets: tuple[Market, ...] = ("double-auction", "auctions")
    """Where we trade. "auctions" are those that the aggregator deploys."""
    order_book: OrderBookPolicy = OrderBookPolicy()
    escrow: EscrowPolicy = EscrowPolicy()
    schedules: SchedulesPolicy = SchedulesPolicy()
    wallet: WalletPolicy = WalletPolicy()
    approve: tuple[Approval, ...] = ()
    """Changes of the market's rules that we agree to when they are proposed."""
    battery_voltage_v: NumberText | None = None
    """What makes Ah energy [V]."""
    currency: Mapping[Literal["£", "€", "$"], NumberText] = Field(default={})
    """What one of these is worth in the market's currency [¤]; 1 for one that is not there."""
    rule: Annotated[tuple[Rule, ...], Field(max_length=RULES_MAX)] = ()
    """Thresholds with targets; of several that fire, the first trades."""
    price_cap: Annotated[tuple[PriceCap, ...], Field(max_length=RULES_MAX)] = ()
    """Prices that hold in some hours; the tightest counts."""
    reserve: Annotated[tuple[Reserve, ...], Field(max_length=RULES_MAX)] = ()
    """Stored energy kept for the home in some hours; the largest counts."""
    never_sell: Annotated[tuple[NeverSell, ...], Field(max_length=RULES_MAX)] = ()
    """Hours in which nothing is sold."""
    tariff: Annotated[tuple[TariffBand, ...], Field(max_length=RULES_MAX)] = ()
    """What your supplier charges and pays, by hour, where it is not the market's tariff."""
    deferrable: Annotated[tuple[DeferrablePolicy, ...], Field(max_length=LOADS_MAX)] = ()
    """Loads that may wait: `hem plan` says when to start them."""

    @property
    def trades(self) -> bool:
        """May we send orders?"""
        return "TE" in self.participation

    def trades_in(self, market: Market) -> bool:
        """May we send orders to this market?"""
        return self.trades and market in self.markets

    @property
    def degradation_uc_per_kwh(self) -> int:
        """C_d of eq 8 [µ¤/kWh]."""
        return degradation_cost_uc_per_kwh(self.battery_cost_uc, self.lifetime_throughput_wh)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.soc_min_permille > self.soc_max_permille:
            raise ValueError("soc_min_permille must not be above soc_max_permille")
        check_curve(self.offer_curve, rising=True)
        check_curve(self.bid_curve, rising=False)
        return self

    @field_validator("rule", "reserve")
    @classmethod
    def _voltage_for_ah(cls, tables: Any, info: ValidationInfo) -> Any:
        if info.data.get("battery_voltage_v", Fraction(1)) is None:
            for key, level in (one for table in tables for one in table.levels):
                if level.unit == "Ah":
                    raise ValueError(
                        f"{key}: {level.text!r} needs the battery's voltage; add a line such as"
                        ' battery_voltage_v = "51.2"'
                    )
        return tables

    def level_wh(self, level: Level, capacity_wh: int) -> Fraction:
        """A level of this policy, exactly [Wh]."""
        return level.energy_wh(capacity_wh, self.battery_voltage_v)

    def price_uc(self, price: EnergyPrice) -> Fraction:
        """A price of this policy, exactly [µ¤/kWh]."""
        return price.uc_per_kwh({str(sign): worth for sign, worth in self.currency.items()})


def load_policy(path: Path) -> Policy:
    """
    Read a policy; a file that does not exist means the defaults.

    Raises:
        ConfigError: not readable, not TOML (with its line), or a key that is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Policy()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text; save it as UTF-8") from None
    return parse_policy(text, str(path))


def parse_policy(text: str, where: str) -> Policy:
    """
    Read a policy's text.

    Args:
        where: what to call it in an error

    Raises:
        ConfigError: not TOML (with its line), or a key that is wrong.
    """
    try:
        return Policy.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}: not TOML: {error}; correct that line") from None
    except RecursionError:
        raise ConfigError(f"{where}: not TOML: nested too deeply; write it flat") from None
    except ValidationError as error:
        raise ConfigError(f"{where}: {_explain(error, text)}") from None


def _explain(error: ValidationError, text: str) -> str:
    parts = []
    for problem in error.errors(include_url=False):
        place = problem["loc"]
        names = [str(part) for part in place if isinstance(part, str)]
        line = _line_of(place, text) if names else 0
        key = ".".join(names)
        where = f"line {line}, {key}" if line else key or "the policy"
        remedy = (
            f"no such key; remove it or use one of {', '.join(_keys_beside(names))}"
            if problem["type"] == "extra_forbidden"
            else f"{problem['msg']}; correct the value or remove the key for its default"
        )
        parts.append(f"{where}: {remedy}")
    return "; ".join(parts)


def _keys_beside(place: list[str]) -> list[str]:
    """The keys that there are where a wrong one stands."""
    section: type[BaseModel] = Policy
    for part in place[:-1]:
        section = _section_in(section.model_fields[part].annotation)
    return sorted(field.alias or name for name, field in section.model_fields.items())


def _section_in(annotation: Any) -> type[BaseModel]:
    """The section that a key holds, alone or several in a row."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(_section_in(inner) for inner in get_args(annotation) if inner is not Ellipsis)


def _line_of(place: tuple[int | str, ...], text: str) -> int:
    """
    The line of a key, or of the section that it is in; 0 when neither is found.

    Args:
        place: names, with the number of a table after the name of several
    """
    found, wanted = 0, list(place)
    for number, line in enumerate(text.splitlines(), start=1):
        name = line.split("=")[0].split("#")[0].strip().strip("\"'")
        if not wanted or name not in (wanted[0], f"[{wanted[0]}]", f"[[{wanted[0]}]]"):
            continue
        if name.startswith("[[") and len(wanted) > 1 and isinstance(wanted[1], int):
            if wanted[1]:
                wanted[1] -= 1
                continue
            del wanted[1]
        found = number
        del wanted[0]
    return found
