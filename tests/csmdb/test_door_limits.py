"""The CSM-DB's door against strangers: who asks there has proved nothing yet."""

import asyncio
import http.client
import secrets
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest
from support.enrolment import AskingHome
from support.office import NoBus
from support.patience import PATIENCE_S

from csmdb.door import build_door
from csmdb.service import BURST, CsmDbService
from csmdb.setup import create
from runtime.http import listen, serving
from wire.enrolment import ENROLL, RENEW, make_request, read_answer
from wire.envelope import new_req_id

STRANGER, ELSEWHERE = "127.0.0.2", "127.0.0.3"


@pytest.fixture
def csmdb(tmp_path):
    with create(tmp_path / "csmdb", "test") as made:
        yield made


@asynccontextmanager
async def door(service, burst=1_000):
    """The door on a socket; a function that sends requests to it from a network address."""
    app = build_door(service, burst=burst)
    url = service.csmdb.folder / "door.url"
    async with serving(app, listen("127.0.0.1", 0, "door"), url) as address:

        def send(asks, source=STRANGER):
            found = []
            for method, path, body in asks:
                line = http.client.HTTPConnection(
                    urlsplit(address).netloc, timeout=PATIENCE_S, source_address=(source, 0)
                )
                line.request(method, path, body)
                answer = line.getresponse()
                found.append((answer.status, answer.read()))
                line.close()
            return found

        async def sent(asks, **of):
            return await asyncio.to_thread(send, asks, **of)

        yield sent


def asked(csmdb, home, operation, parameters):
    return make_request(
        home.ems, csmdb.market, csmdb.box.public, operation, parameters,
        new_req_id(csmdb.clock.wall_ms(), secrets.token_bytes(10)), csmdb.clock.wall_ms(),
    )  # fmt: skip


async def test_rubbish_in_a_homes_name_uses_up_none_of_the_homes_allowance(csmdb):
    """A stranger at the door floods under a home's identity; the home is answered all the same."""
    home, service = AskingHome("one"), CsmDbService.on(csmdb, NoBus())
    code = csmdb.add_claim(["prosumer"], 10_000, 6_000, "feeder-1")
    service.answer(home.ems.id, asked(csmdb, home, ENROLL, home.enrolment(code)))
    path = f"/requests/{home.ems.id}"

    def is_answer(sealed):
        public = csmdb.issuing_key.public
        return "certificate" in read_answer(sealed, home.box, csmdb.market, public).parameters

    async with door(service) as sent:
        flood = await sent([("POST", path, b"rubbish")] * 2 * BURST)
        assert {status for status, _ in flood} == {204}
        assert is_answer(service.answer(home.ems.id, asked(csmdb, home, RENEW, {})))
        own = [("POST", path, asked(csmdb, home, RENEW, {}))]
        assert is_answer((await sent(own, source=ELSEWHERE))[0][1])


async def test_one_network_address_asks_so_often_whatever_name_it_gives(csmdb):
    asks = [("POST", f"/requests/{AskingHome(str(one)).ems.id}", b"x") for one in range(25)]
    async with door(CsmDbService.on(csmdb, NoBus()), burst=5) as sent:
        codes = [status for status, _ in await sent(asks)]
        assert codes[:5] == [204] * 5
        assert 429 in codes
        assert (await sent(asks[:1], source=ELSEWHERE))[0][0] == 204


async def test_what_is_no_request_is_refused_and_no_file_of_the_folder_is_served(csmdb):
    """Bodies are bounded while they come, and names are identities."""
    asks = {
        ("POST", "/requests/nobody", b"x"): 400,
        ("POST", "/requests/" + AskingHome("one").ems.id, b"x" * 70_000): 413,
        ("GET", "/issuing.key", b""): 404,
        ("GET", "/requests/..%2fissuing.key", b""): 404,
        ("GET", "/facts/../issuing.key", b""): 404,
        ("POST", "/facts", b"{}"): 405,
    }
    async with door(CsmDbService.on(csmdb, NoBus())) as sent:
        assert [status for status, _ in await sent(asks)] == list(asks.values())
