"""A home that floods does not keep the others' slot waiting: the stated bound, measured."""

import asyncio

import pytest
from typer.testing import CliRunner

from bench import flood
from broker.quota import ADDRESS


def test_bids_of_three_addresses_do_not_delay_a_neighbours_beyond_the_bound(tmp_path):
    row = asyncio.run(flood.measure("bids", tmp_path, 3, 1.5))
    assert row.within, row
    assert row.bids >= 3
    assert row.taken >= 3 * ADDRESS.messages_burst * 0.9, "the flooder did flood"


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", sorted(flood.KINDS))
def test_no_flood_of_a_home_with_32_addresses_delays_the_others_beyond_the_bound(tmp_path, kind):
    row = asyncio.run(flood.measure(kind, tmp_path, 32, 15))
    assert row.within, row
    assert row.taken > 0


def test_an_unknown_kind_is_said_in_one_line():
    app = flood.typer.Typer()
    app.command()(flood.main)
    done = CliRunner().invoke(app, ["--kinds", "gossip"])
    assert done.exit_code == 2
    assert "no kind 'gossip'" in done.output
