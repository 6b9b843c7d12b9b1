"""
A feeder as a light client sees it: four validators on a hub that answer from one real chain.

    async with feeder() as (follower, servers, clock):
        servers[0].change = lambda question, answer: answer[:-1]  # what a liar makes of it
"""

from __future__ import annotations

import contextlib

from support.chain_builder import START_MS, SUPERVISOR, VALIDATORS, Chain, deposit, key
from support.nodes import Hub, HubBus, MovableClock

from ledger.light_sync import LightFollower
from ledger.prover import answer_anchor, answer_proof
from ledger.statements import sign_message
from wire import topics
from wire.canonical import decode
from wire.keys import to_text

ANN = key("home 0")
ME = key("follower")
ROW = f"account/{ANN.id}"


class Server:
    """One validator as the light client sees it."""

    def __init__(self, hub, who, chain):
        self.key, self.chain = who, chain
        self.bus = HubBus(hub)
        self.change = lambda _question, answer: answer
        self.silent = False
        self.bus.subscribe(topics.build(chain.genesis.market, topics.SYNC_REQ, "+"), self.answer)

    async def answer(self, message):
        question = decode(message.payload)
        if question["to"] != self.key.id or self.silent:
            return
        store, asked = self.chain.store, question["key"]
        if question["kind"] == "proof":
            answer = answer_proof(store, self.chain.ledger, asked)
        else:
            answer = answer_anchor(store, asked)
        said = {"reqId": question["reqId"], "kind": question["kind"],
                "value": to_text(self.change(question, answer))}  # fmt: skip
        topic = topics.build(self.chain.genesis.market, topics.SYNC_RSP, ME.id)
        await self.bus.publish(topic, sign_message(said, self.key, self.chain.chain_id))


def make_chain():
    chain = Chain()
    chain.settle_in(ANN)
    for number in range(3):
        chain.block(START_MS + 100 + number, chain.tx(SUPERVISOR, deposit(ANN, 5)))
    return chain


@contextlib.asynccontextmanager
async def feeder(chain=None):
    hub = Hub()
    chain = chain or make_chain()
    servers = [Server(hub, who, chain) for who in VALIDATORS]
    bus = HubBus(hub)
    clock = MovableClock()
    follower = LightFollower(bus, chain.genesis, clock, ME.id)
    await follower.start()
    for one in (bus, *(server.bus for server in servers)):
        await one.start()
    try:
        yield follower, servers, clock
    finally:
        for one in (bus, *(server.bus for server in servers)):
            await one.stop()
