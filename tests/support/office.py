"""A CSM-DB one can ask without a broker: requests go to its service, answers come back at once."""

from __future__ import annotations

from typing import Any

from support.enrolment import AskingHome

from csmdb.service import CsmDbService
from csmdb.setup import CsmDb
from runtime.csmdb_client import CsmDbClient
from runtime.ports import Message
from runtime.rng import SystemRng
from wire import topics
from wire.enrolment import ENROLL
from wire.keys import BoxKey, SigningKey


class NoBus:
    """What a service needs of a bus that nobody is on."""

    def subscribe(self, topic_filter: str, handler: Any) -> None:
        """Nothing comes."""


class Office:
    """The service of a CSM-DB, and lines to it."""

    def __init__(self, csmdb: CsmDb) -> None:
        self.csmdb = csmdb
        self.service = CsmDbService.on(csmdb, NoBus(), burst=1_000)  # type: ignore[arg-type]

    def line(self, key: SigningKey, box: BoxKey) -> CsmDbClient:
        csmdb = self.csmdb
        return CsmDbClient(
            _Line(self.service, key.id), key, box, csmdb.market, csmdb.issuing_key.public,
            csmdb.box.public, csmdb.clock, SystemRng(),
        )  # fmt: skip

    async def enrolled(self, name: str, **claim: Any) -> tuple[AskingHome, CsmDbClient]:
        home = AskingHome(name)
        code = self.csmdb.add_claim(["prosumer"], 10_000, 6_000, "feeder-1", **claim)
        client = self.line(home.ems, home.box)
        await client.ask(ENROLL, home.enrolment(code))
        return home, client


class _Line:
    def __init__(self, service: CsmDbService, asker: str) -> None:
        self._service, self._asker = service, asker
        self._handler: Any = None

    def subscribe(self, topic_filter: str, handler: Any) -> None:
        self._handler = handler

    async def publish(self, topic: str, payload: bytes) -> None:
        answer = self._service.answer(self._asker, payload)
        if answer is not None:
            kind = topics.build(self._service.csmdb.market, topics.CSMDB_RSP, self._asker)
            await self._handler(Message(kind, answer, False))
