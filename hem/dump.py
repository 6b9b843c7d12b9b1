"""
`hem dump`: what somebody who helps needs to see, and nothing that is secret or names the home.

The bundle is a tar.gz of texts: the provisioning file, the policy, what is on disk by kind, status,
the last decisions and settlements, versions. Every text passes through a `Veil`, which

- takes out what is known to be secret, wherever it stands: key files, claim code, password, tokens;
- takes out what looks like a key or a signature (base64url or hex of 32 bytes and more);
- gives each identity and address a pseudonym that is the same throughout a bundle and says nothing
  outside of it.

Before the bundle is written it is searched for the secrets once more.
"""

from __future__ import annotations

import base64
import io
import json
import os
import platform
import re
import shutil
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hem.config import Provisioning
from hem.files import open_new
from runtime.store import SqliteStore
from wire.errors import ConfigError, MalformedError
from wire.keys import from_text
from wire.slots import SlotGrid

REDACTED = "<redacted>"
SECRET_BYTES_MIN = 4
"""Shorter texts are no secrets worth the name, and would be found everywhere."""
LATEST = 200
IDENTITY = re.compile(r"hg1[a-z2-7]{32}")
KEYLIKE = re.compile(r"(?<![A-Za-z0-9_-])[A-Za-z0-9_-]{43,}(?![A-Za-z0-9_-])|[0-9a-fA-F]{64,}")
NAMED_SECRET = re.compile(
    r"""(?im)^(\s*["']?(?:claim_?code|password|token|secret)["']?\s*=\s*).*$"""
)
PACKAGES = ("hearthgrid", "paho-mqtt", "pymodbus", "pysunspec2", "apscheduler", "pydantic")


class Veil:
    """
    Hides what must not leave the home.

    Args:
        secrets: texts to take out wherever they stand
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        known = {secret for secret in secrets if len(secret) >= SECRET_BYTES_MIN}
        self._secrets = sorted(known, key=len, reverse=True)
        self._names: dict[str, str] = {}

    def over(self, text: str) -> str:
        """The text without secrets, with pseudonyms for identities."""
        for secret in self._secrets:
            text = text.replace(secret, REDACTED)
        text = NAMED_SECRET.sub(rf'\1"{REDACTED}"', text)
        text = IDENTITY.sub(lambda found: self._pseudonym(found.group()), text)
        return KEYLIKE.sub(REDACTED, text)

    def seen_in(self, text: str) -> bool:
        """A secret or an identity is still there."""
        return any(secret in text for secret in self._secrets) or bool(IDENTITY.search(text))

    def _pseudonym(self, identity: str) -> str:
        return self._names.setdefault(identity, f"id-{len(self._names) + 1}")


def write_dump(
    provisioning: Path, config: Provisioning, grid: SlotGrid, now_ms: int, target: Path
) -> list[str]:
    """
    Write a support bundle.

    Returns:
        Names of the texts in it.

    Raises:
        ConfigError: the target is there already, or cannot be written.
    """
    veil = Veil(secrets_of(config))
    texts = {
        name: veil.over(text) for name, text in _texts(provisioning, config, grid, now_ms).items()
    }
    leaking = [name for name, text in texts.items() if veil.seen_in(text)]
    assert not leaking, f"secrets in {leaking}"
    descriptor = open_new(target)
    try:
        _write(descriptor, texts)
    except OSError as error:
        target.unlink(missing_ok=True)  # half a bundle helps nobody
        raise ConfigError(f"{target}: cannot be written ({error.strerror}); make room") from None
    return list(texts)


def _write(descriptor: int, texts: dict[str, str]) -> None:
    with os.fdopen(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, text in texts.items():
            raw = text.encode()
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(raw), 0o600
            archive.addfile(entry, io.BytesIO(raw))


def secrets_of(config: Provisioning) -> set[str]:
    """Every secret of a home, in every form in which it could stand in a text."""
    found = {config.home.claim_code}
    files = [*config.home.data_dir.glob("keys/*.key"), *config.home.data_dir.glob("gateway/*.key")]
    local = config.local_broker
    if local is not None and local.password_file is not None:
        files.append(local.password_file)
    for path in files:
        try:
            found |= _forms(path.read_text(encoding="utf-8").strip())
        except (OSError, UnicodeDecodeError):
            continue  # a file that we cannot read cannot get into the bundle either
    return {secret for secret in found if len(secret) >= SECRET_BYTES_MIN}


def _forms(secret: str) -> set[str]:
    """A secret, and where it is a seed its hex and its other base64."""
    try:
        raw = from_text(secret)
    except MalformedError:
        return {secret}
    if not raw:
        return {secret}
    return {secret, raw.hex(), raw.hex().upper(), base64.b64encode(raw).decode()}


# --- What is in it -------------------------------------------------------------------------------


def _texts(provisioning: Path, config: Provisioning, grid: SlotGrid, now_ms: int) -> dict[str, str]:
    folder = config.home.data_dir
    parts: dict[str, Callable[[], Any]] = {
        "provisioning.toml": lambda: provisioning.read_text(encoding="utf-8"),
        "policy.toml": lambda: _policy(config.policy.file),
        "versions.json": _versions,
        "files.json": lambda: _files(folder),
        "rows.json": lambda: _rows(folder),
        "status.json": lambda: _status(folder, grid, now_ms),
        "decisions.json": lambda: _decisions(folder, grid),
        "settlements.json": lambda: _settlements(folder),
    }
    return {name: _text(make) for name, make in parts.items()}


def _text(make: Callable[[], Any]) -> str:
    """A part of the bundle; what cannot be read says why, and stops nothing."""
    try:
        made = make()
    except Exception as error:  # whatever is broken: that is why there is a bundle
        made = {"error": f"{type(error).__name__}: {error}"}
    return made if isinstance(made, str) else json.dumps(made, indent=1) + "\n"


def _policy(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else "# none: the defaults hold\n"


def _versions() -> dict[str, str]:
    found = {"python": sys.version, "system": platform.platform(), "machine": platform.machine()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _files(folder: Path) -> dict[str, Any]:
    rows = [
        {
            "file": path.relative_to(folder).as_posix(),
            "bytes": path.stat().st_size,
            "mode": oct(path.stat().st_mode & 0o777),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    usage = shutil.disk_usage(folder)
    return {"files": rows, "diskFreeBytes": usage.free, "diskBytes": usage.total}


def _rows(folder: Path) -> dict[str, dict[str, int]]:
    """How many rows of each kind the databases hold, and how many bytes."""
    found = {}
    for name in ("ems.sqlite", "outbox.sqlite"):
        if (folder / name).exists():
            store = SqliteStore(folder / name)
            counts = Counter(key.partition("/")[0] for key, _ in store.scan(""))
            store.close()
            found[name] = dict(sorted(counts.items()))
    return found


def _status(folder: Path, grid: SlotGrid, now_ms: int) -> dict[str, Any]:
    from hem.summary import status_of  # noqa: PLC0415  (a broken wallet must not stop the rest)

    return status_of(folder, grid, now_ms)


def _decisions(folder: Path, grid: SlotGrid) -> list[dict[str, Any]]:
    from hem.summary import decisions_of  # noqa: PLC0415

    return decisions_of(folder, "", grid)


def _settlements(folder: Path) -> list[dict[str, Any]]:
    from hem.summary import settlements_of  # noqa: PLC0415

    return settlements_of(folder)[-LATEST:]
