"""
Who may speak and hear, asked of real brokers: every kind of peer, every kind of topic, both ways.

Everybody subscribes to everything and publishes on everything. What is heard, and by whom, must be
what `wire.topics` says, on the embedded broker and on Mosquitto with its rendered access list.
"""

import asyncio

import pytest
from support.brokers import make_key
from support.patience import PATIENCE_S
from support.tls_site import tls_site

from runtime.lane_tls import service_tls
from wire.topics import CSMDB_REQ, KINDS, Peer, build, may_publish, may_subscribe

SERVICES = {
    make_key("node"): ("validator",),
    make_key("watcher"): ("observer",),
    make_key("desk"): ("aggregator", "dso"),
    make_key("retailer"): ("aggregator",),
    make_key("counter"): ("analytics",),
    make_key("office"): ("csmdb",),
}


class Guest:
    """A connected peer that listens to all it can."""

    def __init__(self, peer, bus):
        self.peer, self.bus = peer, bus
        self.heard = set()

    def listen(self, others):
        async def take(message):
            if message.payload.startswith(b"table "):
                self.heard.add((message.topic, message.payload.decode()))

        for kind in KINDS:
            for leaf in ("+", self.peer.id, *others) if "<id>" in kind else ("",):
                self.bus.subscribe(build("test", kind, leaf), take)


async def guests_of(site, make):
    """One of each kind; on Mosquitto an address has the rules of a home, as it knows no better."""
    csmdb = site.csmdb
    home, other = await site.home("one"), await site.home("two")
    key, grant = await site.grant(home, 1)
    of = {"address"} if make == "embedded" else {"prosumer"}
    own = home.tls.context_for
    found = [
        Guest(Peer(home.ems.id, frozenset({"prosumer"})),
              site.bus(home.ems, home.certificate, own(home.ems.id))),
        Guest(Peer(key.id, frozenset(of)), site.bus(key, grant, own(key.id))),
    ]  # fmt: skip
    if (
        make == "embedded"
    ):  # who has a TLS certificate and shows nothing else; Mosquitto cannot tell
        bus = site.bus(other.ems, None, other.tls.context_for(other.ems.id))
        found.append(Guest(Peer(other.ems.id, frozenset()), bus))
    for service, roles in SERVICES.items():
        tls = service_tls(
            site.ca, site.url, site.folder / service.id, service, "test", csmdb.issuing_key.public,
            csmdb.clock, csmdb.rng,
        )  # fmt: skip
        await tls.ensure(service.id)
        bus = site.bus(
            service, csmdb.repository.certificate_of(service.id), tls.context_for(service.id)
        )
        found.append(Guest(Peer(service.id, frozenset(roles)), bus))
    return found


@pytest.mark.parametrize("make", ["embedded", "mosquitto"])
async def test_what_is_heard_is_what_the_table_says(tmp_path, make):
    """Every peer × topic kind × own or another's leaf × publish or subscribe."""
    async with tls_site(tmp_path, make, SERVICES) as site:
        guests = await guests_of(site, make)
        names = [guest.peer.id for guest in guests]
        for guest in guests:
            guest.listen(names)
            await guest.bus.start()
        for guest in guests:
            await guest.bus.wait_connected(PATIENCE_S)
        expected = {guest.peer.id: set() for guest in guests}
        for guest in guests:
            for kind in (*(one for one in KINDS if one != CSMDB_REQ), CSMDB_REQ):
                leaves = (names[1] if guest.peer.id == names[0] else names[0], guest.peer.id)
                for leaf in leaves if "<id>" in kind else ("",):
                    topic = build("test", kind, leaf)
                    text = f"table {guest.peer.id} {topic}"
                    await guest.bus.publish(topic, text.encode())
                    if not may_publish(guest.peer, topic, "test"):
                        continue
                    for hearer in guests:
                        if may_subscribe(hearer.peer, topic, "test"):
                            expected[hearer.peer.id].add((topic, text))
        async with asyncio.timeout(PATIENCE_S):
            # the last thing everybody says is allowed and comes after all that is not
            while not all(expected[guest.peer.id] <= guest.heard for guest in guests):
                await asyncio.sleep(0.02)
        for guest in guests:
            assert guest.heard == expected[guest.peer.id], sorted(guest.peer.roles)
        assert sum(map(len, expected.values())) > 200
