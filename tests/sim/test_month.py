"""The simulated month: the product's homes on the real contracts; what is told is public."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from hem.controller.discretion import ENERGY_STEP_WH, PRICE_STEP_UC_PER_KWH
from ledger.genesis import write_genesis
from ledger.store import LedgerStore
from ledger.verify import verify_folder
from sim.linkage_tracks import read
from sim.month import Month, run_month
from sim.month_habits import FIXED, FRESH
from sim.observation import load, save
from wire.errors import ConfigError
from wire.transactions import parse_transaction

HOMES, SLOTS = 4, 12


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A few slots under fresh addresses, with their chain in a folder as a validator keeps it."""
    folder = tmp_path_factory.mktemp("run")
    chain = folder / "ledger" / "validator-1"
    chain.mkdir(parents=True)
    store = LedgerStore.in_folder(chain)
    month = Month(HOMES, 1, 7, FRESH, store)
    for place in (folder, chain):
        write_genesis(month.genesis, place / "genesis.json")
    asyncio.run(month.run(SLOTS))
    store.close()
    return month, folder


def test_everything_is_taken_by_the_contracts_and_every_meter_speaks(kept):
    month, _ = kept
    codes, missing, settled = Counter(), 0, 0
    for block in month.observation.blocks:
        for event in block.events:
            if event["event"] == "tx":
                codes.update(event["codes"])
            if event["event"] == "settled":
                missing += len(event["missing"])
                settled += len(event["rows"])
    assert set(codes) == {"OK"}
    assert (settled, missing) == (HOMES * SLOTS, 0)


def test_the_chain_is_one_that_ledger_verify_takes(kept):
    _, folder = kept
    assert verify_folder(folder / "ledger" / "validator-1").height > SLOTS


def test_the_observer_reads_what_the_meters_counted_and_each_slot_has_one_address_a_home(kept):
    month, _ = kept
    tracks, truth = read(month.observation).tracks, month.truth
    seen = {
        (truth.home_of[address], slot): net_wh
        for address, track in tracks.items()
        for slot, net_wh in track.nets_wh.items()
    }
    assert seen == {
        (home, truth.first_slot + k): net_wh
        for home, nets in truth.nets_wh.items()
        for k, net_wh in enumerate(nets)
    }
    assert len(seen) == sum(len(track.nets_wh) for track in tracks.values())
    periods = {address: {s // 4 for s in t.nets_wh} for address, t in tracks.items()}
    assert all(len(one) <= 1 for one in periods.values())


def test_no_message_of_a_fresh_address_shows_a_clock_or_names_another(kept):
    month, _ = kept
    addresses = set(month.truth.home_of)
    for seen in month.observation.messages:
        tx = parse_transaction(seen.payload)
        if tx.sender in addresses:
            assert tx.envelope.date_ms % 900_000 == 0
            others = addresses - {tx.sender}
            assert not any(other.encode() in seen.payload for other in others)


def test_bids_of_fresh_addresses_leave_in_the_steps_that_all_homes_use(kept):
    month, _ = kept
    orders = [order for t in read(month.observation).tracks.values() for order in t.orders.values()]
    bids = [one for order in orders for one in order]
    assert bids
    for _side, energy_wh, price in bids:
        assert energy_wh % ENERGY_STEP_WH == price % PRICE_STEP_UC_PER_KWH == 0


def test_an_observation_can_be_kept_and_a_chain_be_read_as_one(kept, tmp_path):
    month, folder = kept
    save(month.observation, tmp_path / "kept")
    assert load(tmp_path / "kept") == month.observation
    nets = {a: t.nets_wh for a, t in read(load(folder)).tracks.items()}
    assert nets == {a: t.nets_wh for a, t in read(month.observation).tracks.items()}
    with pytest.raises(ConfigError, match="genesis"):
        load(tmp_path)


def test_the_same_seed_makes_the_same_bytes_and_another_one_others():
    first, second, other = (run_month(4, 1, seed, FIXED, slots=2)[0] for seed in (3, 3, 4))
    assert first == second
    assert first.messages != other.messages
