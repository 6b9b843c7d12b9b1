"""
Traces of words in files: as they are, in the forms that bytes are written in, and under seals.

    found = traces(folder.rglob("*"), ["Musterfrau"])            # {(file name, word), …}
    texts = opened_boxes(path, b"csmdb/req/hg1…", box)           # what was sealed to a key of ours
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import json
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote

from wire.errors import WireError
from wire.keys import BoxKey

MIN_BOX, MAX_BOX = 64, 2_500
"""Lengths of the sealed boxes that are tried [bytes]."""


def forms(word: str) -> set[bytes]:
    """A word as it may stand in a file."""
    raw = word.encode()
    found = {raw, word.encode("utf-16-le"), raw.hex().encode(), raw.hex().upper().encode()}
    found |= {json.dumps(word)[1:-1].encode(), quote(word).encode()}
    for shift in range(3):  # in base64 a word looks different by where it begins
        padded = b"\0" * shift + raw
        for text in (base64.b64encode(padded), base64.urlsafe_b64encode(padded)):
            found.add(text[4 if shift else 0 : len(padded) // 3 * 4])
    return {form for form in found if len(form) >= 6}


def contents(raw: bytes) -> Iterator[bytes]:
    """What a file holds: its bytes, and what is packed in them."""
    yield raw
    for unpack in (gzip.decompress, zlib.decompress):
        with contextlib.suppress(OSError, EOFError, zlib.error):
            yield unpack(raw)
    if zipfile.is_zipfile(io.BytesIO(raw)):
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            yield from (archive.read(name) for name in archive.namelist())
    try:
        with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
            members = [archive.extractfile(one) for one in archive if one.isfile()]
            yield from (member.read() for member in members if member is not None)
    except tarfile.TarError:
        pass


def traces(files: Iterable[Path], words: Iterable[str]) -> set[tuple[str, str]]:
    """(file, word) for each word that a file holds in some form."""
    sought = {word: forms(word) for word in words}
    return {
        (path.name, word)
        for path in files
        if path.is_file()
        for content in contents(path.read_bytes())
        for word, shapes in sought.items()
        if any(shape in content for shape in shapes)
    }


def opened_boxes(path: Path, before: bytes, box: BoxKey) -> list[bytes]:
    """
    What is sealed to a key and stands behind some bytes in a file, deleted rows among them.

    Args:
        before: what stands in front of a box, such as the topic in a broker's row
    """
    raw, found, start = path.read_bytes(), [], 0
    while (at := raw.find(before, start)) >= 0:
        start = at + len(before)
        for length in range(MIN_BOX, MAX_BOX):
            try:
                found.append(box.open(raw[start : start + length]))
                break
            except WireError:
                continue
    return found
