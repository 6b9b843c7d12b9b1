"""
The provisioning file of a home: the one file an installer drops in.

    [home]      name, claim_code, data_dir            [gateway]   socket, limits, who may ask
    [broker]    host, port, ca, door                  [[devices]] name, kind, host, port, device_id
    [market]    name, genesis, csmdb, its keys        [policy]    file
    [validator] id                                    (only where the home hosts a validator)
    [[proxy]]   device, listen, port                  (only where a device's line is shared)
    [http]      host, port, names                     (only where the page and health are served)
    [local_broker] host, port, user, password_file    (only where Home Assistant is told)
    [light]     enabled, checkpoint, period_s         (the light client; on unless told otherwise)
    [grid]      import_max_w, export_max_w            (what the connection carries)
    [firmware]  url, root, check_every_s, install     (only where the meter is to be kept patched)

One pydantic model per section. All paths are relative to the file. Everything is checked before
anything connects; an error names the file, the key and what would be right.
"""

from __future__ import annotations

import json
import tomllib
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    IPvAnyAddress,
    ValidationError,
    model_validator,
)

from wire.errors import ConfigError, MalformedError
from wire.keys import KEY_BYTES, from_text, is_id
from wire.slots import DEFAULT_SLOT_S, MIN_SLOT_S, SlotGrid

SOCKET_PATH_BYTES_MAX = 107
"""Longest path of a Unix socket on Linux (unix(7): sun_path holds 108 with its final zero)."""
DEVICE_KINDS = ("sunspec-meter", "sunspec-inverter", "sunspec-battery", "sunspec", "template")
"""Kinds whose keys we know; only a template has more of its own, its parameters."""
CONNECTION_MAX_W = 43_500
"""3 × 63 A × 230 V: the largest usual connection of a house."""


def _identity(text: str) -> str:
    if not is_id(text):
        raise ValueError("expected an identity, 'hg1' and 32 letters or digits")
    return text


def _key(text: str) -> str:
    try:
        from_text(text, KEY_BYTES)
    except MalformedError:
        raise ValueError("expected a public key, 43 characters of base64url") from None
    return text


def _timezone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("expected the name of a time zone, such as 'Europe/Berlin'") from None
    return name


Identity = Annotated[str, AfterValidator(_identity)]
PublicKey = Annotated[str, AfterValidator(_key)]
Port = Annotated[int, Field(ge=1, le=65_535)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
HostName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,252}$")]


class Section(BaseModel):
    """Base of the sections: a key we do not know is a mistake, not a wish."""

    # The line under a field is its description, for the reference in docs/.
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Home(Section):
    """Who we are."""

    name: Name
    claim_code: str = Field(min_length=1, max_length=128)
    """One-time code for enrolment at the CSM-DB."""
    data_dir: Path
    """Keys, registers, outbox. Back it up."""
    timezone: Annotated[str, AfterValidator(_timezone)] = "UTC"
    """Of the household's clock: hours of the policy, and of what is explained to it."""
    share_powers: bool = False
    """Where addresses are fresh: tell the operators this home's powers and state of charge, live.
    With them they can find its address of the hour (docs/concepts/identities.md)."""


class Broker(Section):
    """Where the messages go."""

    host: str = "127.0.0.1"
    port: Port
    ca: Path | None = None
    """Certificate of the market's TLS authority (`tls-ca.crt`): the broker is asked over TLS."""
    door: str = Field(default="", pattern=r"^(https://[^/\s]+)?$")
    """Of the CSM-DB, `https://HOST:PORT`: where the home gets its TLS certificates."""

    @model_validator(mode="after")
    def _ca_with_door(self) -> Broker:
        if (self.ca is None) != (not self.door):
            raise ValueError("ca and door belong together; add the other, or drop both")
        return self


class Market(Section):
    """Which market, and whom to believe there."""

    name: Name
    genesis: Path
    """The chain's first facts (JSON)."""
    csmdb: Identity
    csmdb_key: PublicKey
    """The CSM-DB's issuing key: the trust anchor."""
    csmdb_box: PublicKey
    """The key that enrolment and grant requests are sealed to."""
    last_slot: int | None = Field(default=None, ge=0)
    """Last slot to trade in, where a trial has an end."""


