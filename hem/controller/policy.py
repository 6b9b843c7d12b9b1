"""
The owner's policy: what the controller may do, in a file the owner can read.

    participation = "RE+TE"        # trade (TE), rewards for self-consumption (RE), or both
    reserve_permille = 200         # of the battery, never sold
    sell_price_min = 120000        # µ¤/kWh
    buy_price_max = 250000         # µ¤/kWh

No file means the defaults. A key we do not know is a mistake and is refused, so that a misspelt
limit is not silently absent. The file stays in the home.

Source: ETSE's policy (PML); TMI section V-E for the three ways to participate.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hem.controller.battery import degradation_cost_uc_per_kwh
from hem.controller.curves import BID_QUANTITY, OFFER_QUANTITY, Curve, check_curve
from wire.errors import ConfigError

Permille = Annotated[int, Field(ge=0, le=1000)]
Price = Annotated[int, Field(ge=0, le=1_000_000_000)]


class Policy(BaseModel):
    """What the owner wants. Strict: numbers are integers in the unit of the key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

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
    certainty_permille: Annotated[int, Field(ge=0, le=1000)] = 900
    """Share of the cautious quantity that is put on the market."""
    min_order_wh: Annotated[int, Field(ge=1, le=1_000_000)] = 10
    """Smaller orders are not worth a message [Wh]."""
    offer_curve: Curve = OFFER_QUANTITY
    """TMI Fig 4: (SoC, share of the discharge limit), permille."""
    bid_curve: Curve = BID_QUANTITY
    """TMI Fig 5: (SoC, share of the charge limit), permille."""

    @property
    def trades(self) -> bool:
        """May we send orders?"""
        return "TE" in self.participation

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
    try:
        return Policy.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}; correct that line") from None
    except ValidationError as error:
        raise ConfigError(f"{path}: {_explain(error, text)}") from None


def _explain(error: ValidationError, text: str) -> str:
    parts = []
    for problem in error.errors(include_url=False):
        key = ".".join(str(part) for part in problem["loc"])
        line = _line_of(str(problem["loc"][0]), text) if problem["loc"] else 0
        where = f"line {line}, {key}" if line else key or "the policy"
        remedy = (
            f"no such key; remove it or use one of {', '.join(sorted(Policy.model_fields))}"
            if problem["type"] == "extra_forbidden"
            else f"{problem['msg']}; correct the value or remove the key for its default"
        )
        parts.append(f"{where}: {remedy}")
    return "; ".join(parts)


def _line_of(key: str, text: str) -> int:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.split("=")[0].strip() in (key, f"[{key}]"):
            return number
    return 0
