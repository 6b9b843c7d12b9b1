"""What waited at the broker for the CSM-DB is not in its file any more once it was fetched."""

import asyncio
import base64
import gzip
from pathlib import Path

from support.brokers import Authority, running_broker
from support.enrolment import AskingHome
from support.patience import PATIENCE_S
from support.traces import opened_boxes, traces

from csmdb.privacy import erase
from csmdb.service import CsmDbService
from csmdb.setup import create
from runtime.clock import SystemClock
from runtime.csmdb_client import CsmDbClient
from runtime.rng import SystemRng
from wire import topics
from wire.enrolment import ENROLL

SERIAL = "PLATE-4711-UNMISTAKABLE"


async def test_an_enrolment_that_waited_sealed_cannot_be_opened_after_an_erasure(tmp_path: Path):
    """It holds the meter's plate, and the CSM-DB's own key would open it."""
    csmdb = create(tmp_path / "csmdb", "test")
    authority = Authority("test", csmdb.issuing_key)
    home, file = AskingHome("home-1"), tmp_path / "broker.sqlite"
    topic = topics.build("test", topics.CSMDB_REQ, home.ems.id).encode()

    def waiting():
        logs = [log for log in (file, file.with_name(file.name + "-wal")) if log.exists()]
        texts = [text for log in logs for text in opened_boxes(log, topic, csmdb.box)]
        return [text for text in texts if SERIAL.encode() in text]

    async def at_the_broker(port):
        bus = authority.bus(port, csmdb.issuing_key, credential=csmdb.certificate)
        CsmDbService.on(csmdb, bus).start()
        await bus.start()
        await bus.wait_connected(PATIENCE_S)
        return bus

    async with running_broker(authority, file) as broker:
        await (await at_the_broker(broker.port)).stop()  # its subscription stays
        lane = authority.bus(broker.port, home.ems)
        line = CsmDbClient(
            lane, home.ems, home.box, "test", csmdb.issuing_key.public, csmdb.box.public,
            SystemClock(), SystemRng(),
        )  # fmt: skip
        await lane.start()
        await lane.wait_connected(PATIENCE_S)
        code = csmdb.add_claim(["prosumer"], 10_000, 6_000, "feeder-1")
        asked = asyncio.create_task(
            line.ask(ENROLL, home.enrolment(code, serial=SERIAL), PATIENCE_S)
        )
        async with asyncio.timeout(PATIENCE_S):
            while not waiting():
                await asyncio.sleep(0.05)
        service = await at_the_broker(broker.port)
        await asked
        erase(csmdb, home.ems.id)
        await service.stop()
        await lane.stop()
    assert waiting() == []
    csmdb.close()


def test_the_search_finds_what_is_there(tmp_path):
    """Tests that find nothing would be worth nothing otherwise."""
    word = "Adelgunde Wünderlich"
    raw = word.encode()
    shapes = [raw, raw.hex().encode(), gzip.compress(b"x" + raw), word.encode("utf-16-le")]
    shapes += [base64.b64encode(b"x" * n + raw + b"y" * 5) for n in range(4)]
    for number, shape in enumerate(shapes):
        (tmp_path / str(number)).write_bytes(b"--" * 2 + shape + b"--" if number != 2 else shape)
    assert {file for file, _ in traces(tmp_path.iterdir(), [word])} == set(
        map(str, range(len(shapes)))
    )
    assert traces(tmp_path.iterdir(), ["somebody else"]) == set()