class Gateway(Section):
    """The process that holds the meter key."""

    socket: Path = Path("gateway.sock")
    ems_uid: int | None = Field(default=None, ge=0)
    """User that may ask besides our own; none by default."""
    max_power_w: int = Field(default=CONNECTION_MAX_W, ge=100, le=10_000_000)
    """Most power the connection or the generator can carry: faster registers are refused [W]."""
    late_slots: int = Field(default=4, ge=1, le=96)
    """How many slots after its end a slot may still be closed with a reading."""
    cache_s: float = Field(default=0.2, ge=0, le=60)
    """How long a polled state is good for [real s]."""
    device_lease_s: int = Field(default=50, ge=2, le=3_600)
    """Longest lease a battery gets from us at a time: neutral this soon after we died [real s]."""
    timeout_s: float = Field(default=1.0, gt=0, le=30)
    """How long a device may take to answer [real s]."""
    still_s: int = Field(default=300, ge=2, le=86_400)
    """A device that says the very same for so long, while energy flows, is frozen [real s]."""


class Device(BaseModel):
    """
    One meter, inverter or battery, or several of these over one connection.

    A kind we do not know disables that device only, so its other keys pass unread. A template's
    parameters are keys here; the template checks them.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    name: Name
    kind: str
    connection: Literal["tcp", "rtu", "rtu-over-tcp"] = "tcp"
    host: str = "127.0.0.1"
    """Of tcp and rtu-over-tcp."""
    port: Port = 502
    path: str = ""
    """Of rtu: the serial port, `/dev/serial/by-id/…`."""
    baud: int = 9_600
    parity: Literal["N", "E", "O"] = "N"
    stopbits: Literal[1, 2] = 1
    device_id: int = Field(default=1, ge=0, le=255)
    template: str | None = None
    """Of kind `template`: one of docs/reference/devices.md."""
    use: tuple[Literal["grid", "pv", "battery", "load"], ...] | None = None
    """Of the device's capabilities, those that are wanted; all of them if left out."""

    @model_validator(mode="after")
    def _known_keys(self) -> Device:
        if self.kind not in DEVICE_KINDS:
            return self
        if self.kind == "template":
            if self.template is None:
                raise ValueError(
                    "a template device needs a key 'template'; see docs/reference/devices.md"
                )
        elif self.model_extra:
            raise ValueError(f"a {self.kind} has no key {sorted(self.model_extra)[0]!r}")
        elif self.template is not None:
            raise ValueError(f"a {self.kind} has no key 'template'")
        elif self.use is not None and self.kind != "sunspec":
            raise ValueError(f"a {self.kind} has no key 'use'")
        return self


class Proxy(Section):
    """
    A device's connection, shared with other programs of the house over Modbus TCP.

    Many inverters accept one client, and that one is the gateway. The gateway's own questions go
    first.
    """

    device: Name
    """Whose connection is shared; with it every device on the same line. A Modbus device."""
    listen: IPvAnyAddress = IPv4Address("127.0.0.1")
    """This machine only; `0.0.0.0` lets in the whole network, and asks nobody for a password."""
    port: Port = 5_020
    """Where guests connect."""
    device_ids: tuple[Annotated[int, Field(ge=0, le=255)], ...] | None = Field(
        default=None, min_length=1
    )
    """Unit ids that guests may ask; those of the devices on the line if left out."""
    allow_writes: bool = False
    """Guests may write, but never to a battery that is held, nor past the day's writes to flash."""
    clients_max: int = Field(default=4, ge=1, le=64)
    """Guests at a time."""
    requests_per_s: float = Field(default=10.0, ge=0.1, le=1_000)
    """Of one guest."""
    idle_s: float = Field(default=60.0, ge=1, le=3_600)
    """A guest that has not asked a whole question for so long is dropped [real s]."""
    wait_s_max: float = Field(default=5.0, ge=0.1, le=60)
    """A guest's question that waited so long for its turn is told that we are busy [real s]."""


class Policy(Section):
    """The owner's wishes."""

    file: Path = Path("policy.toml")


