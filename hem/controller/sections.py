"""
The tables of a policy in which the owner writes quantities: rules, price caps, reserves, windows.

    battery_voltage_v = "48"       # what makes Ah energy
    [[rule]]
    every = "1 min"
    when = "battery < 50 Ah"
    buy_to = "60 Ah"
    price_max = "60 £/MWh"

    [[price_cap]]                  # [[reserve]] and [[never_sell]] have hours, too
    from = "17:00"
    to = "20:00"
    buy_max = "22 cent/kWh"

A condition is `battery` or `price`, `<` `<=` `>` `>=`, a quantity; several are joined with `and`.
That is the whole grammar: nothing is evaluated. `price` is the last that cleared; while nobody
knows it, what is said about it is not so.

Source: ETSE section IV (the PML: which situations trigger trading, which price constraints hold,
and that these change with the hour).
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    model_validator,
)

from hem.controller.quantities import (
    DAY_MINUTES,
    EnergyPrice,
    Level,
    parse_duration_s,
    parse_level,
    parse_number,
    parse_power_w,
    parse_price,
    parse_time_of_day,
)

CHECK_LEAST_S = 60
"""A rule is looked at once a minute at most."""
TERMS_MAX = 4
_TERM = re.compile(r"(battery|price) ?(<=|>=|<|>) ?(.+)", re.ASCII)
_COMPARE: dict[str, Callable[[Fraction, Fraction], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Term:
    """One comparison."""

    sign: str
    """`<`, `<=`, `>` or `>=`."""
    limit: Level | EnergyPrice
    """A level is compared with the battery, a price with the last price."""

    def holds(self, found: Fraction, limit: Fraction) -> bool:
        """Does what was found compare so with the limit, both in the same unit?"""
        return _COMPARE[self.sign](found, limit)


@dataclass(frozen=True, slots=True)
class Condition:
    """When a rule fires: all of its terms hold."""

    text: str
    terms: tuple[Term, ...]

    def __str__(self) -> str:
        return self.text


def parse_condition(value: object) -> Condition:
    """
    `battery < 50 Ah and price < 12 cent/kWh`.

    Raises:
        ValueError: anything else; says what would be right.
    """
    if not isinstance(value, str):
        raise ValueError("a condition is text, such as 'battery < 50 Ah'")
    parts = [part.strip() for part in value.split(" and ")]
    if len(parts) > TERMS_MAX:
        raise ValueError(f"more than {TERMS_MAX} comparisons; write two rules")
    return Condition(value.strip(), tuple(_term(part) for part in parts))


def _term(text: str) -> Term:
    found = _TERM.fullmatch(text)
    if found is None:
        raise ValueError(
            f"{text[:40]!r} is no comparison; write 'battery' or 'price', one of < <= > >= and a"
            " quantity, such as 'battery < 50 Ah'"
        )
    return Term(found[2], (parse_level if found[1] == "battery" else parse_price)(found[3]))


def _text(value: Any) -> str:
    return str(value)


def _clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


def _whole_w(value: object) -> int:
    """[W], rounded down: what is asked for is never more than was said."""
    return int(parse_power_w(value))


def _check_every_s(value: object) -> int:
    seconds = parse_duration_s(value)
    if not CHECK_LEAST_S <= seconds <= 86_400:
        raise ValueError("is not between '1 min' and '24 h'")
    return seconds


LevelText = Annotated[Level, PlainValidator(parse_level), PlainSerializer(_text)]
PriceText = Annotated[EnergyPrice, PlainValidator(parse_price), PlainSerializer(_text)]
ConditionText = Annotated[Condition, PlainValidator(parse_condition), PlainSerializer(_text)]
EverySeconds = Annotated[
    int, PlainValidator(_check_every_s), PlainSerializer(lambda seconds: f"{seconds} s")
]
PowerText = Annotated[
    int, PlainValidator(_whole_w), PlainSerializer(lambda power_w: f"{power_w} W")
]
Minute = Annotated[int, PlainValidator(parse_time_of_day), PlainSerializer(_clock)]
NumberText = Annotated[Fraction, PlainValidator(parse_number), PlainSerializer(_text)]


class Section(BaseModel):
    """Base of the file and its sections: a key that we do not know is a mistake, not a wish."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_by_name=True)


