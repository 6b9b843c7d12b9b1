"""Topics: who may speak and who may listen, as one table."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire import topics
from wire.errors import TopicError
from wire.topics import Peer, build, may_publish, may_subscribe, parse

MARKET = "demo"
ME, OTHER = "hg1" + "a" * 32, "hg1" + "b" * 32
ROLES = (
    "stranger", "address", "prosumer", "validator", "observer", "aggregator", "dso", "csmdb",
    "analytics",
)  # fmt: skip
ALL = set(ROLES)
KNOWN = ALL - {"stranger"}
NOBODY: set[str] = set()
READERS = {"aggregator", "dso", "analytics"}

# kind: (publish on its own leaf, on another's; receive its own, another's or everybody's)
TABLE = {
    topics.TX: (KNOWN, NOBODY, KNOWN, KNOWN),
    topics.CONSENSUS_PROPOSAL: ({"validator"}, {"validator"}, KNOWN, KNOWN),
    topics.CONSENSUS_VOTE: ({"validator"}, NOBODY, KNOWN, KNOWN),
    topics.CONSENSUS_CERT: ({"validator"}, {"validator"}, KNOWN, KNOWN),
    topics.SYNC_REQ: (KNOWN, NOBODY, KNOWN, KNOWN),
    topics.SYNC_RSP: ({"validator", "observer"}, {"validator", "observer"}, KNOWN, NOBODY),
    topics.EVENTS: ({"validator", "observer"}, {"validator", "observer"}, KNOWN, KNOWN),
    topics.AUCTION: ({"aggregator"}, {"aggregator"}, KNOWN, KNOWN),
    topics.READING: (KNOWN - {"address"}, NOBODY, READERS, READERS),
    topics.STATE: (KNOWN - {"address"}, NOBODY, KNOWN, READERS),
    topics.COMMAND: ({"aggregator", "dso"}, {"aggregator", "dso"}, KNOWN, NOBODY),
    topics.CSMDB_REQ: (ALL, NOBODY, {"csmdb"}, {"csmdb"}),
    topics.CSMDB_RSP: ({"csmdb"}, {"csmdb"}, ALL, NOBODY),
    topics.DSO_REQ: (KNOWN - {"address"}, NOBODY, {"dso"}, {"dso"}),
    topics.DSO_RSP: ({"dso"}, {"dso"}, KNOWN, NOBODY),
}
CASES = [(kind, role) for kind in topics.KINDS for role in ROLES]


def peer(role):
    return Peer(ME, frozenset() if role == "stranger" else frozenset({role}))


def topic(kind, leaf):
    return build(MARKET, kind, leaf if "<id>" in kind else "")


def test_the_table_has_every_kind():
    assert set(TABLE) == set(topics.KINDS)


@pytest.mark.parametrize(("kind", "role"), CASES)
def test_who_may_publish(kind, role):
    own, others, _, _ = TABLE[kind]
    assert may_publish(peer(role), topic(kind, ME), MARKET) == (role in own)
    assert may_publish(peer(role), topic(kind, OTHER), MARKET) == (role in others)


@pytest.mark.parametrize(("kind", "role"), CASES)
def test_who_may_receive(kind, role):
    _, _, own, others = TABLE[kind]
    assert may_subscribe(peer(role), topic(kind, ME), MARKET) == (role in own)
    if "<id>" in kind:
        assert may_subscribe(peer(role), topic(kind, OTHER), MARKET) == (role in others)
        assert may_subscribe(peer(role), topic(kind, "+"), MARKET) == (role in others)


@pytest.mark.parametrize(("kind", "role"), CASES)
def test_nobody_may_do_anything_in_another_market(kind, role):
    name = build("elsewhere", kind, ME if "<id>" in kind else "")
    assert not may_publish(peer(role), name, MARKET)
    assert not may_subscribe(peer(role), name, MARKET)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    "name",
    ["#", "+", "+/+/#", "hg/v1/demo/#", "hg/v1/demo/tx/#", "hg/v1/+/market/auction", "$SYS/broker",
     "$share/group/hg/v1/demo/tx/+", "", "/", "hg/v1/demo", "hg/v1/demo/", "hg/v1/demo/tx",
     "hg/v1/demo/tx/", "hg/v1/demo/hem//command", "/hg/v1/demo/tx/a", "hg/v1/demo/tx/a/b",
     "hg/v1/demo/+/a", "hg/v1/demo/hem/+/+", "hg/v1/demo/tx/<id>", "hg/v1/demo/tx/A",
     "hg/v1/demo/tx/a\n", "hg/v1/demo/tx/a\0", "hg/v2/demo/tx/a", "hg/v1/DEMO/tx/a",
     "homeassistant/device/x/config"],
)  # fmt: skip
def test_no_other_topic_or_wildcard_is_understood(role, name):
    assert not may_publish(peer(role), name, MARKET)
    assert not may_subscribe(peer(role), name, MARKET)
    with pytest.raises(TopicError):
        parse(name)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("kind", topics.KINDS)
def test_nobody_publishes_on_a_wildcard(kind, role):
    if "<id>" in kind:
        assert not may_publish(peer(role), topic(kind, "+"), MARKET)


@pytest.mark.parametrize("kind", topics.KINDS)
def test_what_is_built_is_parsed_back(kind):
    leaf = ME if "<id>" in kind else ""
    assert parse(build(MARKET, kind, leaf)) == topics.Topic(MARKET, kind, leaf)


@pytest.mark.parametrize(
    ("market", "kind", "leaf"),
    [("Demo", topics.TX, ME), ("", topics.TX, ME), ("a/b", topics.AUCTION, ""),
     ("demo", topics.TX, ""), ("demo", topics.AUCTION, ME), ("demo", topics.TX, "a/b"),
     ("demo", topics.TX, "#"), ("demo", topics.TX, "A")],
)  # fmt: skip
def test_a_topic_that_could_not_be_parsed_is_not_built(market, kind, leaf):
    with pytest.raises(TopicError):
        build(market, kind, leaf)


@given(st.text(max_size=60))
def test_any_text_is_a_topic_or_refused(text):
    for name in (text, f"hg/v1/demo/{text}"):
        try:
            found = parse(name)
        except TopicError:
            continue
        assert build(found.market, found.kind, found.leaf) == name
