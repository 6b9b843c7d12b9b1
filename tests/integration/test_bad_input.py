"""Bad bids over a real broker: refused by name, counted, visible; the auction clears without."""

import asyncio
from pathlib import Path

from support.brokers import Authority, make_key, running_broker
from support.feeders import Actor, RunningLedger, running_ledger
from support.patience import PATIENCE_S

from runtime.metrics import refusals
from wire import topics
from wire.canonical import encode
from wire.keys import SigningKey
from wire.tmi import bid_offer
from wire.transactions import make_transaction

SLOT_S = 4


def transaction(actor: Actor, chain: RunningLedger, **changes: object) -> bytes:
    """A bid of `actor`, with something changed."""
    now_ms = chain.authority.clock.now_ms()
    slot = chain.genesis.grid.slot_at(now_ms)
    facts = {
        "key": actor.key,
        "nonce": actor.nonce,
        "expires_slot": slot + 8,
        "operations": [bid_offer("buy", slot + 3, 100, 200_000)],
        **changes,
    }
    made = make_transaction(
        facts["key"], chain.genesis.chain_id, facts["nonce"], facts["expires_slot"],
        facts["operations"], "0190f3c2-0000-7000-8000-000000000000", now_ms,
    )  # fmt: skip
    return made.raw


def counted(reason: str) -> int:
    return refusals("mempool").get(reason, 0)


async def refused(actor: Actor, chain: RunningLedger, raw: bytes, reason: str) -> None:
    """Publish `raw` on the actor's own topic; every validator must refuse it by `reason`."""
    before = counted(reason)
    await actor.bus.publish(topics.build("test", topics.TX, actor.key.id), raw)
    async with asyncio.timeout(PATIENCE_S):
        while counted(reason) < before + len(chain.tasks):
            await asyncio.sleep(0.01)


async def test_bad_bids_are_refused_by_name_and_the_auction_clears_without_them(
    tmp_path: Path,
) -> None:
    authority = Authority()
    async with (
        running_broker(authority) as broker,
        running_ledger(
            authority, broker.port, tmp_path, slot_length_s=SLOT_S, gate_lead_s=1
        ) as chain,
    ):
        seen: list[dict] = []
        alice = await chain.home("alice", grid_slots=SLOT_S)
        bob = await chain.home("bob", grid_slots=SLOT_S)
        desk = await chain.supervisor()

        async def watch(_height: int, event: dict) -> None:
            seen.append(event)

        desk.client.on_local_event(watch)
        await desk.client.start()
        slot = chain.genesis.grid.slot_at(authority.clock.now_ms())
        for home in (alice, bob):
            event = await desk.submit(
                {"op": "add-financial-balance", "address": home.key.id, "amountUc": 10_000_000},
                *(
                    {"op": "add-energy-asset", "address": home.key.id, "kind": kind,
                     "energyWh": 5_000, "startSlot": slot, "endSlot": slot + 500}
                    for kind in ("production", "consumption")
                ),
            )  # fmt: skip
            assert set(event["codes"]) == {"OK"}

        good = transaction(alice, chain)
        unsigned = good.replace(good[good.index(b',"signature"') : -1], b"")
        await refused(alice, chain, unsigned, "UNSIGNED")
        forged = transaction(alice, chain, key=SigningKey(bytes(31) + b"\7"))
        forged = forged.replace(SigningKey(bytes(31) + b"\7").id.encode(), alice.key.id.encode())
        await refused(alice, chain, forged, "BAD_SIGNATURE")
        await refused(alice, chain, b'{"bid": 1e3}', "MALFORMED")
        await refused(alice, chain, b"[" * 2000, "MALFORMED")
        await refused(alice, chain, encode({"x": "y" * 70_000}), "OVERSIZED")
        await refused(alice, chain, transaction(alice, chain, expires_slot=1), "EXPIRED")
        stranger = transaction(alice, chain, key=make_key("nobody"), nonce=0)
        await refused(alice, chain, stranger, "UNKNOWN_SENDER")
        one = bid_offer("buy", chain.genesis.grid.slot_at(authority.clock.now_ms()) + 3, 1, 1)
        first = transaction(alice, chain, operations=[one])
        await alice.bus.publish(topics.build("test", topics.TX, alice.key.id), first)
        alice.nonce += 1
        async with asyncio.timeout(PATIENCE_S):
            while (await alice.client.query("account", alice.key.id))["nonce"] < alice.nonce:
                await asyncio.sleep(0.02)
        await refused(alice, chain, first, "REPLAYED")

        slot = chain.genesis.grid.slot_at(authority.clock.now_ms()) + 3
        sold = await alice.submit(bid_offer("sell", slot, 700, 100_000))
        bought = await bob.submit(bid_offer("buy", slot, 500, 250_000))
        wrong = await bob.submit(
            bid_offer("buy", slot, 0, 250_000),
            bid_offer("buy", slot - 50, 100, 250_000),
            {"op": "mine-energy"},
        )
        assert (sold["codes"], bought["codes"]) == (["OK"], ["OK"])
        assert wrong["codes"] == ["QUANTITY_OUT_OF_RANGE", "SLOT_CLOSED", "UNKNOWN_OPERATION"]
        cleared = await cleared_slot(bob, slot)
        assert cleared["tradedWh"] == 500
        assert {a["address"] for a in cleared["awards"]} == {alice.key.id, bob.key.id}
        async with asyncio.timeout(PATIENCE_S):
            while not any(e["event"] == "refused" and "UNSIGNED" in e["counts"] for e in seen):
                await asyncio.sleep(0.05)


async def cleared_slot(actor: Actor, slot: int) -> dict:
    """The clearing of a slot, once it is final."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            for _, event in actor.events:
                if event["event"] == "cleared" and event["slot"] == slot:
                    return event
            await asyncio.sleep(0.05)