class Validator(Section):
    """The validator this home hosts."""

    id: Identity
    folder: Path | None = None
    """Of its node, on this machine: attestations are left there (`runtime.cpf_folder`)."""


class Http(Section):
    """Where the page, health and metrics are served; nowhere unless the section is there."""

    host: str = "127.0.0.1"
    """The loopback interface; the page has a password, health has none."""
    port: Annotated[int, Field(ge=0, le=65_535)] = 8_100
    """0 takes a free one; `http.url` in the data folder says which."""
    names: tuple[HostName, ...] = ("hem.local",)
    """Names under which the page may be called, besides localhost and any address."""
    metrics: Literal["private", "open"] = "private"
    """`/metrics` tells the balance: to this machine and who is logged in, or (`open`) to all."""


class LocalBroker(Section):
    """The household's own MQTT broker, to which Home Assistant listens."""

    host: str = "127.0.0.1"
    port: Port = 1_883
    user: str = Field(default="", max_length=128)
    """Empty: the broker asks for none."""
    password_file: Path | None = None
    """A file with the password alone, readable by its owner only."""
    discovery_prefix: str = Field(default="homeassistant", pattern=r"^[A-Za-z0-9_-]{1,64}$")
    period_s: float = Field(default=10.0, ge=1, le=3_600)
    """States are told so often at most [real s]."""

    @model_validator(mode="after")
    def _user_with_password(self) -> LocalBroker:
        if self.password_file is not None and not self.user:
            raise ValueError("password_file without a user; add user")
        return self


class Light(Section):
    """The light client, which proves what the home believes of its money."""

    enabled: bool = True
    checkpoint: Path | None = None
    """Of somebody you trust, to begin with where the genesis is older than two weeks."""
    period_s: float = Field(default=60.0, ge=1, le=86_400)
    """Newer headers and a proof are asked for so often [real s]."""


class Grid(Section):
    """What the connection carries; obeyed before anything else."""

    import_max_w: Annotated[int, Field(ge=100, le=10_000_000)] | None = None
    """Most power to take from the grid [W]."""
    export_max_w: Annotated[int, Field(ge=0, le=10_000_000)] | None = None
    """Most power to give to the grid [W]."""


class Firmware(Section):
    """Where signed firmware for the meter comes from, and whether anybody is asked."""

    url: str = Field(pattern=r"^https?://[^\s/]+(/[^\s]*)?$")
    """Of the repository; what it serves is signed, so plain HTTP will do."""
    root: Path
    """Root metadata that is trusted from the beginning: `1.root.json` of the repository."""
    check_every_s: int = Field(default=21_600, ge=10, le=604_800)
    """How often it is looked for news [real s]."""
    install: Literal["automatic", "ask"] = "automatic"
    """`ask`: what fits waits for `hem firmware install`."""


class Provisioning(Section):
    """A whole provisioning file, paths resolved."""

    home: Home
    broker: Broker
    market: Market
    gateway: Gateway = Gateway()
    devices: list[Device] = Field(min_length=1)
    proxy: list[Proxy] = Field(default=[])
    policy: Policy = Policy()
    validator: Validator | None = None
    http: Http | None = None
    local_broker: LocalBroker | None = None
    light: Light = Light()
    grid: Grid = Grid()
    firmware: Firmware | None = None

    @model_validator(mode="after")
    def _names_differ(self) -> Provisioning:
        names = [device.name for device in self.devices]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two devices are named {twice[0]!r}; give each its own name")
        return self


