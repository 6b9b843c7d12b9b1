"""
The aggregator's configuration file (TOML).

    [service]      key, certificate, box_key, data_dir
    [broker]       host, port, ca, door
    [market]       genesis, csmdb_box
    [funding]      automatic, deposit_uc, production_wh, consumption_wh
    [accounts]     opening_uc, credit_uc, batch_s, [accounts.plant_w], [accounts.feeder_w]
    [schedule]     net_wh_by_slot, history_days, lead_hours
    [dso]          rating_import_w, rating_export_w, [[dso.limit]]
    [flexibility]  band_wh, cap_uc_per_kwh, floor_uc_per_kwh, ahead_slots, sealed, [[…deviation]]
    [adjustment]   automatic, margin_s
    [[approve]]    path, least, most, value

Paths are relative to the file. Everything is checked before anything connects.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationError,
    model_validator,
)

from aggregator.core import MIN_AHEAD_SLOTS
from ledger.approvals import Approval
from wire.errors import ConfigError, MalformedError
from wire.keys import KEY_BYTES, from_text

MAX_PRICE_UC_PER_KWH = 1_000_000_000


def _key(text: str) -> str:
    try:
        from_text(text, KEY_BYTES)
    except MalformedError:
        raise ValueError("expected a public key, 43 characters of base64url") from None
    return text


class Section(BaseModel):
    """Base of the sections: a key we do not know is a mistake, not a wish."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ServiceSection(Section):
    """Who we are."""

    key: Path = Path("service.key")
    """Seed of the service key, which is the supervisor's of the genesis (mode 0600)."""
    certificate: Path = Path("certificate.json")
    """Issued by the CSM-DB with the roles aggregator and dso."""
    box_key: Path = Path("dso-box.key")
    """Seed of the key that readings are sealed to (mode 0600)."""
    data_dir: Path = Path("data")
    """Outbox, readings, evidence. Back it up."""


class Broker(Section):
    """Where the messages go."""

    host: str = "127.0.0.1"
    port: int = Field(default=1883, ge=1, le=65_535)
    ca: Path | None = None
    """Certificate of the market's TLS authority: the broker is spoken to over TLS."""
    door: str = ""
    """Of the CSM-DB, `https://HOST:PORT`: where our TLS certificate comes from."""


class Market(Section):
    """Which market."""

    genesis: Path
    csmdb_box: Annotated[str, AfterValidator(_key)]
    """The key that requests to the CSM-DB are sealed to."""


class Funding(Section):
    """What a new address gets, once."""

    automatic: bool = True
    """False: nothing; participants withdraw money and energy from their private accounts."""
    deposit_uc: int = Field(default=100_000_000, ge=0, le=10**15)
    """Money [µ¤]."""
    production_wh: int = Field(default=5_000, ge=0)
    """Energy per slot that it may sell, where its registration does not say [Wh]."""
    consumption_wh: int = Field(default=5_000, ge=0)
    """Energy per slot that it may buy, where its registration does not say [Wh]."""
    slots: int = Field(default=192, ge=1)
    """For how long, where its registration does not say [slots]."""


class AccountsSection(Section):
    """The participants' private accounts with the DSO, and what is safe to withdraw."""

    opening_uc: int = Field(default=0, ge=0, le=10**15)
    """Money of a new account [µ¤]."""
    credit_uc: int = Field(default=0, ge=0, le=10**15)
    """How far below zero an account may be drawn; further down nothing is withdrawn [µ¤]."""
    batch_s: int = Field(default=20, ge=0, le=3600)
    """Where addresses are fresh, withdrawals leave together at multiples of this [s]; longer hides
    better who asked. 0: at once."""
    plant_w: dict[str, Annotated[int, Field(ge=0)]] = {}
    """Production capacity by participant [W]; others may produce what they may export."""
    feeder_w: dict[str, Annotated[int, Field(ge=0)]] = {}
    """Rating by feeder [W]; others are not limited."""


class Schedule(Section):
    """What the feeder is expected to draw before there is a history."""

    net_wh_by_slot: list[int] = []
    """Net energy (+ import) of each slot of the day, or empty: no schedule [Wh]."""
    history_days: int = Field(default=7, ge=1, le=366)
    """Days of history that are averaged [d]."""
    lead_hours: int = Field(default=12, ge=0, le=24)
    """How long before a day begins its schedule is made and sent to the DSO [h]."""


