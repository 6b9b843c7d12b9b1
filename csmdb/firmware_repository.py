"""
The firmware repository of a CSM-DB: metadata after The Update Framework, kept with python-tuf.

    firmware/metadata/   1.root.json …, N.targets.json, N.snapshot.json, timestamp.json   (public)
    firmware/targets/    <sha256>.<name>, the files                                      (public)
    firmware/keys/       snapshot.key, timestamp.key: on this machine, mode 0600
    firmware/draft.json  what was added and is not published yet

Root keys and the key of the targets are elsewhere: `init` writes them into folders that are meant
for a stick in a drawer, and only what needs them asks for these folders again. So who breaks into
the CSM-DB's machine can hold news back for as long as a timestamp lasts, and can sign no file.

The timestamp lasts a day and is signed anew by the running service: a home that is shown an older
one knows that it is being frozen.

References:
    The Update Framework specification 1.0; ADR 0012.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Signed, Snapshot, TargetFile, Targets
from tuf.api.metadata import Timestamp as Stamp

from runtime.keyfiles import read_secret, write_secret
from wire.errors import ConfigError, MalformedError
from wire.firmware import IMAGE_BYTES_MAX, Target, is_file_name, read_target
from wire.keys import KEY_BYTES

FOLDER = "firmware"
DAYS = {Root.type: 365, Targets.type: 180, Snapshot.type: 7, Stamp.type: 1}
"""How long what a role signs is good."""
ONLINE = (Snapshot.type, Stamp.type)
Role = Literal["root", "targets", "snapshot", "timestamp"]
ROOT_KEYS_MAX = 16

S = TypeVar("S", Root, Targets, Snapshot, Stamp)


@dataclass(frozen=True, slots=True)
class Listed:
    """A file of the repository."""

    name: str
    length: int
    sha256: str
    target: Target
    published: bool


class FirmwareRepository:
    """
    The repository in a CSM-DB's folder.

    Args:
        folder: the CSM-DB's
        now: real time, UTC; dates in the metadata are real whatever the market's clock says
    """

    def __init__(self, folder: Path, now: datetime) -> None:
        self.folder = folder / FOLDER
        self.metadata, self.targets = self.folder / "metadata", self.folder / "targets"
        self._keys = self.folder / "keys"
        self._draft = self.folder / "draft.json"
        self._now = now.replace(microsecond=0)

    # --- what an operator does ------------------------------------------------------------------

    def init(self, drawers: Sequence[Path], keys: int = 3, threshold: int = 2) -> Path:
        """
        Make keys and first metadata.

        Args:
            drawers: folders for the offline keys; the root's are dealt out to them in turn
            keys, threshold: how many root keys there are, and how many must sign

        Returns:
            The root that homes are given, `1.root.json`.

        Raises:
            ConfigError: there is a repository, or the numbers or folders will not do.
        """
        if self.metadata.exists():
            raise ConfigError(f"{self.folder}: there is a firmware repository already")
        if not 1 <= threshold <= keys <= ROOT_KEYS_MAX:
            raise ConfigError(
                f"--threshold: expected 1 to --root-keys, and at most {ROOT_KEYS_MAX} root keys"
            )
        if not drawers:
            raise ConfigError("--keys: name a folder for the offline keys, better one for each")
        for place in (self.metadata, self.targets):
            place.mkdir(parents=True)
        self._keys.mkdir(mode=0o700)
        signers: dict[str, list[CryptoSigner]] = {
            Root.type: [
                _new_key(drawers[number % len(drawers)], f"root-{number + 1}")
                for number in range(keys)
            ],
            Targets.type: [_new_key(drawers[0], Targets.type)],
            **{role: [_new_key(self._keys, role)] for role in ONLINE},
        }
        root = Root(expires=self._end(Root.type), consistent_snapshot=True)
        for role, own in signers.items():
            for signer in own:
                root.add_key(signer.public_key, role)
        root.roles[Root.type].threshold = threshold
        path = self._write(Metadata(root), signers[Root.type])
        self._write(Metadata(Targets(expires=self._end(Targets.type))), signers[Targets.type])
        self._snapshot()
        return path

    def add(self, file: Path, target: Target) -> Listed:
        """
        Take a file into the draft, in the place of one of the same name.

        Raises:
            ConfigError: no file, too long, or a name or metadata that homes would not take.
        """
        self._check_is_there()
        if not is_file_name(file.name):
            raise ConfigError(f"{file.name}: letters, digits, dot, dash and underscore only")
        try:
            read_target(msgspec.to_builtins(target))
            size = file.stat().st_size
            if not 0 < size <= IMAGE_BYTES_MAX:
                raise ConfigError(f"{file}: 1 to {IMAGE_BYTES_MAX} bytes, not {size}")
            entry = TargetFile.from_file(file.name, str(file), ["sha256"])
        except MalformedError as error:
            raise ConfigError(f"{file}: {error}") from None
        except OSError as error:
            raise ConfigError(f"{file}: cannot be read ({error.strerror}); give a file") from None
        entry.unrecognized_fields["custom"] = msgspec.to_builtins(target)
        with self._alone():
            shutil.copyfile(file, self.targets / f"{entry.hashes['sha256']}.{file.name}")
            draft = self._drafted() | {file.name: entry.to_dict()}
            _replace(self._draft, json.dumps(draft, indent=1).encode())
        return _listed(file.name, entry, published=False)

    def publish(self, drawers: Sequence[Path]) -> int:
        """
        Sign what was added, and what was there for another while. Homes see it from now on.

        Returns:
            The version of the targets.

        Raises:
            ConfigError: the targets' key is not there.
        """
        self._check_is_there()
        with self._alone():
            targets = self._newest(Targets)
            for name, entry in self._drafted().items():
                targets.signed.targets[name] = TargetFile.from_dict(entry, name)
            self._sign_targets(targets, drawers)
            self._draft.unlink(missing_ok=True)
            return targets.signed.version

    def rotate(self, role: Role, drawers: Sequence[Path]) -> str:
        """
        Give a role a new key in the place of its oldest, and sign anew what it signs.

        Returns:
            The new key's id.

        Raises:
            ConfigError: too few of the root's keys are there.
        """
        self._check_is_there()
        with self._alone():
            root = self._newest(Root)
            before = self._signers(root.signed, Root.type, drawers)
            gone = root.signed.roles[role].keyids[0]
            online = role in ONLINE
            place = self._keys if online else (drawers[0] if drawers else self._keys)
            signer = _new_key(place, _free_name(place, role))
            root.signed.revoke_key(gone, role)
            root.signed.add_key(signer.public_key, role)
            root.signed.version += 1
            root.signed.expires = self._end(Root.type)
            after = self._signers(root.signed, Root.type, drawers)
            if len(before) < root.signed.roles[Root.type].threshold:
                (place / f"{_name_of(place, signer)}.key").unlink()
                raise ConfigError(
                    f"--keys: {root.signed.roles[Root.type].threshold} of the root's keys are"
                    f" needed, {len(before)} are there; name the folders of more"
                )
            self._write(root, [*before, *(one for one in after if one not in before)])
            if role == Targets.type:
                self._sign_targets(self._newest(Targets), drawers)
            elif online:
                self._snapshot()
            return str(signer.public_key.keyid)

    def listing(self) -> list[Listed]:
        """Files that homes can see, and those that were added since."""
        self._check_is_there()
        drafted = self._drafted()
        rows = [
            _listed(name, entry, published=True)
            for name, entry in sorted(self._newest(Targets).signed.targets.items())
        ]
        return rows + [
            _listed(name, TargetFile.from_dict(entry, name), published=False)
            for name, entry in sorted(drafted.items())
        ]

    # --- what the running service does ----------------------------------------------------------

    def renew(self) -> list[str]:
        """
        Sign timestamp and snapshot anew when half of their time is over; gives the roles.

        Raises:
            ConfigError: no repository, or its keys are gone.
        """
        self._check_is_there()
        with self._alone():
            stamp = self._newest(Stamp)
            if self._is_old(self._newest(Snapshot).signed):
                self._snapshot()
                return [Snapshot.type, Stamp.type]
            if self._is_old(stamp.signed):
                self._stamp(stamp.signed.snapshot_meta.version)
                return [Stamp.type]
        return []

    @property
    def exists(self) -> bool:
        """Was one made?"""
        return self.metadata.exists()

    # --- signing --------------------------------------------------------------------------------

    def _sign_targets(self, targets: Metadata[Targets], drawers: Sequence[Path]) -> None:
        signers = self._signers(self._newest(Root).signed, Targets.type, drawers)
        if not signers:
            raise ConfigError("--keys: the targets' key is in none of these folders")
        targets.signed.version += 1
        targets.signed.expires = self._end(Targets.type)
        self._write(targets, signers)
        self._snapshot()

    def _snapshot(self) -> None:
        """The newest targets under a new snapshot, and that under a new timestamp."""
        snapshot = Snapshot(
            version=self._version(Snapshot.type) + 1,
            expires=self._end(Snapshot.type),
            meta={"targets.json": MetaFile(self._version(Targets.type))},
        )
        root = self._newest(Root).signed
        self._write(Metadata(snapshot), self._signers(root, Snapshot.type, ()))
        self._stamp(snapshot.version)

    def _stamp(self, snapshot_version: int) -> None:
        path = self.metadata / f"{snapshot_version}.snapshot.json"
        meta = MetaFile.from_data(snapshot_version, path.read_bytes(), ["sha256"])
        known = self._newest(Stamp) if self._path(Stamp.type, 0).exists() else None
        version = known.signed.version + 1 if known is not None else 1
        stamp = Metadata(Stamp(version=version, expires=self._end(Stamp.type), snapshot_meta=meta))
        self._write(stamp, self._signers(self._newest(Root).signed, Stamp.type, ()))

    def _signers(self, root: Root, role: str, drawers: Sequence[Path]) -> list[CryptoSigner]:
        """Those keys of a role that are at hand."""
        wanted = set(root.roles[role].keyids)
        found = {
            signer.public_key.keyid: signer
            for place in (self._keys, *drawers)
            for signer in (_signer(path) for path in sorted(place.glob("*.key")))
            if signer.public_key.keyid in wanted
        }
        if not found and role in ONLINE:
            raise ConfigError(
                f"{self._keys}: the {role} key is gone; `csmdb firmware rotate {role}`"
            )
        return list(found.values())

    def _write(self, metadata: Metadata[S], signers: Sequence[CryptoSigner]) -> Path:
        metadata.signatures.clear()
        for signer in signers:
            metadata.sign(signer, append=True)
        path = self._path(metadata.signed.type, metadata.signed.version)
        _replace(path, metadata.to_bytes())
        return path

    def _newest(self, kind: type[S]) -> Metadata[S]:
        path = self._path(kind.type, self._version(kind.type))
        try:
            found: Metadata[S] = Metadata.from_file(str(path))
        except (RepositoryError, OSError) as error:
            raise ConfigError(f"{path}: not metadata ({error}); restore it") from None
        if not isinstance(found.signed, kind):
            raise ConfigError(f"{path}: metadata of another role; restore it")
        return found

    def _version(self, role: str) -> int:
        paths = self.metadata.glob(f"*.{role}.json")
        return max((int(path.name.split(".")[0]) for path in paths), default=0)

    def _path(self, role: str, version: int) -> Path:
        name = f"{role}.json" if role == Stamp.type else f"{version}.{role}.json"
        return self.metadata / name

    def _end(self, role: str) -> datetime:
        return self._now + timedelta(days=DAYS[role])

    def _is_old(self, signed: Signed) -> bool:
        return signed.expires - self._now < timedelta(days=DAYS[signed.type]) / 2

    def _drafted(self) -> dict[str, Any]:
        if not self._draft.exists():
            return {}
        found: dict[str, Any] = json.loads(self._draft.read_text())
        return found

    def _check_is_there(self) -> None:
        if not self.exists:
            raise ConfigError(f"{self.folder}: no repository; make one with `csmdb firmware init`")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One process at a time: the service signs while an operator publishes."""
        descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _new_key(place: Path, name: str) -> CryptoSigner:
    try:
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_secret(place / f"{name}.key", os.urandom(KEY_BYTES))
    except OSError as error:
        raise ConfigError(f"{place / name}.key: cannot be written ({error})") from None
    return _signer(place / f"{name}.key")


def _signer(path: Path) -> CryptoSigner:
    return CryptoSigner(Ed25519PrivateKey.from_private_bytes(read_secret(path)))


def _free_name(place: Path, role: str) -> str:
    numbers = range(1, 10_000)
    return next(name for n in numbers if not (place / f"{(name := f'{role}-{n}')}.key").exists())


def _name_of(place: Path, signer: CryptoSigner) -> str:
    keyid = signer.public_key.keyid
    return next(
        path.stem for path in place.glob("*.key") if _signer(path).public_key.keyid == keyid
    )


def _replace(path: Path, content: bytes) -> None:
    draft = path.with_name(f".{path.name}.new")
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _listed(name: str, entry: TargetFile, *, published: bool) -> Listed:
    return Listed(name, entry.length, entry.hashes["sha256"], read_target(entry.custom), published)