class Window(Section):
    """Hours of the day, by the home's clock; may run over midnight; the whole day if left out."""

    from_: Minute = Field(default=0, alias="from")
    """The first minute."""
    to: Minute = DAY_MINUTES
    """The first minute that is not in it any more."""

    def overlaps(self, start_s: int, length_s: int) -> bool:
        """
        Is any moment of an interval in these hours?

        Args:
            start_s: seconds since midnight at the home
            length_s: at most a day
        """
        begin_s, until_s = self.from_ * 60, self.to * 60
        if until_s <= begin_s:
            until_s += 86_400
        # yesterday's window may run into today, and the interval into tomorrow's
        return any(
            begin_s + day_s < start_s + length_s and start_s < until_s + day_s
            for day_s in (-86_400, 0, 86_400)
        )

    @property
    def hours(self) -> str:
        """In words: `17:00–20:00`; empty for the whole day."""
        whole = (self.from_, self.to) == (0, DAY_MINUTES)
        return "" if whole else f"{_clock(self.from_)}–{_clock(self.to)}"

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if self.from_ == self.to:
            raise ValueError("expected from and to to differ; leave both out for the whole day")
        return self


class Rule(Window):
    """A threshold with a target: while the condition holds, trade toward it or keep it."""

    every: EverySeconds = 900
    """When to check."""
    when: ConditionText
    """Fires while this holds."""
    buy_to: LevelText | None = None
    """Buy until the battery holds so much."""
    sell_to: LevelText | None = None
    """Sell until the battery holds no more than this."""
    keep: LevelText | None = None
    """Sell nothing of what is below."""
    price_max: PriceText | None = None
    """Of `buy_to`: pay no more; what the home would bid if left out."""
    price_min: PriceText | None = None
    """Of `sell_to`: take no less; what the home would ask if left out."""
    power_max: PowerText | None = None
    """Trade no faster than this."""

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if sum(target is not None for target in (self.buy_to, self.sell_to, self.keep)) != 1:
            raise ValueError("expected one of buy_to, sell_to and keep")
        if self.price_max is not None and self.buy_to is None:
            raise ValueError("price_max goes with buy_to; remove it")
        if self.price_min is not None and self.sell_to is None:
            raise ValueError("price_min goes with sell_to; remove it")
        return self

    @property
    def levels(self) -> tuple[tuple[str, Level], ...]:
        """Every level in the rule, with its key."""
        targets = (("buy_to", self.buy_to), ("sell_to", self.sell_to), ("keep", self.keep))
        limits = [("when", term.limit) for term in self.when.terms]
        return tuple((key, level) for key, level in (*limits, *targets) if isinstance(level, Level))


class PriceCap(Window):
    """Prices that the owner agrees to in some hours, beside those that always hold."""

    buy_max: PriceText | None = None
    """Never bid more."""
    sell_min: PriceText | None = None
    """Never ask less."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.buy_max is None and self.sell_min is None:
            raise ValueError("expected buy_max, sell_min or both")
        return self


class Reserve(Window):
    """Stored energy that is kept for the home in some hours."""

    keep: LevelText
    """Sell nothing of what is below."""

    @property
    def levels(self) -> tuple[tuple[str, Level], ...]:
        """Every level in it, with its key."""
        return (("keep", self.keep),)


class NeverSell(Window):
    """Hours in which nothing is sold, whatever it would bring."""


class TariffBand(Window):
    """What the home's supplier charges and pays in some hours."""

    import_price: PriceText | None = None
    """For a kWh bought."""
    export_price: PriceText | None = None
    """For a kWh fed in."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.import_price is None and self.export_price is None:
            raise ValueError("expected import_price, export_price or both")
        return self
