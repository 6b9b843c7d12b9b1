"""
The child that asks a firmware repository: python-tuf's client, and names for what it refuses.

    python -m hem.firmware_worker < question (JSON) > answer (JSON)

The order of checks is the framework's own client workflow (root, timestamp, snapshot, targets,
file); `hem.firmware_client` says who asks. Nothing is imported here that a home needs otherwise.

References:
    The Update Framework specification 1.0, sections 5.3 to 5.7.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
from tuf.api import exceptions
from tuf.api.metadata import Metadata, Targets
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig
from tuf.ngclient.urllib3_fetcher import Urllib3Fetcher

from hem.firmware_client import IMAGES, METADATA, Answer, File, Question
from wire.errors import Refusal
from wire.firmware import IMAGE_BYTES_MAX, is_file_name

SOCKET_TIMEOUT_S = 20
CHUNK_BYTES = 65_536
_PREFIXED = re.compile(r"\d+\.((?:snapshot|targets)\.json)")
_HASHED = re.compile(r"[0-9a-f]{64}\.(.+)")


class Inbox(FetcherInterface):
    """Files that somebody handed over, in the place of a server."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.rsplit("/", 1)[-1]
        for pattern in (_PREFIXED, _HASHED):
            found = pattern.fullmatch(name)
            name = found[1] if found else name
        if not is_file_name(name) or not (self._folder / name).is_file():
            raise exceptions.DownloadHTTPError(f"{name} was not handed over", 404)
        return _chunks(self._folder / name)


class Noted(FetcherInterface):
    """Passes on, and remembers what was asked for last: errors do not say."""

    def __init__(self, inner: FetcherInterface) -> None:
        self._inner = inner
        self.last = ""

    def _fetch(self, url: str) -> Iterator[bytes]:
        self.last = url
        return self._inner.fetch(url)

    @property
    def role(self) -> str:
        """root, timestamp, snapshot, targets, or empty for a file."""
        head, _, name = self.last.rpartition("/")
        found = re.fullmatch(r"(?:\d+\.)?(root|timestamp|snapshot|targets)\.json", name)
        return found[1] if found and head.endswith("/metadata") else ""


def consult(question: Question) -> Answer:
    """Ask; every failure is a part of the answer."""
    inbox = "file:///inbox"
    url = (question.url or inbox).rstrip("/")
    inner = Inbox(Path(question.inbox)) if not question.url else Urllib3Fetcher(SOCKET_TIMEOUT_S)
    fetcher = Noted(inner)
    try:
        return Answer(files=_consult(question, url, fetcher))
    except exceptions.DownloadLengthMismatchError as error:
        return _refused(Refusal.ENDLESS, error)
    except exceptions.DownloadError as error:
        return Answer(away=True, detail=_text(error))
    except exceptions.RepositoryError as error:
        return _refused(_name(error, fetcher.role), error)
    except OSError as error:
        return Answer(away=True, detail=_text(error))


def _consult(question: Question, url: str, fetcher: FetcherInterface) -> list[File]:
    state = Path(question.state)
    metadata, images = state / METADATA, state / IMAGES
    for folder in (metadata, images):
        folder.mkdir(parents=True, exist_ok=True)
    updater = Updater(
        str(metadata),
        f"{url}/metadata/",
        str(images),
        f"{url}/targets/",
        fetcher,
        UpdaterConfig(max_delegations=0),
        bootstrap=Path(question.root).read_bytes(),
    )
    updater.refresh()
    # just verified and written; the client itself does not list what there is
    targets = Metadata[Targets].from_file(str(metadata / "targets.json")).signed.targets
    files = [
        File(
            name=name, length=one.length, sha256=one.hashes.get("sha256", ""), custom=one.custom
        )
        for name, one in sorted(targets.items())
    ]  # fmt: skip
    if question.wanted:
        _fetch(updater, question.wanted)
    return files


def _fetch(updater: Updater, name: str) -> None:
    info = updater.get_targetinfo(name) if is_file_name(name) else None
    if info is None:
        return  # whoever asked sees that the list lacks it
    if info.length > IMAGE_BYTES_MAX:
        raise exceptions.DownloadLengthMismatchError(f"{info.length} bytes are promised")
    if updater.find_cached_target(info) is None:
        updater.download_target(info)


def _name(error: exceptions.RepositoryError, role: str) -> Refusal:
    """The name of what python-tuf refused."""
    match error:
        case exceptions.UnsignedMetadataError():
            return Refusal.TOO_FEW_SIGNATURES
        case exceptions.ExpiredMetadataError():
            frozen = str(error).startswith("timestamp")
            return Refusal.FROZEN if frozen else Refusal.METADATA_EXPIRED
        case exceptions.BadVersionNumberError():
            # a snapshot that is not the one of the timestamp, or targets that are not its own
            mixed = role == "targets" or str(error).startswith("Expected snapshot version")
            return Refusal.MIXED_METADATA if mixed else Refusal.ROLLED_BACK
        case exceptions.LengthOrHashMismatchError():
            return Refusal.MIXED_METADATA if role else Refusal.WRONG_DIGEST
    return Refusal.MALFORMED


def _refused(refusal: Refusal, error: Exception) -> Answer:
    return Answer(refusal=refusal, detail=_text(error))


def _text(error: Exception) -> str:
    cause = f" ({error.__cause__})" if error.__cause__ is not None else ""
    return f"{error}{cause}"[:300]


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def main() -> None:
    """One question, one answer."""
    question = msgspec.json.decode(sys.stdin.buffer.read(), type=Question)
    sys.stdout.buffer.write(msgspec.json.encode(consult(question)))


if __name__ == "__main__":
    main()
