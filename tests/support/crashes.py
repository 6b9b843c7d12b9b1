"""
Power cuts for tests: `import support.crashes`.

    for cut in power_cuts(work): …      # runs `work` with a cut before each write and each commit

A `FragileStore` is a real SQLite file that dies at a chosen moment; what was committed before is on
disk and is all that the next start finds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.store import SqliteStore


class PowerCut(BaseException):
    """The lights are out: nothing after this runs."""


class FragileStore:
    """
    The Store port on a SQLite file, with a power cut.

    Args:
        path: the file
        lives: how many moments (a write inside a transaction, the moment after a commit) it lasts
    """

    def __init__(self, path: Path, lives: int = 10**9) -> None:
        self._store = SqliteStore(path, synchronous="NORMAL")
        self._lives = lives
        self.dead = False

    def _moment(self) -> None:
        if self.dead or self._lives == 0:
            self.dead = True
            raise PowerCut
        self._lives -= 1

    @contextmanager
    def atomic(self) -> Iterator[None]:
        with self._store.atomic():
            self._moment()
            yield
        self._moment()

    def get(self, key: str) -> bytes | None:
        return self._store.get(key)

    def put(self, key: str, value: bytes) -> None:
        self._moment()
        self._store.put(key, value)

    def delete(self, key: str) -> None:
        self._moment()
        self._store.delete(key)

    def scan(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        return self._store.scan(prefix)

    def close(self) -> None:
        self._store.close()
