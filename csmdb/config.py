"""
`csmdb.toml` in the folder of a CSM-DB: where its database is, and the HTTP API.

    [storage]
    url = "postgresql://csmdb@db.example/csmdb"   # default: csmdb.sqlite in the folder

    [http]
    port = 8335                                   # without it, no HTTP; 0 takes a free one
    names = ["csmdb.example"]                     # under which a TLS proxy passes calls on

    [privacy]
    limit_classes_w = [11_000, 24_000, 43_000]    # what grants round connections up to; []: exact
    min_homes = 5                                 # in a class, or `csmdb privacy` says what to do

    [firmware]
    port = 8336                                   # without it, no repository is served
    host = "0.0.0.0"                              # it is public; default: this machine only

    [advisories]
    folder = "advisories"                         # of CSAF documents; relative to this file
    refresh_s = 3600                              # how often folder and meters are looked at

    [door]
    host = "0.0.0.0"                              # HTTPS for homes and brokers (csmdb.door)
    port = 8337
    names = ["csmdb.example"]                     # in its certificate
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from csmdb.files import write_private
from csmdb.limit_classes import DEFAULT_CLASSES_W, MIN_HOMES
from csmdb.sqlite import SqliteStorage
from csmdb.storage import Storage
from wire.errors import ConfigError

CONFIG = "csmdb.toml"
DATABASE = "csmdb.sqlite"
SCHEMES = ("postgresql://", "postgres://")


class Section(BaseModel):
    """Base of the sections: a key we do not know is a mistake, not a wish."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class StorageSection(Section):
    """Where the tables are."""

    url: str = ""
    """`postgresql://…`; empty: SQLite, in the folder."""

    @field_validator("url")
    @classmethod
    def _known(cls, url: str) -> str:
        if url and not url.startswith(SCHEMES):
            raise ValueError("expected postgresql://USER@HOST/DATABASE, or nothing for SQLite")
        return url


class HttpSection(Section):
    """
    The operators' API, on the loopback interface only: tokens are not for the open network.

    A proxy with TLS passes calls on.
    """

    port: int | None = Field(default=None, ge=0, le=65_535)
    names: tuple[str, ...] = ()


class PrivacySection(Section):
    """What grants tell of a home's connection (`csmdb.limit_classes`)."""

    limit_classes_w: tuple[int, ...] = DEFAULT_CLASSES_W
    """Connections are rounded up to these [W]; empty: exact."""
    min_homes: int = Field(default=MIN_HOMES, ge=2, le=10_000)
    """A class with fewer homes hides them badly."""

    @field_validator("limit_classes_w")
    @classmethod
    def _rising(cls, classes_w: tuple[int, ...]) -> tuple[int, ...]:
        if any(one < 1 for one in classes_w) or list(classes_w) != sorted(set(classes_w)):
            raise ValueError("expected powers in W, rising, such as [11000, 24000, 43000]")
        return classes_w


class FirmwareSection(Section):
    """The firmware repository, public and read-only."""

    port: int | None = Field(default=None, ge=0, le=65_535)
    host: str = "127.0.0.1"


class AdvisoriesSection(Section):
    """The knowledge base's source."""

    folder: Path | None = None
    """Whoever may write there bans meters; none: what is imported by hand."""
    refresh_s: int = Field(default=3600, ge=1, le=604_800)


class DoorSection(Section):
    """The door for homes without a broker's certificate, and for brokers: open to the network."""

    host: str = "127.0.0.1"
    port: int | None = Field(default=None, ge=0, le=65_535)
    names: tuple[str, ...] = ("127.0.0.1", "localhost")
    """In its certificate: the names and addresses under which it is called."""


class CsmDbConfig(Section):
    """All of the file."""

    storage: StorageSection = StorageSection()
    http: HttpSection = HttpSection()
    privacy: PrivacySection = PrivacySection()
    firmware: FirmwareSection = FirmwareSection()
    advisories: AdvisoriesSection = AdvisoriesSection()
    door: DoorSection = DoorSection()


def load_config(folder: Path) -> CsmDbConfig:
    """
    Read and check the folder's configuration.

    Raises:
        ConfigError: names file, key and what would be right.
    """
    path = folder / CONFIG
    try:
        return CsmDbConfig.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return CsmDbConfig()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{path}: {where}: {first['msg']}") from None


def write_config(folder: Path, storage_url: str) -> None:
    """
    Write the configuration of a new folder, for its owner only: the URL may hold a password.

    Raises:
        ConfigError: not such a URL.
    """
    try:
        StorageSection(url=storage_url)
    except ValidationError as error:
        raise ConfigError(f"--storage: {error.errors()[0]['msg']}") from None
    write_private(folder / CONFIG, f"[storage]\nurl = {json.dumps(storage_url)}\n")


def open_storage(folder: Path) -> Storage:
    """
    The database that a folder's configuration names, at the present schema.

    Raises:
        ConfigError: it cannot be opened.
    """
    url = load_config(folder).storage.url
    if not url:
        database = folder / DATABASE
        if not database.exists():
            write_private(database, "")
        return SqliteStorage(database)
    where = f"{folder / CONFIG}: storage.url"
    try:
        from csmdb.postgres import PostgresStorage  # noqa: PLC0415  (psycopg is an extra)
    except ImportError as error:
        raise ConfigError(f"{where}: {error}; install hearthgrid[postgres]") from None
    return PostgresStorage(url, where)
