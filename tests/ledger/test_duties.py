"""What validators say on the chain by themselves: accusations and seeds, on four real nodes."""

import asyncio

from support.chain_builder import (
    FIRST_SLOT,
    ISSUER,
    MARKET,
    SUPERVISOR,
    VALIDATORS,
    key,
    register,
    slot_ms,
)
from support.nodes import HubBus, feeder

from ledger.duties import Seeds, seed_operation
from ledger.types import VoteKind, encode, make_vote
from wire import certificates, topics
from wire.certificates import ValidatorLicence
from wire.keys import to_text

ANN = key("ann")


async def say(market, nonce, slot=None):
    """One transaction of a home, in a later slot if one is named."""
    if slot is not None:
        market.clock.move_to(slot_ms(slot) + 1)
    tx = market.chain.tx(ANN, register(ANN), nonce=nonce)
    market.send(tx)
    await market.executed(tx)


def standing(market, index):
    rows = {
        (row or {}).get("status")
        for node in market.nodes
        for row in [node.ledger.query(f"validator/{VALIDATORS[index].id}")]
    }
    return rows.pop() if len(rows) == 1 else None


async def test_who_signs_two_blocks_in_one_view_is_accused_on_chain_and_leads_no_more(tmp_path):
    async with feeder(tmp_path) as market:
        await say(market, 0)
        guilty, chain_id = VALIDATORS[3], market.genesis.chain_id
        epoch = market.nodes[0]._epoch.epoch
        topic = topics.build(market.genesis.market, topics.CONSENSUS_VOTE, guilty.id)
        bus = HubBus(market.hub)
        for block in (b"\1" * 32, b"\2" * 32):
            vote = make_vote(guilty, chain_id, 3, epoch, 9, VoteKind.NOTARIZE, block)
            bus.publish_soon(topic, encode(vote))
        await market.until(lambda: standing(market, 3) == "banned")
        assert {standing(market, i) for i in range(3)} == {"active"}, "the honest are accused"
        await market.until(lambda: all(not n.store.evidence(judged=False) for n in market.nodes))
        assert [len(node.store.evidence()) for node in market.nodes[:3]] == [1, 1, 1]

        await say(market, 1, FIRST_SLOT + 1)
        await market.until(lambda: all(node._epoch.epoch == epoch + 1 for node in market.nodes))
        assert all(3 not in node._epoch.schedule for node in market.nodes)
        await say(market, 2)


async def test_evidence_outlives_a_crash(tmp_path):
    async with feeder(tmp_path) as market:
        await say(market, 0)
        epoch = market.nodes[0]._epoch.epoch
        votes = [
            make_vote(
                VALIDATORS[1],
                market.genesis.chain_id,
                1,
                epoch,
                9,
                VoteKind.FINALIZE,
                bytes([i]) * 32,
            )
            for i in (1, 2)
        ]
        await market.stop(0)
        node = market.start(0)
        await asyncio.sleep(0.05)
        assert node.store.keep_evidence(*votes) and not node.store.keep_evidence(*votes)
        await market.stop(0)
        market.start(0)
        await market.until(lambda: standing(market, 1) == "banned")


async def test_seeds_are_opened_once_per_eventful_epoch_and_an_idle_chain_rests(tmp_path):
    async with feeder(tmp_path) as market:
        seeds = []
        for number in range(4):
            await say(market, 2 * number, FIRST_SLOT + number)  # seals the epoch before
            await say(market, 2 * number + 1)
            await market.until(
                lambda: all(
                    seed_operation(market.nodes[0].ledger, one.id, Seeds(one)) is None
                    for one in VALIDATORS
                )
            )
            seeds.append(market.nodes[0].ledger.query("poe/seed"))
        assert seeds[0] == seeds[1] and len(set(seeds[1:])) == 3, "folded from epoch 2 on"
        await asyncio.sleep(1.2)
        height = market.nodes[0].executed_height
        market.clock.move_to(slot_ms(FIRST_SLOT + 5))
        await asyncio.sleep(1.5)
        assert market.nodes[0].executed_height == height


