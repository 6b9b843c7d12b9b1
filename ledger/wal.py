"""
The write-ahead log of votes: what a validator said must outlive its crash.

    entry = length (u32, big endian) | CRC-32 of the payload (u32) | payload

Appending is buffered; `sync` writes and fdatasyncs everything appended since the last one, so the
votes of one turn of the event loop share one disk flush. On opening, the log is read up to the
first entry that is cut short or fails its checksum, and truncated there: such an entry was never
fdatasynced, so what it says was never published.

The checksum is zlib's CRC-32 (ISO 3309) rather than CRC-32C: it guards against torn writes equally
well, and is in the standard library.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

MAX_ENTRY_BYTES = 4 * 1024 * 1024
_HEAD = struct.Struct(">II")


class WriteAheadLog:
    """An append-only file of checksummed entries."""

    def __init__(self, path: Path) -> None:
        """Open or create the log at `path`, cutting off a bad tail."""
        self._path = path
        is_new = not path.exists()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._buffer: list[bytes] = []
        data = path.read_bytes()
        self._size = _good_size(data)
        self.truncated_bytes = len(data) - self._size
        """What was cut off on opening."""
        if self.truncated_bytes:
            os.ftruncate(self._file, self._size)
            os.fsync(self._file)
        if is_new:
            _sync_folder(path.parent)

    @property
    def size_bytes(self) -> int:
        """Size on disk, without what is not yet synced."""
        return self._size

    def entries(self) -> list[bytes]:
        """All payloads on disk, oldest first."""
        return [payload for payload, _ in read_entries(self._path.read_bytes())]

    def append(self, payload: bytes) -> None:
        """Add an entry; it is durable after the next `sync`."""
        assert 0 < len(payload) <= MAX_ENTRY_BYTES
        self._buffer.append(frame(payload))

    def sync(self) -> None:
        """
        Write what was appended and wait until the disk has it.

        Raises:
            OSError: the disk refused; nothing appended since the last sync may be published.
        """
        if not self._buffer:
            return
        data = b"".join(self._buffer)
        _write_all(self._file, data)
        os.fdatasync(self._file)
        self._size += len(data)
        self._buffer.clear()

    def rewrite(self, payloads: Iterable[bytes]) -> None:
        """Replace the log by these entries in one step; what was appended and not synced goes."""
        temporary = self._path.with_suffix(".new")
        data = b"".join(frame(payload) for payload in payloads)
        file = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        _write_all(file, data)
        os.fsync(file)
        temporary.replace(self._path)
        _sync_folder(self._path.parent)
        os.close(self._file)
        self._file = file
        self._size = len(data)
        self._buffer.clear()

    def close(self) -> None:
        """Sync and release the file."""
        self.sync()
        os.close(self._file)


def frame(payload: bytes) -> bytes:
    """One entry as it stands in the file."""
    return _HEAD.pack(len(payload), zlib.crc32(payload)) + payload


def read_entries(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Each good payload of a log's bytes and where it ends, up to the first bad one."""
    start = 0
    while start + _HEAD.size <= len(data):
        length, checksum = _HEAD.unpack_from(data, start)
        end = start + _HEAD.size + length
        payload = data[start + _HEAD.size : end]
        # A length of zero is what a file grown by a crash, but never written, is full of.
        if not 0 < length <= MAX_ENTRY_BYTES or end > len(data) or zlib.crc32(payload) != checksum:
            return
        yield payload, end
        start = end


def _good_size(data: bytes) -> int:
    size = 0
    for _, size in read_entries(data):  # noqa: B007
        pass
    return size


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _sync_folder(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
