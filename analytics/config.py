"""
The configuration of `analytics run`: a TOML file, command line options, or both (options win).

    [service]  key, certificate, data_dir          [broker]  host, port, ca, door
    [market]   genesis, currency                   [web]     host, port, password_file, hosts
    [keep]     days

Paths are relative to the file. Everything is checked before anything connects.
"""

from __future__ import annotations

import ipaddress
import tomllib
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wire.certificates import Certificate, parse
from wire.errors import ConfigError, WireError
from wire.keys import SigningKey

Port = Annotated[int, Field(ge=0, le=65_535)]
MIN_PASSWORD = 12


class Section(BaseModel):
    """Base of the sections: a key we do not know is a mistake."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Service(Section):
    """Who we are at the broker, and where the database is."""

    key: Path
    """Key file of the service."""
    certificate: Path
    """Certificate with the role analytics, issued by the CSM-DB."""
    data_dir: Path
    """Holds `analytics.sqlite`."""


class Broker(Section):
    """Where the messages come from."""

    host: str = "127.0.0.1"
    port: Port
    ca: Path | None = None
    """Certificate of the market's TLS authority: the broker is spoken to over TLS."""
    door: str = ""
    """Of the CSM-DB, `https://HOST:PORT`: where our TLS certificate comes from."""


class Market(Section):
    """Which market."""

    genesis: Path
    currency: str = Field(default="¤", min_length=1, max_length=4)
    """Sign shown with amounts."""


class Web(Section):
    """The console."""

    host: str = "127.0.0.1"
    port: Port = 8080
    """0 takes any free port."""
    password_file: Path | None = None
    """Needed when `host` is not the loopback interface; its first line is the password."""
    hosts: tuple[str, ...] = ()
    """Names under which the page may be called, besides the loopback's."""


class Keep(Section):
    """How long the database remembers single events, states and readings."""

    days: int = Field(default=400, ge=2, le=36_500)


class AnalyticsConfig(Section):
    """All sections."""

    service: Service
    broker: Broker
    market: Market
    web: Web = Web()
    keep: Keep = Keep()


def load_config(path: Path | None, options: dict[str, dict[str, Any]]) -> AnalyticsConfig:
    """
    Read the file, if any, and let options override it.

    Raises:
        ConfigError: names file, key and what is wrong.
    """
    content: dict[str, Any] = {}
    folder = Path()
    if path is not None:
        folder = path.parent
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"{path}: {error}") from None
    _resolve(content, folder)
    for section, values in options.items():
        given = {name: value for name, value in values.items() if value is not None}
        if given:
            held = content.setdefault(section, {})
            if not isinstance(held, dict):
                raise ConfigError(f"{path}: {section} is a section")
            held.update(given)
    try:
        return AnalyticsConfig.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        source = path or "options"
        raise ConfigError(f"{source}: {where}: {first['msg']}") from None


def read_certificate(path: Path, key: SigningKey) -> Certificate:
    """
    Our certificate.

    Raises:
        ConfigError: missing, not a certificate, another's, or without the role analytics.
    """
    try:
        certificate = parse(Certificate, path.read_text(encoding="utf-8").strip())
    except (OSError, UnicodeDecodeError, WireError) as error:
        raise ConfigError(f"{path}: not a certificate ({error})") from None
    if certificate.subject != key.id:
        raise ConfigError(f"{path}: certificate of {certificate.subject}, not of {key.id}")
    if "analytics" not in certificate.roles:
        raise ConfigError(f"{path}: needs the role analytics")
    return certificate


def read_password(web: Web) -> str:
    """
    The console's password, empty on the loopback interface without one.

    Raises:
        ConfigError: the page would be open to others, or the password is too short.
    """
    if web.password_file is None:
        if not is_loopback(web.host):
            raise ConfigError(f"web.host {web.host}: others can reach it; give web.password_file")
        return ""
    try:
        password = web.password_file.read_text(encoding="utf-8").partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{web.password_file}: {error}") from None
    if len(password) < MIN_PASSWORD:
        raise ConfigError(f"{web.password_file}: a password has at least {MIN_PASSWORD} letters")
    return password


def is_loopback(host: str) -> bool:
    """True for an address that only this machine can reach."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _resolve(content: dict[str, Any], folder: Path) -> None:
    """Paths in the file are relative to it."""
    for section, names in (
        ("service", ("key", "certificate", "data_dir")),
        ("market", ("genesis",)),
        ("broker", ("ca",)),
        ("web", ("password_file",)),
    ):
        held = content.get(section)
        if isinstance(held, dict):
            for name in names:
                if isinstance(held.get(name), str):
                    held[name] = folder / held[name]