class DsoLimit(Section):
    """Works on the line: what it carries meanwhile, every day."""

    first_slot_of_day: int = Field(ge=0)
    """0 is the slot that begins at 00:00 UTC."""
    last_slot_of_day: int = Field(ge=0)
    """Inclusive."""
    import_w: int | None = Field(default=None, ge=0)
    """Most import [W]; left out: the rating."""
    export_w: int | None = Field(default=None, ge=0)
    """Most export [W]; left out: the rating."""

    @model_validator(mode="after")
    def _limits_something(self) -> DsoLimit:
        if self.first_slot_of_day > self.last_slot_of_day:
            raise ValueError("ends before it begins; over midnight, write two limits")
        if self.import_w is None and self.export_w is None:
            raise ValueError("limits nothing: give import_w or export_w")
        return self


class DsoSection(Section):
    """What the feeder carries: to this the DSO cuts a schedule before it approves it."""

    rating_import_w: int | None = Field(default=None, ge=0)
    """Most import [W]; left out: not limited."""
    rating_export_w: int | None = Field(default=None, ge=0)
    """Most export [W]; left out: not limited."""
    limit: list[DsoLimit] = []


class Deviation(Section):
    """A deviation known beforehand: a planned outage, a large load, a test."""

    slot_of_day: int = Field(ge=0)
    """0 is the slot that begins at 00:00 UTC."""
    energy_wh: int
    """+ more import than scheduled: energy is bought; − less: energy is sold [Wh]."""


class Flexibility(Section):
    """When to ask homes for energy, and what to pay at most."""

    band_wh: int = Field(default=500, ge=0)
    """A deviation within ± this is left to the supervisor [Wh]."""
    cap_uc_per_kwh: int = Field(default=280_000, ge=0, le=MAX_PRICE_UC_PER_KWH)
    """Most that is paid for bought energy."""
    floor_uc_per_kwh: int = Field(default=100_000, ge=0, le=MAX_PRICE_UC_PER_KWH)
    """Least that sold energy brings."""
    ahead_slots: int = Field(default=4, ge=MIN_AHEAD_SLOTS, le=96)
    """How long before its slot an auction is opened [slots]."""
    max_energy_wh: int = Field(default=100_000, ge=1)
    """Most energy of one auction [Wh]."""
    pricing: str = Field(default="uniform", pattern="^(as-bid|uniform)$")
    sealed: bool = False
    """Bids are committed first and revealed before the gate closes."""
    deviation: list[Deviation] = []


class Adjustment(Section):
    """Whether cleared sessions are reopened: after congestion, and when a line is cut."""

    automatic: bool = False
    margin_s: int = Field(default=60, ge=0, le=3600)
    """An adjustment ends so long before its slot begins [s]."""


class Proposal(Section):
    """A change of the rules that we propose, once; the others' consent decides."""

    path: str = Field(min_length=1, max_length=200)
    """Of the parameter (`ledger.contracts.parameters`)."""
    value: StrictBool | StrictInt | StrictStr
    """In the parameter's unit."""
    active_from: AwareDatetime
    """The first slot that begins then, or later, has it; a day ahead at least."""


class AggregatorConfig(Section):
    """A whole configuration, paths resolved."""

    service: ServiceSection = ServiceSection()
    broker: Broker = Broker()
    market: Market
    funding: Funding = Funding()
    accounts: AccountsSection = AccountsSection()
    schedule: Schedule = Schedule()
    dso: DsoSection = DsoSection()
    flexibility: Flexibility = Flexibility()
    adjustment: Adjustment = Adjustment()
    approve: list[Approval] = []
    """Changes of the rules that are approved without asking anybody."""
    propose: list[Proposal] = []
    """Changes of the rules that we want."""

    @model_validator(mode="after")
    def _prices_in_order(self) -> AggregatorConfig:
        if self.flexibility.floor_uc_per_kwh > self.flexibility.cap_uc_per_kwh:
            raise ValueError("flexibility.floor_uc_per_kwh is above cap_uc_per_kwh")
        return self


def load_config(path: Path) -> AggregatorConfig:
    """
    Read and check a configuration file.

    Raises:
        ConfigError: names file, key and what would be right.
    """
    try:
        config = AggregatorConfig.model_validate(tomllib.loads(path.read_text()))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{path}: {where}: {first['msg']}") from None
    folder = path.resolve().parent
    service, market, broker = config.service, config.market, config.broker
    return config.model_copy(
        update={
            "service": service.model_copy(
                update={
                    name: folder / getattr(service, name)
                    for name in ("key", "certificate", "box_key", "data_dir")
                }
            ),
            "market": market.model_copy(update={"genesis": folder / market.genesis}),
            "broker": broker.model_copy(update={"ca": broker.ca and folder / broker.ca}),
        }
    )