async def test_validators_approve_what_their_operators_wrote_down(tmp_path):
    async with feeder(tmp_path) as market:
        await say(market, 0)
        slot = FIRST_SLOT + 150
        retail, lead = (
            {"op": "propose-change", "path": path, "value": value, "activationSlot": slot}
            for path, value in (("prices.retailUcPerKwh", 310_000), ("gateLeadS", 240))
        )
        for index in range(3):
            folder = market.folder / f"node-{index}"
            (folder / "approvals.toml").write_text(
                '[[approve]]\npath = "prices.*"\nmost = 320000\n'
            )
        (market.folder / "node-3" / "approvals.toml").write_text("[[approve]]\npth = 1\n")
        proposed = market.chain.tx(SUPERVISOR, retail, lead, nonce=0)
        market.send(proposed)
        await market.executed(proposed)

        def approved():
            history = market.nodes[0].ledger.query("parameters") or {}
            return sorted(history)

        await market.until(lambda: approved() == ["prices.retailUcPerKwh"])
        await asyncio.sleep(1.2)
        (standing,) = [row for _, row in market.nodes[0].ledger.state.scan("change/")]
        assert standing["path"] == "gateLeadS" and standing["approvals"]["validators"] == []


async def test_of_two_changes_that_exclude_each_other_one_is_approved_and_the_chain_rests(tmp_path):
    async with feeder(tmp_path) as market:
        await say(market, 0)
        slot = FIRST_SLOT + 150
        rivals = [
            {"op": "propose-change", "path": "gateLeadS", "value": value, "activationSlot": slot}
            for value in (240, 250)
        ]
        for index in range(4):
            path = market.folder / f"node-{index}" / "approvals.toml"
            path.write_text('[[approve]]\npath = "gateLeadS"\n')
        proposed = market.chain.tx(SUPERVISOR, *rivals, nonce=0)
        market.send(proposed)
        await market.executed(proposed)
        ledger = market.nodes[0].ledger
        await market.until(lambda: ledger.query("parameters"))
        for node in market.nodes:
            consent = node._duties._consent
            await market.until(lambda c=consent, n=node: c.operations(n.ledger) == [])


def test_a_used_up_onion_is_followed_by_another_also_after_a_restart():
    def walk(seeds, tip, steps):
        said = []
        for _ in range(steps):
            operation, tip = seeds.after(tip)
            said.append((operation, tip))
        return said

    whole = walk(Seeds(ANN, layers=3), b"", 10)
    assert [operation[:6] for operation, _ in whole] == (["commit"] + ["reveal"] * 3) * 2 + [
        "commit", "reveal",
    ]  # fmt: skip
    assert len({value for _, value in whole}) == 10, "no layer is used twice"
    for step in range(1, 10):
        assert walk(Seeds(ANN, layers=3), whole[step - 1][1], 10 - step) == whole[step:]


async def test_a_fifth_node_with_a_licence_joins_validates_and_leaves(tmp_path):
    async with feeder(tmp_path) as market:
        await say(market, 0)
        fifth = market.key(4)
        licence = ValidatorLicence(
            validator=fifth.id,
            key=to_text(fifth.public),
            controller="home-4",
            not_before_ms=0,
            not_after_ms=slot_ms(FIRST_SLOT + 1000),
        )
        folder = tmp_path / "node-4"
        folder.mkdir()
        sealed = certificates.seal(licence, ISSUER, MARKET)
        (folder / "licence.json").write_text(certificates.dump_text(sealed))
        newcomer = market.start(4)
        await market.until(
            lambda: (
                (newcomer.ledger.query(f"validator/{fifth.id}") or {}).get("status") == "candidate"
            )
        )
        for number in (1, 2):
            assert newcomer._core.me is None
            await say(market, number, FIRST_SLOT + number)
            await market.until(lambda: len({node._epoch.epoch for node in market.nodes}) == 1)
        assert [node._core.me is not None for node in market.nodes] == [True] * 5
        await market.stop(0)  # of five, four must vote: the newcomer's vote is needed
        await say(market, 3)

        (folder / "leave").touch()
        await market.until(
            lambda: newcomer.ledger.query(f"validator/{fifth.id}")["status"] == "leaving"
        )
        market.start(0)
        for number in (4, 5, 6):
            await say(market, number, FIRST_SLOT + number)
        await market.until(lambda: newcomer._core.me is None)
        await say(market, 7)