class Poe(BaseModel):
    """The genesis' rules of Proof of Energy that a meter needs to attest its CPF."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    kappa_milli: int = Field(default=1000, alias="kappaMilli", ge=0)
    min_energy_wh: int = Field(default=200, alias="minEnergyWh", ge=0)
    min_production_wh: int = Field(default=100, alias="minProductionWh", ge=0)


class MarketFacts(BaseModel):
    """What a gateway needs from the genesis (the rest is the ledger's)."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    chain_id: str = Field(alias="chainId", min_length=1)
    slot_length_s: int = Field(default=DEFAULT_SLOT_S, alias="slotLengthS", ge=MIN_SLOT_S)
    dso_box_key: PublicKey = Field(alias="dsoBoxKey")
    poe: Poe = Poe()

    @property
    def grid(self) -> SlotGrid:
        """The market's slots."""
        return SlotGrid(self.slot_length_s)


M = TypeVar("M", bound=BaseModel)


def load_provisioning(path: Path) -> Provisioning:
    """
    Read and check a provisioning file; its paths come back absolute.

    Raises:
        ConfigError: names file, key and remedy.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); give a provisioning file") from None
    try:
        raw = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None
    provisioning = _resolve(_validate(Provisioning, raw, path), path.absolute().parent)
    _check_proxies(provisioning, path)
    firmware = provisioning.firmware
    if firmware is not None and not firmware.root.is_file():
        raise ConfigError(
            f"{path}: firmware.root: no file {firmware.root}; copy the repository's 1.root.json"
        )
    socket = provisioning.gateway.socket
    if len(str(socket).encode()) > SOCKET_PATH_BYTES_MAX:
        raise ConfigError(
            f"{path}: gateway.socket: {socket} is longer than {SOCKET_PATH_BYTES_MAX} bytes;"
            " set a shorter path"
        )
    return provisioning


def load_market_facts(path: Path) -> MarketFacts:
    """
    Read what a gateway needs from the genesis file.

    Raises:
        ConfigError: names file, key and remedy.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a genesis file ({error}); check market.genesis") from None
    return _validate(MarketFacts, raw, path)


def _validate(model: type[M], raw: Any, path: Path) -> M:
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "file"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise ConfigError(f"{path}: {key}: {_remedy(first['type'], first['msg'])}{more}") from None


def _check_proxies(provisioning: Provisioning, path: Path) -> None:
    kinds = {device.name: device.kind for device in provisioning.devices}
    taken: set[tuple[str, int]] = set()
    for number, proxy in enumerate(provisioning.proxy):
        key = f"{path}: proxy.{number}"
        kind = kinds.get(proxy.device)
        if kind is None:
            known = ", ".join(kinds)
            raise ConfigError(
                f"{key}.device: no device is named {proxy.device!r}; it is one of {known}"
            )
        if kind not in DEVICE_KINDS:
            raise ConfigError(
                f"{key}.device: {proxy.device!r} is of kind {kind}; only a Modbus device's"
                " connection can be shared"
            )
        place = str(proxy.listen), proxy.port
        if place in taken:
            raise ConfigError(f"{key}.port: {proxy.port} has a proxy already; give each its own")
        taken.add(place)


def _remedy(kind: str, message: str) -> str:
    if kind == "missing":
        return "is missing; add it"
    if kind == "extra_forbidden":
        return "is not a key of this section; remove it or correct its spelling"
    return message.removeprefix("Value error, ")


def _resolve(provisioning: Provisioning, folder: Path) -> Provisioning:
    def absolute(section: M, key: str) -> M:
        path = getattr(section, key)
        try:
            return section.model_copy(update={key: (folder / path).resolve()})
        except (ValueError, OSError) as error:
            raise ConfigError(f"{key}: {str(path)[:80]!r} is not a path ({error})") from None

    local = provisioning.local_broker
    if local is not None and local.password_file is not None:
        local = absolute(local, "password_file")
    broker = provisioning.broker
    if broker.ca is not None:
        broker = absolute(broker, "ca")
    light = provisioning.light
    if light.checkpoint is not None:
        light = absolute(light, "checkpoint")
    firmware = provisioning.firmware
    if firmware is not None:
        firmware = absolute(firmware, "root")
    validator = provisioning.validator
    if validator is not None and validator.folder is not None:
        validator = absolute(validator, "folder")
    return provisioning.model_copy(
        update={
            "broker": broker,
            "validator": validator,
            "local_broker": local,
            "light": light,
            "home": absolute(provisioning.home, "data_dir"),
            "market": absolute(provisioning.market, "genesis"),
            "gateway": absolute(provisioning.gateway, "socket"),
            "policy": absolute(provisioning.policy, "file"),
            "firmware": firmware,
        }
    )
