"""The growth benchmark measures what it says, and nothing grows faster than it should."""

import xml.etree.ElementTree as ET

import pytest

from bench.growth import LIGHT_AIM_BYTES, grown, measure
from bench.growth_plot import draw


@pytest.fixture(scope="module")
def small():
    return measure(small=True)


def test_ten_times_the_rows_cost_far_less_than_ten_times_as_much(small):
    low, high = small["rows"]
    assert high["rows"] > 8 * low["rows"]
    assert high["tx_us"] < 4 * low["tx_us"]


def test_the_height_of_the_chain_hardly_matters(small):
    low, high = small["heights"]
    assert high["height"] == 20 * low["height"]
    assert high["tx_us"] < 3 * low["tx_us"]


def test_a_new_node_need_not_execute_the_year(small):
    assert small["year"]["replay_s"] > 100 * small["year"]["join_s"]
    assert small["year"]["node_stopped_ms"] < 100


def test_a_light_clients_year_fits_the_aim(small):
    assert 0 < small["light_bytes"]["monthly"] < LIGHT_AIM_BYTES


def test_a_made_up_state_is_one_that_a_ledger_takes():
    """Its money is that of its deposits, and its bids are accepted."""
    with grown(500) as chain:
        assert len(chain.ledger.state) >= 500
        chain.ledger._check_all_money()
        chain.block(chain.bids(16))
        chain.block([], seal=True)
        assert chain.ledger.epoch == 1


def test_the_picture_is_an_svg_with_a_point_for_each_row_count(small):
    page = ET.fromstring(draw(small["rows"]))
    assert len(page.findall("{*}circle")) == len(small["rows"])
