"""The adjustments that the aggregator opens are those that the ledger takes."""

import pytest
from support.chain_builder import (
    FIRST_SLOT,
    SUPERVISOR,
    Chain,
    events_of,
    key,
    make_genesis,
    slot_ms,
)

from aggregator.core import AdjustmentPolicy, adjustments
from ledger.genesis import Feeder, Zone

CAR, PV = key("car"), key("pv")
SLOT = FIRST_SLOT + 2
AT_GATE = slot_ms(SLOT, -300)
POLICY = AdjustmentPolicy(automatic=True, margin_s=60)


@pytest.fixture
def chain():
    """A car in zone west wants energy of a plant in zone east."""
    zones = (Zone(name="west", rating_w=4_000), Zone(name="east", rating_w=8_000))
    chain = Chain(genesis=make_genesis(feeder=Feeder(zones=zones, congestion="split")))
    chain.settle_in(CAR, PV)
    for node, zone in ((CAR, "west"), (PV, "east")):
        place = {"op": "assign-zone", "address": node.id, "zone": zone}
        assert chain.codes(chain.ledger.time_ms + 1, SUPERVISOR, place) == ["OK"]
    return chain


def cleared(chain, energy_wh):
    """The session of `SLOT`, cleared at its gate."""
    for number, (node, side, price) in enumerate(((CAR, "buy", 300_000), (PV, "sell", 80_000))):
        operation = {
            "op": "submit-schedule", "side": side, "slot": SLOT, "energyWh": energy_wh,
            "priceUcPerKwh": price,
        }  # fmt: skip
        assert chain.codes(slot_ms(SLOT - 1, 60 + number), node, operation) == ["OK"]
    [closed] = events_of(chain.block(AT_GATE), "session-closed")
    return closed


def opened(chain, event, rounds):
    """Codes of the operations that the aggregator sends on an event."""
    now_ms = chain.ledger.time_ms + 1
    made = adjustments(event, rounds, now_ms, chain.genesis.grid, POLICY)
    return [chain.codes(now_ms, SUPERVISOR, operation) for _, operation in made]


def test_a_congested_session_is_reopened_and_cleared_again_before_its_slot(chain):
    closed = cleared(chain, 2_000)  # 1000 Wh fit into the zone
    assert any(zone["congested"] for zone in closed["zones"])
    assert opened(chain, closed, {SLOT: 0}) == [["OK"]]
    [again] = events_of(chain.block(slot_ms(SLOT, -60)), "session-closed")
    assert again["round"] == 1
    assert opened(chain, again, {SLOT: 1}) == []


def test_a_line_that_is_cut_after_the_clearing_reopens_the_session(chain):
    closed = cleared(chain, 500)
    assert opened(chain, closed, {SLOT: 0}) == []
    cut = {"op": "close-interconnection", "zone": "west", "startSlot": SLOT, "endSlot": SLOT + 3}
    block = chain.block(AT_GATE + 1_000, chain.tx(SUPERVISOR, cut))
    [event] = events_of(block, "interconnection-closed")
    assert opened(chain, event, {SLOT: 0}) == [["OK"]]
