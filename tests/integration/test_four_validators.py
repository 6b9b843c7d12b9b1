"""Four validators behind a real broker agree, survive losses, and serve wallets."""

import asyncio
from pathlib import Path

from support.brokers import Authority, BrokerProcess, running_broker
from support.feeders import running_ledger
from support.patience import PATIENCE_S


async def test_a_registration_is_final_on_every_validator(tmp_path: Path) -> None:
    authority = Authority()
    async with (
        running_broker(authority) as broker,
        running_ledger(authority, broker.port, tmp_path) as chain,
    ):
        home = await chain.home("alice")
        assert await home.client.query("account", home.key.id) == {
            "balanceUc": 0, "lockedUc": 0, "nonce": 1,
        }  # fmt: skip
        height = max(node.executed_height for node in chain.nodes.values())
        await chain.heights(height)
        roots = {node.ledger.state_root(height) for node in chain.nodes.values()}
        assert len(roots) == 1


async def test_one_validator_may_be_missing_and_catches_up(tmp_path: Path) -> None:
    authority = Authority()
    async with (
        running_broker(authority) as broker,
        running_ledger(authority, broker.port, tmp_path) as chain,
    ):
        await chain.home("alice")
        await chain.stop_node(2)
        await chain.home("bob")
        await chain.home("carol")
        height = max(chain.nodes[n].executed_height for n in chain.tasks)
        chain.start_node(2)
        await chain.heights(height)
        assert chain.nodes[2].ledger.state_root(height) == chain.nodes[0].ledger.state_root(height)


async def test_a_restarted_broker_loses_nothing(tmp_path: Path) -> None:
    authority = Authority()
    with BrokerProcess(authority, tmp_path) as broker:
        async with running_ledger(authority, broker.port, tmp_path) as chain:
            alice = await chain.home("alice")
            await asyncio.to_thread(broker.kill)
            await asyncio.to_thread(broker.start)
            bob = await chain.home("bob")
            seen = {e["address"] for _, e in alice.events if e["event"] == "address-registered"}
            async with asyncio.timeout(PATIENCE_S):
                while bob.key.id not in seen:
                    await asyncio.sleep(0.05)
                    seen = {
                        e["address"] for _, e in alice.events if e["event"] == "address-registered"
                    }
