"""A validator under twenty thousand bad messages goes on with its work, in the same memory."""

import gc
from collections import Counter
from random import Random

import psutil
import pytest
from fuzz import services
from fuzz.mutate import mutated, random_steps
from support import chain_builder as cb
from support.nodes import feeder

from runtime.metrics import refusals
from wire.errors import WireError

MESSAGES = 20_000
BURST = 250
DISTINCT = 4_000
GROWTH_BYTES = 48 * 1024 * 1024
"""Bounded queues and caches may fill; 20,000 messages kept would take several times as much."""


@pytest.fixture(autouse=True)
def quiet():
    with services.quiet():
        yield


def guarded(bus):
    """Let the bus go on after a failing handler, as the real one does, and say what failed."""
    failed = []

    def guard(handler):
        async def take(message):
            try:
                await handler(message)
            except WireError:
                raise
            except Exception as error:
                failed.append(error)

        return take

    bus._handlers[:] = [(topic_filter, guard(handler)) for topic_filter, handler in bus._handlers]
    return failed


async def test_a_bombarded_node_still_finalises_and_does_not_swell(tmp_path):
    rng = Random(42)
    templates = services.node_messages()
    messages = [
        mutated(rng.choice(templates), random_steps(rng))[: 64 * 1024] for _ in range(DISTINCT)
    ]
    before = Counter(refusals("bus")) + Counter(refusals("mempool"))
    async with feeder(tmp_path) as running:
        target = cb.VALIDATORS[0].id
        await running.until(lambda: bool(running.nodes[0].bus._handlers))
        failed = guarded(running.nodes[0].bus)

        async def bombard(count):
            for number in range(count):
                data = messages[number % DISTINCT]
                sender = cb.VALIDATORS[1 + number % 3].id
                message = services.message_of(data, cb.MARKET, target, sender)
                running.nodes[0].bus.queue.put_nowait(message)
                if number % BURST == BURST - 1:
                    await running.until(running.nodes[0].bus.queue.empty, 20)

        home = cb.key("home under fire")
        first = running.chain.tx(home, cb.register(home))
        await bombard(2_000)
        running.send(first)
        await running.executed(first)
        gc.collect()
        begun = psutil.Process().memory_info().rss
        await bombard(MESSAGES - 2_000)
        gc.collect()
        grown = psutil.Process().memory_info().rss - begun
        second = running.chain.tx(home, {"op": "set-participation", "mode": "RE+TE"})
        running.send(second)
        await running.executed(second)
        assert grown < GROWTH_BYTES, grown
        assert not running.tasks[0].done()
        assert not failed, failed[0]
    after = Counter(refusals("bus")) + Counter(refusals("mempool"))
    assert (after - before).total() > MESSAGES // 4  # they were refused, by name
    assert {"MALFORMED", "UNSIGNED"} <= (after - before).keys()
