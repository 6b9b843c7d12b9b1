"""A home that floods does not keep the others' slot waiting: the stated bound, measured."""

import asyncio

import pytest
from typer.testing import CliRunner

from bench import flood
from bench.flood_lanes import KINDS
from broker.quota import ADDRESS
from csmdb.requests import MAX_AT_WORK
from sim.stage import stage


class Played:
    """A market within this process, for floods of a few addresses."""

    def __init__(self, on):
        self._stage = on
        self.genesis, self.clock, self.issuer = on.genesis, on.clock, on.issuer
        self.slot0, self.port, self.home = on.slot0, on.broker.port, on.home

    def check(self):
        """What breaks within this process is raised here anyway."""


async def measured(folder, kind, addresses):
    async with stage(folder) as on:
        return await flood.measure(Played(on), kind, addresses, 0.5, 0.05)


@pytest.mark.parametrize(
    ("kind", "at_least"),
    [("bids", ADDRESS.messages_burst * 0.9), ("bundles of 64 bids", 10)],
)
def test_two_addresses_do_not_delay_a_neighbours_bid_beyond_the_bound(tmp_path, kind, at_least):
    row = asyncio.run(measured(tmp_path, kind, 2))
    assert row.within, row
    assert row.bids >= 3
    assert row.taken >= at_least, "the flooder did flood"


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_no_flood_of_a_home_with_all_its_addresses_delays_the_others_beyond_the_bound(
    tmp_path, kind
):
    row = asyncio.run(flood.measure_apart(kind, tmp_path, MAX_AT_WORK, 15))
    assert row.within, row
    assert row.taken > 0


def test_the_bound_grows_with_the_addresses_and_leaves_a_home_time_to_bid():
    """The gate of a slot of 900 s closes minutes after homes have bid for it."""
    few, all_of_it = flood.bound_ms("bids", 1, 0, 500), flood.bound_ms("bids", MAX_AT_WORK, 0, 500)
    assert few < all_of_it < 60_000


def test_an_unknown_kind_is_said_in_one_line():
    app = flood.typer.Typer()
    app.command()(flood.main)
    done = CliRunner().invoke(app, ["--kinds", "gossip"])
    assert done.exit_code == 2
    assert "no kind 'gossip'" in done.output
