"""
The door for what is not agreed on chain: single nodes' statements and homes' states.

Finalised events come through `ledger.client`, which counts f + 1 signers. A `block` statement is
one node's own word (its finality time differs from its neighbours'), so its facts are believed once
f + 1 validators state them. A home's state is a signed envelope; its sender's id is the hash of the
key that signs it, so the key may travel in the message.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from analytics.facts import MarketFacts
from analytics.rollups import HomeState
from wire.envelope import Envelope, check_signature, check_time, parse_envelope
from wire.errors import MalformedError, Refusal, UnknownSenderError
from wire.keys import KEY_BYTES, Domain, from_text, id_of
from wire.units import MAX_SAFE_INT

MAX_PENDING = 512
MAX_DONE = 2048
MAX_FINALITY_MS = 3_600_000
MAX_POWER_W = 10_000_000
MAX_NAME = 40
MAX_HOMES = 100_000
MAX_AGE_MS = 2 * 86_400_000
"""A retained state may be old; it is shown with its time."""
MAX_AHEAD_MS = 600_000

_REASONS = frozenset(reason.value for reason in Refusal)
_COMPONENTS = frozenset({"mempool", "consensus", "sync", "node", "execution"})


class BlockVotes:
    """Counts the nodes that state the same facts of a block."""

    def __init__(self, facts: MarketFacts) -> None:
        self._validators = frozenset(facts.validators)
        self._enough = (len(self._validators) - 1) // 3 + 1
        self._pending: OrderedDict[tuple[Any, ...], dict[str, int]] = OrderedDict()
        self._done: OrderedDict[int, None] = OrderedDict()

    def take(self, statement: dict[str, Any]) -> dict[str, Any] | None:
        """
        The block's row once f + 1 validators state it; None before and after.

        `finalityMs` is that of the slowest of those f + 1: by then each of them had it final.

        Raises:
            MalformedError: fields missing, out of range, or a proposer who is no validator.
        """
        height = _integer(statement, "height", MAX_SAFE_INT)
        if height in self._done:
            return None
        proposer = statement.get("proposer")
        if proposer not in self._validators or statement.get("validator") not in self._validators:
            raise MalformedError("a block statement names validators")
        view, epoch = (_integer(statement, name, MAX_SAFE_INT) for name in ("view", "epoch"))
        count, time_ms = _integer(statement, "nTx", 1 << 20), _integer(statement, "timeMs")
        facts = (height, epoch, view, proposer, count, time_ms)
        votes = self._pending.setdefault(facts, {})
        votes[statement["validator"]] = _integer(statement, "finalityMs", MAX_FINALITY_MS)
        if len(votes) < self._enough:
            while len(self._pending) > MAX_PENDING:
                self._pending.popitem(last=False)
            return None
        for key in [k for k in self._pending if k[0] == height]:
            del self._pending[key]
        self._done[height] = None
        while len(self._done) > MAX_DONE:
            self._done.popitem(last=False)
        return {
            "height": height,
            "epoch": epoch,
            "view": view,
            "proposer": proposer,
            "nTx": count,
            "timeMs": time_ms,
            "finalityMs": max(votes.values()),
        }


def read_refused(statement: dict[str, Any]) -> tuple[str, str, dict[str, int]]:
    """
    A node's counts of refused messages: (validator, component, {reason: count}).

    Names that are not ours are kept together under OTHER, so that a liar cannot fill the page.

    Raises:
        MalformedError: not such a statement.
    """
    counts = statement.get("counts")
    if not isinstance(counts, dict):
        raise MalformedError("counts is not an object")
    component = statement.get("component")
    known: dict[str, int] = {}
    for reason in counts:
        count = _integer(counts, reason, MAX_SAFE_INT)
        name = reason if reason in _REASONS else "OTHER"
        known[name] = known.get(name, 0) + count
    validator = str(statement.get("validator", ""))
    return validator, component if component in _COMPONENTS else "node", known


class StateDoor:
    """
    Reads `hem/<id>/state` messages.

    Args:
        chain_id: what the signatures name
    """

    def __init__(self, chain_id: str) -> None:
        self._chain_id = chain_id
        self._keys: dict[str, bytes] = {}

    def read(self, home: str, raw: bytes, now_ms: int) -> HomeState:
        """
        The state of `home` (the topic's leaf) in `raw`.

        A last will is signed when the home connects and published when it is lost, so an offline
        state may carry any time; it counts as of now.

        Raises:
            WireError: one of its subclasses, by name.
        """
        envelope, signed = parse_envelope(raw)
        if envelope.client_id != home:
            raise UnknownSenderError("state of another home", sender=envelope.client_id)
        online = _online(envelope.parameters)
        if online:
            check_time(envelope.date_ms, now_ms, MAX_AGE_MS, MAX_AHEAD_MS)
        check_signature(envelope, signed, self._key_of(envelope), Domain.MESSAGE, self._chain_id)
        time_ms = envelope.date_ms if online else now_ms
        return _state(home, time_ms, online, envelope.parameters)

    def _key_of(self, envelope: Envelope) -> bytes:
        known = self._keys.get(envelope.client_id)
        if known is not None:
            return known
        holder = envelope.parameters
        certificate = holder.get("certificate")
        if isinstance(certificate, dict):
            holder = certificate
        text = holder.get("key")
        if not isinstance(text, str):
            raise UnknownSenderError("state does not carry its key", sender=envelope.client_id)
        public = from_text(text, KEY_BYTES)
        if id_of(public) != envelope.client_id:
            raise UnknownSenderError("key is not the sender's", sender=envelope.client_id)
        if len(self._keys) < MAX_HOMES:
            self._keys[envelope.client_id] = public
        return public


def _online(parameters: dict[str, Any]) -> bool:
    value = parameters.get("online", parameters.get("status", True))
    return value is True or value in ("online", "ok")


def _state(home: str, time_ms: int, online: bool, parameters: dict[str, Any]) -> HomeState:
    inner = parameters.get("state")
    body = {**parameters, **inner} if isinstance(inner, dict) else parameters
    names = {"grid_w": "gridW", "pv_w": "pvW", "battery_w": "batteryW", "load_w": "loadW"}
    found = {n: body[s] for n, short in names.items() for s in (n, short) if s in body}
    for name, value in found.items():
        if type(value) is not int or abs(value) > MAX_POWER_W:
            raise MalformedError("power out of range", field=name)
    soc = body.get("soc_permille", body.get("socPermille", -1))
    if type(soc) is not int or not -1 <= soc <= 1000:
        raise MalformedError("state of charge out of range")
    own_ms = body.get("time_ms", body.get("timeMs", time_ms))
    if online and type(own_ms) is int and abs(own_ms - time_ms) <= MAX_AHEAD_MS:
        time_ms = own_ms
    devices = body.get("devices")
    lost = (
        tuple(str(name)[:MAX_NAME] for name, word in devices.items() if word != "ok")
        if isinstance(devices, dict)
        else ()
    )
    return HomeState(
        home=home,
        time_ms=time_ms,
        online=online,
        soc_permille=soc,
        lost=lost[:16],
        measured=bool(found) and online,
        **found,
    )


def _integer(holder: dict[str, Any], name: str, limit: int = MAX_SAFE_INT) -> int:
    value = holder.get(name)
    if type(value) is not int or not 0 <= value <= limit:
        raise MalformedError("not a number in range", field=str(name)[:MAX_NAME])
    return value
