"""
What the broker must not forget: sessions, subscriptions, queued QoS 1 messages, retained messages.

`Journal` gathers changes for a few milliseconds and writes them in one SQLite transaction; a
publisher is acknowledged only after its message is in it. A message that all its receivers have
acknowledged by then is never written. SQLite runs in WAL mode with synchronous=NORMAL: a broker
killed at any moment loses nothing it acknowledged; a power cut may lose the last moments.

Not kept: last wills, packet ids (a repeated message has DUP set), QoS 0 messages.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from broker.sessions import Delivery, Message, Session
from wire.topics import Peer

FLUSH_S = 0.002
"""How long an acknowledgement may wait for others to share its transaction."""
IDLE_FLUSH_S = 0.1
"""How long changes wait that nobody waits for (losing them only repeats a message)."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS sessions
    (client_id TEXT PRIMARY KEY, roles TEXT NOT NULL, last_seen_ms INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS subscriptions
    (client_id TEXT, filter TEXT, qos INTEGER NOT NULL, PRIMARY KEY (client_id, filter))
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS messages
    (id INTEGER PRIMARY KEY, topic TEXT NOT NULL, payload BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS deliveries
    (number INTEGER PRIMARY KEY, client_id TEXT NOT NULL, message INTEGER NOT NULL,
     retained INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS retained
    (topic TEXT PRIMARY KEY, payload BLOB NOT NULL, qos INTEGER NOT NULL) WITHOUT ROWID;
"""


@dataclass(slots=True)
class Remembered:
    """What a store held when it was opened."""

    sessions: dict[str, Session] = field(default_factory=dict)
    retained: dict[str, Message] = field(default_factory=dict)
    next_message: int = 1
    next_delivery: int = 1


class Journal:
    """
    The broker's memory on disk, or none at all when `path` is None.

    Raises:
        sqlite3.Error: the file cannot be opened, or is not a database.
    """

    def __init__(self, path: Path | None) -> None:
        self._db: sqlite3.Connection | None = None
        self._sessions: dict[str, tuple[str, int] | None] = {}
        self._subscriptions: dict[tuple[str, str], int | None] = {}
        self._retained: dict[str, Message | None] = {}
        self._added: dict[int, tuple[str, Delivery]] = {}
        self._removed: list[tuple[int]] = []
        self._released: list[Message] = []
        self._waiters: list[Callable[[], None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = 0.0
        self.failed: asyncio.Future[None] | None = None
        """Set by the service; fails when a transaction fails (disk full), which nobody survives."""
        if path is not None:
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            # what was fetched may be of somebody who is erased by now
            self._db.execute("PRAGMA secure_delete=ON")
            self._db.executescript(_SCHEMA)

    @property
    def has_waiters(self) -> bool:
        """True while somebody waits for the next transaction."""
        return bool(self._waiters)

    def load(self) -> Remembered:
        """Read everything back."""
        found = Remembered()
        if self._db is None:
            return found
        for client_id, roles, seen_ms in self._db.execute("SELECT * FROM sessions"):
            peer = Peer(client_id, frozenset(roles.split()))
            found.sessions[client_id] = Session(peer, False, seen_ms)
        for client_id, topic_filter, qos in self._db.execute("SELECT * FROM subscriptions"):
            if client_id in found.sessions:
                found.sessions[client_id].subscriptions[topic_filter] = qos
        messages: dict[int, Message] = {}
        for number, topic, payload in self._db.execute("SELECT * FROM messages ORDER BY id"):
            messages[number] = Message(number, topic, payload, 1)
            messages[number].stored = True
            found.next_message = number + 1
        rows = self._db.execute("SELECT * FROM deliveries ORDER BY number")
        for number, client_id, message_id, retained in rows:
            session, message = found.sessions.get(client_id), messages.get(message_id)
            if session is not None and message is not None:
                message.refs += 1
                session.put(Delivery(number, message, bool(retained), sent=True))
            found.next_delivery = number + 1
        for topic, payload, qos in self._db.execute("SELECT * FROM retained"):
            found.retained[topic] = Message(found.next_message, topic, payload, qos)
            found.next_message += 1
        return found

    # --- changes ------------------------------------------------------------------------------

    def session(self, session: Session) -> None:
        """Note a durable session."""
        roles = " ".join(sorted(session.peer.roles))
        self._sessions[session.client_id] = (roles, session.last_seen_ms)
        self._schedule(IDLE_FLUSH_S)

    def forget_session(self, session: Session) -> None:
        """Forget a session and all it held."""
        self._sessions[session.client_id] = None
        for topic_filter in session.subscriptions:
            self._subscriptions[session.client_id, topic_filter] = None
        for delivery in session.deliveries():
            self.remove(delivery)
        self._schedule(IDLE_FLUSH_S)

    def subscription(self, client_id: str, topic_filter: str, qos: int | None) -> None:
        """Note a subscription (`qos` None: its end)."""
        self._subscriptions[client_id, topic_filter] = qos
        self._schedule(IDLE_FLUSH_S)

    def add(self, client_id: str, delivery: Delivery) -> None:
        """Note a queued message."""
        delivery.message.refs += 1
        if self._db is not None:
            self._added[delivery.number] = (client_id, delivery)

    def remove(self, delivery: Delivery) -> None:
        """Note that a message was acknowledged or given up."""
        message = delivery.message
        message.refs -= 1
        if self._db is None:
            return
        if self._added.pop(delivery.number, None) is None:
            self._removed.append((delivery.number,))
            self._schedule(IDLE_FLUSH_S)
        if message.refs == 0 and message.stored:
            self._released.append(message)

    def retain(self, topic: str, message: Message | None) -> None:
        """Note a retained message (None: cleared)."""
        self._retained[topic] = message
        self._schedule(IDLE_FLUSH_S)

    def then(self, callback: Callable[[], None]) -> None:
        """Call back once everything noted so far is on disk, in the order of the calls."""
        if self._db is None:
            callback()
            return
        self._waiters.append(callback)
        self._schedule(FLUSH_S)

    # --- writing ------------------------------------------------------------------------------

    def _schedule(self, delay_s: float) -> None:
        if self._db is None:
            return
        loop = asyncio.get_running_loop()
        due_s = loop.time() + delay_s
        if self._timer is not None:
            if self._due_s <= due_s:
                return
            self._timer.cancel()
        self._due_s = due_s
        self._timer = loop.call_later(delay_s, self._flush_or_fail)

    def _flush_or_fail(self) -> None:
        self._timer = None
        try:
            self.flush()
        except sqlite3.Error as error:
            # without the disk no promise can be kept: acknowledge nothing and let the service end
            self._waiters.clear()
            if self.failed is not None and not self.failed.done():
                self.failed.set_exception(error)

    def flush(self) -> None:
        """
        Write all changes in one transaction, then call those who wait.

        Raises:
            sqlite3.Error: nothing was written.
        """
        if self._db is not None and self._is_dirty():
            self._db.execute("BEGIN")
            try:
                self._write(self._db)
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
            self._clear()
        waiters, self._waiters = self._waiters, []
        for callback in waiters:
            callback()

    def close(self) -> None:
        """Write what is left and release the file."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._db is not None:
            self.flush()
            self._db.close()
            self._db = None

    def _is_dirty(self) -> bool:
        return bool(
            self._added
            or self._removed
            or self._released
            or self._retained
            or self._subscriptions
            or self._sessions
        )

    def _write(self, db: sqlite3.Connection) -> None:
        for client_id, row in self._sessions.items():
            if row is None:
                db.execute("DELETE FROM sessions WHERE client_id = ?", (client_id,))
            else:
                db.execute("INSERT OR REPLACE INTO sessions VALUES (?, ?, ?)", (client_id, *row))
        for (client_id, topic_filter), qos in self._subscriptions.items():
            if qos is None:
                db.execute(
                    "DELETE FROM subscriptions WHERE client_id = ? AND filter = ?",
                    (client_id, topic_filter),
                )
            else:
                db.execute(
                    "INSERT OR REPLACE INTO subscriptions VALUES (?, ?, ?)",
                    (client_id, topic_filter, qos),
                )
        fresh = {d.message.id: d.message for _, d in self._added.values() if not d.message.stored}
        db.executemany(
            "INSERT INTO messages VALUES (?, ?, ?)",
            [(m.id, m.topic, m.payload) for m in fresh.values()],
        )
        db.executemany(
            "INSERT INTO deliveries VALUES (?, ?, ?, ?)",
            [(n, client, d.message.id, d.retained) for n, (client, d) in self._added.items()],
        )
        db.executemany("DELETE FROM deliveries WHERE number = ?", self._removed)
        db.executemany(
            "DELETE FROM messages WHERE id = ?",
            [(m.id,) for m in self._released if m.refs == 0],
        )
        for topic, message in self._retained.items():
            if message is None:
                db.execute("DELETE FROM retained WHERE topic = ?", (topic,))
            else:
                db.execute(
                    "INSERT OR REPLACE INTO retained VALUES (?, ?, ?)",
                    (topic, message.payload, message.qos),
                )

    def _clear(self) -> None:
        for _, delivery in self._added.values():
            delivery.message.stored = True
        for message in self._released:
            if message.refs == 0:
                message.stored = False
        self._sessions.clear()
        self._subscriptions.clear()
        self._retained.clear()
        self._added.clear()
        self._removed.clear()
        self._released.clear()
