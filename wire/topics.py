"""
Topics: `hg/v1/<market>/…`, built and parsed in one place, and who may use them.

One publisher per leaf, so that the broker can say who may speak: see `may_publish` and
`may_subscribe`, which the embedded broker and the rendered Mosquitto configuration share.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from wire.errors import TopicError

ROOT = "hg/v1"
_MARKET = re.compile(r"[a-z0-9-]{1,32}")
_LEAF = re.compile(r"[a-z0-9-]{1,64}")

# leaf kinds: the parts below the market; <id> is the only variable
TX = "tx/<id>"
CONSENSUS_PROPOSAL = "consensus/prop"
CONSENSUS_VOTE = "consensus/vote/<id>"
CONSENSUS_CERT = "consensus/cert"
SYNC_REQ = "sync/req/<id>"
SYNC_RSP = "sync/rsp/<id>"
EVENTS = "events/<id>"
AUCTION = "market/auction"
READING = "hem/<id>/reading"
STATE = "hem/<id>/state"
COMMAND = "hem/<id>/command"
CSMDB_REQ = "csmdb/req/<id>"
CSMDB_RSP = "csmdb/rsp/<id>"
DSO_REQ = "dso/req/<id>"
DSO_RSP = "dso/rsp/<id>"

KINDS = (
    TX, CONSENSUS_PROPOSAL, CONSENSUS_VOTE, CONSENSUS_CERT, SYNC_REQ, SYNC_RSP, EVENTS, AUCTION,
    READING, STATE, COMMAND, CSMDB_REQ, CSMDB_RSP, DSO_REQ, DSO_RSP,
)  # fmt: skip

PRIVATE_KINDS = frozenset(
    {READING, STATE, COMMAND, CSMDB_REQ, CSMDB_RSP, DSO_REQ, DSO_RSP, SYNC_RSP}
)
"""Kinds that only their owner and the service behind them may read."""


_SPOKEN_BY = {AUCTION: "aggregator", CSMDB_RSP: "csmdb", DSO_RSP: "dso"}
"""Kinds of topics on which one role speaks."""


@dataclass(frozen=True, slots=True)
class Topic:
    """A parsed topic: its market, kind and variable part (empty when it has none)."""

    market: str
    kind: str
    leaf: str


@dataclass(frozen=True, slots=True)
class Peer:
    """Who a connection was proven to be: identity, roles, and whether it is an address."""

    id: str
    roles: frozenset[str]
    """Roles of its certificate; {"address"} for a grant holder; empty before enrolment."""


def build(market: str, kind: str, leaf: str = "") -> str:
    """The topic of `kind`; `leaf` may be `+` in a subscription."""
    if not _MARKET.fullmatch(market):
        raise TopicError("market name is not [a-z0-9-]", market=market)
    if ("<id>" in kind) != bool(leaf):
        raise TopicError("this kind of topic needs (or has no) leaf", kind=kind)
    if leaf and leaf != "+" and not _LEAF.fullmatch(leaf):
        raise TopicError("leaf is not [a-z0-9-]", leaf=leaf[:80])
    return f"{ROOT}/{market}/{kind.replace('<id>', leaf)}"


@lru_cache(maxsize=8192)
def parse(topic: str) -> Topic:
    """
    Take a topic name apart (the same ones come again and again).

    Raises:
        TopicError: not one of ours.
    """
    parts = topic.split("/")
    if len(parts) < 4 or "/".join(parts[:2]) != ROOT or not _MARKET.fullmatch(parts[2]):
        raise TopicError("not a topic of this system", topic=topic[:80])
    rest = parts[3:]
    for kind in KINDS:
        shape = kind.split("/")
        if len(shape) != len(rest):
            continue
        if all(s in (r, "<id>") for s, r in zip(shape, rest, strict=True)):
            leaf = next((r for s, r in zip(shape, rest, strict=True) if s == "<id>"), "")
            if "<id>" in shape and leaf != "+" and not _LEAF.fullmatch(leaf):
                break
            return Topic(parts[2], kind, leaf)
    raise TopicError("not a topic of this system", topic=topic[:80])


def may_publish(peer: Peer, topic: str, market: str) -> bool:
    """May `peer` publish on `topic` of `market`? Wildcards and unknown topics: no."""
    try:
        parsed = parse(topic)
    except TopicError:
        return False
    if parsed.market != market or parsed.leaf == "+":
        return False
    own = parsed.leaf == peer.id
    enrolled = bool(peer.roles)
    match parsed.kind:
        case k if k == CSMDB_REQ:
            return own
        case k if k == TX:
            return own and enrolled
        case k if k in (CONSENSUS_PROPOSAL, CONSENSUS_CERT):
            return "validator" in peer.roles
        case k if k == CONSENSUS_VOTE:
            return own and "validator" in peer.roles
        case k if k == SYNC_REQ:
            return own and enrolled
        case k if k in (SYNC_RSP, EVENTS):
            return bool({"validator", "observer"} & peer.roles)
        case k if k in (READING, STATE, DSO_REQ):
            return own and enrolled and "address" not in peer.roles
        case k if k == COMMAND:
            return bool({"aggregator", "dso"} & peer.roles)
        case k if k in _SPOKEN_BY:
            return _SPOKEN_BY[k] in peer.roles
    return False


def may_subscribe(peer: Peer, topic_filter: str, market: str) -> bool:
    """
    May `peer` receive what `topic_filter` selects? Also asked per topic for each delivery.

    Only `+` in the place of an id is understood; `#` and other wildcards are refused.
    """
    try:
        parsed = parse(topic_filter)
    except TopicError:
        return False
    if parsed.market != market:
        return False
    own = parsed.leaf == peer.id
    if parsed.kind == CSMDB_RSP:
        return own
    if parsed.kind == CSMDB_REQ:
        return "csmdb" in peer.roles
    if not peer.roles:
        return False
    if parsed.kind in (SYNC_RSP, DSO_RSP):
        return own
    if parsed.kind == DSO_REQ:
        return "dso" in peer.roles
    if parsed.kind == READING:
        return bool({"aggregator", "dso", "analytics"} & peer.roles)
    if parsed.kind == STATE:
        return own or bool({"aggregator", "dso", "analytics"} & peer.roles)
    if parsed.kind == COMMAND:
        return own
    return True
