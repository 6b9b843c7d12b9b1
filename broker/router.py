"""
Who gets a message: subscriptions, and the ACL asked for every delivery. No I/O.

The answer for a topic is kept until a subscription or a peer changes, so that the traffic costs one
dictionary look-up per message. Exact filters are found by name; of wildcard filters there are as
many as kinds of topics, not as clients.
"""

from __future__ import annotations

from broker.sessions import Session
from wire.topics import may_subscribe

MAX_ROUTES = 20_000


class Router:
    """Subscriptions of all sessions in one market."""

    def __init__(self, market: str) -> None:
        self._market = market
        self._exact: dict[str, dict[str, Session]] = {}
        self._wild: dict[str, dict[str, Session]] = {}
        self._routes: dict[str, list[tuple[Session, int]]] = {}

    def add(self, session: Session, topic_filter: str, qos: int) -> None:
        """Note a subscription (which the ACL allowed)."""
        session.subscriptions[topic_filter] = qos
        table = self._table(topic_filter)
        table.setdefault(topic_filter, {})[session.client_id] = session
        self._routes.clear()

    def remove(self, session: Session, topic_filter: str) -> None:
        """Forget a subscription, if there is one."""
        if session.subscriptions.pop(topic_filter, None) is None:
            return
        table = self._table(topic_filter)
        sessions = table[topic_filter]
        del sessions[session.client_id]
        if not sessions:
            del table[topic_filter]
        self._routes.clear()

    def forget_routes(self) -> None:
        """Ask the ACL again (a peer's roles have changed)."""
        self._routes.clear()

    def route(self, topic: str) -> list[tuple[Session, int]]:
        """Sessions that get `topic`, each once, with the highest QoS they subscribed at."""
        found = self._routes.get(topic)
        if found is None:
            if len(self._routes) >= MAX_ROUTES:
                self._routes.clear()
            found = self._routes[topic] = self._find(topic)
        return found

    def _find(self, topic: str) -> list[tuple[Session, int]]:
        best: dict[str, tuple[Session, int]] = {}
        groups = [(topic, self._exact.get(topic, {}))]
        groups += [(f, sessions) for f, sessions in self._wild.items() if matches(f, topic)]
        for topic_filter, sessions in groups:
            for session in sessions.values():
                qos = session.subscriptions[topic_filter]
                known = best.get(session.client_id)
                if known is not None:
                    best[session.client_id] = (session, max(qos, known[1]))
                elif may_subscribe(session.peer, topic, self._market):
                    best[session.client_id] = (session, qos)
        return list(best.values())

    def _table(self, topic_filter: str) -> dict[str, dict[str, Session]]:
        return self._wild if "+" in topic_filter else self._exact


def matches(topic_filter: str, topic: str) -> bool:
    """Does a filter with `+` (the only wildcard the ACL lets through) select `topic`?"""
    wanted, given = topic_filter.split("/"), topic.split("/")
    return len(wanted) == len(given) and all(
        w in ("+", g) for w, g in zip(wanted, given, strict=True)
    )
