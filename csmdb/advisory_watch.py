"""
The periodic look: new documents in the folder, then every meter.

A file is read when it is new or has changed; one that is refused is told once. The look goes on
whatever is in the folder, and when the folder is away.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from csmdb.advisories import NOBODY, Review, import_document, read_file, review_all
from csmdb.config import load_config
from csmdb.setup import CsmDb
from csmdb.storage import StorageDownError
from runtime.metrics import count_refusal
from wire.errors import ConfigError, WireError

COMPONENT = "csmdb"

log = structlog.get_logger(component=COMPONENT)


@dataclass(slots=True)
class AdvisoryWatch:
    """
    Keeps the knowledge base as new as its folder.

    Args:
        folder: of CSAF documents, or None
        refresh_s: real seconds between two looks
    """

    csmdb: CsmDb
    folder: Path | None
    refresh_s: float
    _seen: dict[Path, tuple[int, int]] = field(default_factory=dict)
    """Time of change and size of the files that were read."""

    @classmethod
    def of(cls, csmdb: CsmDb) -> AdvisoryWatch:
        """As the CSM-DB's folder is configured."""
        config = load_config(csmdb.folder).advisories
        folder = csmdb.folder / config.folder if config.folder is not None else None
        return cls(csmdb, folder, config.refresh_s)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Looks now and every `refresh_s` while the block runs."""
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                self.look()
            except StorageDownError as error:
                log.warning("advisories not looked at", reason=str(error))
            except Exception:
                log.exception("advisories not looked at")
            await asyncio.sleep(self.refresh_s)

    def look(self) -> list[Review]:
        """Read what is new in the folder, then look at every meter."""
        for file in self._changed():
            self._read(file)
        found = review_all(self.csmdb)
        for one in found:
            if one.changed:
                what = "banned by an advisory" if one.banned else "no advisory names it any longer"
                log.warning(what, participant=one.participant)
        return found

    def _changed(self) -> list[Path]:
        if self.folder is None:
            return []
        found = []
        for file in sorted(self.folder.glob("*.json")):
            with contextlib.suppress(FileNotFoundError):
                facts = file.stat()
                mark = facts.st_mtime_ns, facts.st_size
                if self._seen.get(file) != mark:
                    self._seen[file] = mark
                    found.append(file)
        return found

    def _read(self, file: Path) -> None:
        try:
            done = import_document(self.csmdb, read_file(file), NOBODY)
        except (WireError, ConfigError) as error:
            if isinstance(error, WireError):
                count_refusal(COMPONENT, error.refusal)
            log.warning("advisory refused", file=file.name, reason=str(error)[:300])
            return
        except BaseException:
            self._seen.pop(file, None)  # it is read again
            raise
        if done.outcome != "known":
            log.info("advisory imported", advisory=done.advisory, revision=done.revision)
