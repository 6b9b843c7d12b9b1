"""The door: what is believed of single nodes and homes."""

from __future__ import annotations

import pytest
from support.made_up_day import DAY_START_MS, identity, key, made_up_genesis

from analytics.facts import facts_of
from analytics.statements import BlockVotes, StateDoor, read_refused
from wire.envelope import Envelope, seal_envelope
from wire.errors import (
    BadSignatureError,
    FutureDatedError,
    MalformedError,
    UnknownSenderError,
    WireError,
)
from wire.keys import Domain, to_text

CHAIN = "hg-test"
HOME = key("a home")


def block(node: int, **more: object) -> dict[str, object]:
    facts = {
        "event": "block", "height": 7, "epoch": 0, "view": 9, "proposer": identity("validator 0"),
        "nTx": 3, "timeMs": DAY_START_MS, "finalityMs": 40 + node,
        "validator": identity(f"validator {node}"),
    }  # fmt: skip
    return {**facts, **more}


@pytest.fixture
def votes() -> BlockVotes:
    return BlockVotes(facts_of(made_up_genesis()))


def test_a_block_is_believed_once_f_plus_1_nodes_state_it(votes):
    assert votes.take(block(0)) is None
    assert votes.take(block(0)) is None, "one node counts once"
    row = votes.take(block(1))
    assert row is not None
    assert (row["height"], row["finalityMs"]) == (7, 41)
    assert votes.take(block(2)) is None, "a block is told once"


def test_one_liar_does_not_make_a_block(votes):
    assert votes.take(block(3, nTx=999)) is None
    assert votes.take(block(1)) is None
    row = votes.take(block(2))
    assert row is not None
    assert row["nTx"] == 3


@pytest.mark.parametrize(
    "more",
    [
        {"proposer": "hg1nobody"},
        {"validator": "hg1nobody"},
        {"finalityMs": -1},
        {"finalityMs": 10**9},
        {"nTx": "3"},
        {"height": True},
        {"view": None},
    ],
)
def test_nonsense_about_blocks_is_refused(votes, more):
    with pytest.raises(MalformedError):
        votes.take(block(0, **more))


def test_a_flood_of_statements_is_bounded(votes):
    for height in range(5000):
        votes.take(block(0, height=height))
    assert len(votes._pending) <= 512


def test_reasons_that_are_not_ours_are_kept_together():
    counts = {"REPLAYED": 2, "<script>": 1, "x" * 500: 1}
    node, component, known = read_refused({"validator": "v", "component": "<b>", "counts": counts})
    assert (node, component, known) == ("v", "node", {"REPLAYED": 2, "OTHER": 2})
    with pytest.raises(MalformedError):
        read_refused({"counts": {"REPLAYED": -1}})


def message(parameters: dict[str, object], time_ms: int = DAY_START_MS, signer=HOME) -> bytes:
    body = {"key": to_text(HOME.public), **parameters}
    envelope = Envelope(HOME.id, "r", time_ms, "state", body)
    return seal_envelope(envelope, signer, Domain.MESSAGE, CHAIN)


MEASURED = {
    "online": True, "name": "home-01", "grid_w": -200, "pv_w": 900, "battery_w": -100,
    "load_w": 600, "soc_permille": 480, "devices": {"meter": "ok", "battery": "lost"},
}  # fmt: skip


def test_a_state_is_read_as_the_home_signed_it():
    state = StateDoor(CHAIN).read(HOME.id, message(MEASURED), DAY_START_MS)
    assert (state.grid_w, state.pv_w, state.battery_w, state.load_w) == (-200, 900, -100, 600)
    assert (state.soc_permille, state.lost) == (480, ("battery",))
    assert state.measured
    assert "home-01" not in repr(state), "what a home calls itself is not kept"


def test_a_last_will_may_be_old_and_counts_as_of_now():
    raw = message({"online": False, "name": "home-01"}, DAY_START_MS - 10**9)
    state = StateDoor(CHAIN).read(HOME.id, raw, DAY_START_MS)
    assert (state.online, state.time_ms, state.measured) == (False, DAY_START_MS, False)


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (message(MEASURED, signer=key("somebody else")), BadSignatureError),
        (message({**MEASURED, "key": to_text(key("other").public)}), UnknownSenderError),
        (message({**MEASURED, "key": 5}), UnknownSenderError),
        (message(MEASURED, DAY_START_MS + 10**7), FutureDatedError),
        (message({**MEASURED, "load_w": 10**9}), MalformedError),
        (message({**MEASURED, "load_w": "600"}), MalformedError),
        (message({**MEASURED, "soc_permille": 1001}), MalformedError),
        (b"{}", WireError),
        (b"\xff", WireError),
    ],
)
def test_states_that_cannot_be_believed_are_refused_by_name(raw, error):
    with pytest.raises(error):
        StateDoor(CHAIN).read(HOME.id, raw, DAY_START_MS)


def test_nobody_speaks_on_the_topic_of_another_home():
    with pytest.raises(UnknownSenderError):
        StateDoor(CHAIN).read(identity("validator 0"), message(MEASURED), DAY_START_MS)
