"""
The embedded broker: amqtt's, with its session handling replaced.

amqtt 0.12.1 gives the listeners, TLS, life cycle and packet codecs. What it does with sessions and
messages cannot be made safe from a plugin, so this subclass does that itself:

- Authentication comes before anything is done with a session, and the client id, user name and
  token id must be one. (In amqtt a CONNECT with a bad password deletes its victim's session, and
  anybody may inherit one by naming it.)
- Every delivery, also of a retained message, asks the ACL. (amqtt sends retained messages past it.)
- A delivery has the lower of the publisher's and the subscriber's QoS. (amqtt: the subscriber's.)
- A publisher is acknowledged when the message is safe: in the journal, or received by all. (amqtt
  acknowledges first, keeps everything in memory, and gives a slow subscriber 5 s.)
- CONNECT must come within 5 s; packets have at most 128 KiB. (amqtt: no limits.)
- Connecting and delivering cost O(1) in the number of clients. (amqtt: O(N).)

QoS 2 is not offered: SUBSCRIBE is granted at most QoS 1 and a QoS 2 PUBLISH ends the connection.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import structlog
from amqtt.broker import Broker
from amqtt.contexts import BrokerConfig, ListenerConfig
from amqtt.mqtt.connect import ConnectPacket

from broker import packets
from broker.access import Access, Trust, identify
from broker.connection import Connection
from broker.packets import Publish
from broker.quota import RETAINED_BYTES_MAX, Quota, is_service
from broker.revocations import Revocations
from broker.router import Router, matches
from broker.sessions import Delivery, Message, Session
from broker.store import Journal
from broker.tls import peer_of, require_certificates
from runtime.metrics import count_refusal
from runtime.ports import Clock
from wire.errors import (
    CertificateError,
    MalformedError,
    RateLimitedError,
    Refusal,
    ReplayedError,
    WireError,
)
from wire.keys import is_id
from wire.replay import ReplayGuard
from wire.topics import STATE, Peer, may_publish, may_subscribe, parse

CONNECT_TIMEOUT_S = 5.0
SWEEP_S = 1.0
KEEPALIVE_SLACK = 1.5  # MQTT 3.1.1 section 3.1.2.10
EXPIRY_MS = 3 * 24 * 3_600_000
"""A session whose client stays away this long (wall time) is forgotten."""
EXPIRY_UNENROLLED_MS = 10 * 60_000
MAX_UNENROLLED = 1_000
"""Sessions of clients without a credential: anybody can make an identity."""
MAX_RETAINED = 50_000
DEBT_MAX_S = 10.0
"""A client that would have to wait longer for its quota is not let in."""
NONCE_MEMORY_MS = 130_000
NONCES_PER_CLIENT = 200
"""Connections of one client within that time; its quota runs out before."""
NONCES_OF_STRANGERS = 10_000
"""Of all clients without a credential together: anybody can make identities."""
ALLOWED_TOPICS_MAX = 10_000
PROTOCOL_LEVEL = 4  # MQTT 3.1.1

log = structlog.get_logger(component="broker")


class EmbeddedBroker(Broker):  # type: ignore[misc, unused-ignore]
    """
    An MQTT 3.1.1 broker for one market.

    Args:
        trust: market and issuing key
        clock: market time for certificates, wall time for tokens
        host, port: where to listen (port 0: any)
        state: SQLite file of sessions and retained messages; None keeps them in memory only
        certfile, keyfile: PEM files, for TLS
        cafile: the CSM-DB's X.509 authority: every client must show a certificate of its own
            identity then, besides the token that tells its roles
        revocations: which keys are good no more; none without
        connect_timeout_s: how long a connection may stay silent before CONNECT
        quota: how much each client may say

    Raises:
        sqlite3.Error: the state file cannot be used.
    """

    def __init__(
        self,
        trust: Trust,
        clock: Clock,
        host: str = "127.0.0.1",
        port: int = 0,
        state: Path | None = None,
        certfile: Path | None = None,
        keyfile: Path | None = None,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        quota: Quota | None = None,
        cafile: Path | None = None,
        revocations: Revocations | None = None,
    ) -> None:
        bind = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        listener = ListenerConfig(
            bind=bind, ssl=certfile is not None, certfile=certfile, keyfile=keyfile
        )
        super().__init__(BrokerConfig(listeners={"default": listener}, plugins={}))
        self._trust = trust
        self._cafile, self._revocations = cafile, revocations or Revocations(trust)
        self._clock = clock
        self._connect_timeout_s = connect_timeout_s
        self._quota = quota or Quota()
        self.journal = Journal(state)
        remembered = self.journal.load()
        self._clients: dict[str, Session] = remembered.sessions
        self._retained: dict[str, Message] = remembered.retained
        self._next_message = remembered.next_message
        self._next_delivery = remembered.next_delivery
        self._router = Router(trust.market)
        for session in self._clients.values():
            # who was connected when the broker died is away only since now
            session.last_seen_ms = clock.wall_ms()
            for topic_filter, qos in session.subscriptions.items():
                self._router.add(session, topic_filter, qos)
        self._connections: set[Connection] = set()
        self._allowed: set[tuple[Peer, str]] = set()
        self._nonces = ReplayGuard(NONCE_MEMORY_MS, per_sender=NONCES_PER_CLIENT)
        self._strangers_nonces = ReplayGuard(
            NONCE_MEMORY_MS, NONCES_OF_STRANGERS, per_sender=NONCES_PER_CLIENT
        )
        self._refused: Counter[str] = Counter()

    # --- life cycle (amqtt's hooks) -----------------------------------------------------------

    @property
    def port(self) -> int:
        """The port listened on."""
        port: int = self._servers["default"].instance.sockets[0].getsockname()[1]
        return port

    async def shutdown(self) -> None:
        """Close all connections (without last wills: the clients will be back) and the journal."""
        for connection in list(self._connections):
            connection.will = None
            connection.close()
        await super().shutdown()
        self.journal.close()

    async def _create_server_instance(
        self,
        listener_name: str,
        listener_type: Any,
        address: str | None,
        port: int,
        ssl_context: ssl.SSLContext | None,
    ) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        if ssl_context is not None and self._cafile is not None:
            require_certificates(ssl_context, self._cafile)
        host = address.strip("[]") if address else address
        return await loop.create_server(
            lambda: Connection(self), host, port, ssl=ssl_context, reuse_address=True, backlog=1024
        )

    async def _session_monitor(self) -> None:
        while True:
            await asyncio.sleep(min(SWEEP_S, self._connect_timeout_s / 2))
            self._sweep()

    async def _broadcast_message(
        self,
        session: Any,
        topic: str | None,
        data: bytes | bytearray | None,
        force_qos: int | None = None,
    ) -> None:
        """What amqtt's context offers to plugins goes the same way as everything else."""
        assert topic is not None and data is not None
        self._deliver(topic, bytes(data), force_qos or 0)

    def end_revoked(self) -> None:
        """New revocations: end the sessions that stand under them, and drop what waits for them."""
        for connection in list(self._connections):
            session = connection.session
            if session is None:
                continue
            try:
                self._revocations.check(session.client_id, connection.tls_serial)
            except WireError as error:
                self.refuse(error)
                connection.will = None  # it would speak in a stolen name
                connection.close()
        for identity in self._revocations.identities:
            if identity in self._clients:
                self._forget(self._clients[identity])

    def _sweep(self) -> None:
        """Close what is silent, expired or never introduced itself; forget abandoned sessions."""
        now_s = asyncio.get_running_loop().time()
        now_ms = self._clock.now_ms()
        for connection in list(self._connections):
            silent_s = 0.0 if connection.is_paused else now_s - connection.heard_s
            if connection.session is None:
                if silent_s > self._connect_timeout_s:
                    self._count(Refusal.EXPIRED, "no CONNECT in time")
                    connection.abort()
            elif connection.keepalive_s and silent_s > connection.keepalive_s * KEEPALIVE_SLACK:
                connection.abort()
            elif connection.until_ms is not None and now_ms >= connection.until_ms:
                self._count(Refusal.BAD_CERTIFICATE, "credential has ended")
                connection.close()
        wall_ms = self._clock.wall_ms()
        for session in list(self._clients.values()):
            expiry_ms = EXPIRY_MS if session.peer.roles else EXPIRY_UNENROLLED_MS
            if session.pipe is None and wall_ms - session.last_seen_ms > expiry_ms:
                self._forget(session)

    # --- connections (the Desk of broker.connection) ------------------------------------------

    def opened(self, connection: Connection) -> None:
        """A TCP connection was made."""
        self._connections.add(connection)

    def closed(self, connection: Connection) -> None:
        """A connection is gone: keep its session, publish its will."""
        self._connections.discard(connection)
        session = connection.session
        if session is None or session.pipe is not connection:
            return
        session.detach()
        session.last_seen_ms = self._clock.wall_ms()
        if session.clean:
            self._forget(session)
        else:
            self.journal.session(session)
        if connection.will is not None:
            self._accept(session.peer, connection.will)

    def connect(self, connection: Connection, packet: ConnectPacket) -> None:
        """Authenticate first; only then look at any session."""
        if packet.proto_name != "MQTT" or packet.proto_level != PROTOCOL_LEVEL:
            raise MalformedError("not MQTT 3.1.1", level=packet.proto_level)
        client_id = packet.client_id or ""
        try:
            access = self._authenticate_connect(connection, packet, client_id)
        except WireError as error:
            self.refuse(error)
            code = packets.BAD_CREDENTIALS if is_id(client_id) else packets.BAD_IDENTIFIER
            if error.refusal is Refusal.RATE_LIMITED:
                code = packets.UNAVAILABLE
            connection.write(packets.connack(False, code))
            connection.close()
            return
        old = self._clients.get(client_id)
        if old is not None and isinstance(old.pipe, Connection):
            old.pipe.close()  # the newer connection wins, 3.1.4
            old = self._clients.get(client_id)
        clean = bool(packet.clean_session_flag)
        if old is not None and (clean or old.clean):
            self._forget(old)
            old = None
        if old is None and not access.peer.roles and self._is_full_of_strangers():
            self._count(Refusal.RATE_LIMITED, "too many clients without a credential")
            connection.write(packets.connack(False, packets.UNAVAILABLE))
            connection.close()
            return
        session = old or Session(access.peer, clean, self._clock.wall_ms())
        self._clients[client_id] = session
        self._set_peer(session, access.peer)
        connection.session = session
        connection.keepalive_s = packet.keep_alive
        connection.until_ms, connection.at_work_ms = access.until_ms, access.at_work_ms
        connection.will = self._will_of(packet, access.peer)
        connection.write(packets.connack(old is not None, packets.ACCEPTED))
        session.pipe = connection
        if not clean:
            self.journal.session(session)
        session.pump()

    def publish(self, connection: Connection, publish: Publish) -> None:
        """Take a message from a client; a denied one is acknowledged and dropped (3.3.5)."""
        assert connection.session is not None
        if publish.qos > 1:
            raise MalformedError("QoS 2 is not offered")
        safe_now = True
        if self._may_publish(connection.session.peer, publish.topic):
            safe_now = self._accept(connection.session.peer, publish)
        else:
            self._count(Refusal.NOT_ALLOWED, "publish", connection.session.client_id, publish.topic)
        if publish.qos:
            answer = packets.puback(publish.packet_id)
            self._when_safe(partial(connection.write, answer), safe_now)

    def acknowledged(self, session: Session, packet_id: int) -> bool:
        """A client has received a message; False when that was not under way."""
        delivery = session.acknowledge(packet_id)
        if delivery is not None and not session.clean:
            self.journal.remove(delivery)
        return delivery is not None

    def subscribe(
        self, connection: Connection, packet_id: int, wanted: list[tuple[str, int]]
    ) -> None:
        """Grant what the ACL allows, then send the retained messages it allows."""
        session = connection.session
        assert session is not None
        codes = []
        for topic_filter, qos in wanted:
            if not may_subscribe(session.peer, topic_filter, self._trust.market):
                self._count(Refusal.NOT_ALLOWED, "subscribe", session.client_id, topic_filter)
                codes.append(packets.SUBACK_FAILURE)
                continue
            granted = min(qos, 1)
            self._router.add(session, topic_filter, granted)
            if not session.clean:
                self.journal.subscription(session.client_id, topic_filter, granted)
            codes.append(granted)
        granted_filters = [(f, c) for (f, _), c in zip(wanted, codes, strict=True) if c <= 1]

        def answer() -> None:
            connection.write(packets.suback(packet_id, codes))
            for topic_filter, qos in granted_filters:
                self._send_retained(session, topic_filter, qos)

        self._when_safe(answer, session.clean)

    def unsubscribe(self, connection: Connection, packet_id: int, filters: list[str]) -> None:
        """End subscriptions."""
        session = connection.session
        assert session is not None
        for topic_filter in filters:
            self._router.remove(session, topic_filter)
            if not session.clean:
                self.journal.subscription(session.client_id, topic_filter, None)
        self._when_safe(partial(connection.write, packets.unsuback(packet_id)), session.clean)

    def refuse(self, error: WireError) -> None:
        """Count and log something refused."""
        self._count(error.refusal, str(error)[:200])

    def charge(self, connection: Connection, messages: float, size_bytes: int) -> float:
        """Take from a client's quota; seconds for which to read nothing more from it."""
        if connection.session is None:
            return 0.0
        wait_s = self._charge(
            connection.session.peer, messages, size_bytes, connection.at_work_ms
        )  # fmt: skip
        if wait_s > 0:
            self._count(Refusal.RATE_LIMITED, "read later", connection.session.client_id)
        return wait_s

    def _charge(
        self,
        peer: Peer,
        messages: float,
        size_bytes: int,
        at_work_ms: tuple[int, int] | None = None,
    ) -> float:
        real_s, now_ms = self._clock.monotonic_s(), self._clock.now_ms()
        resting = at_work_ms is not None and not at_work_ms[0] <= now_ms < at_work_ms[1]
        return self._quota.charge(
            peer, messages, size_bytes, real_s, now_ms / 1000, resting=resting
        )  # fmt: skip

    # --- identity -----------------------------------------------------------------------------

    def _authenticate_connect(
        self, connection: Connection, packet: ConnectPacket, client_id: str
    ) -> Access:
        wall_ms = self._clock.wall_ms()
        self._check_debt(client_id)
        if self._cafile is not None:
            name, connection.tls_serial = peer_of(connection.peer_certificate)
            if name != client_id:
                raise CertificateError("TLS certificate of another", client_id=client_id[:64])
        self._revocations.check(client_id, connection.tls_serial)
        access = identify(
            client_id,
            packet.username or "",
            packet.password or "",
            self._trust,
            wall_ms,
            self._clock.now_ms(),
        )
        if self._charge(access.peer, 0, 0, access.at_work_ms) > DEBT_MAX_S:
            raise RateLimitedError("connects too often", client_id=client_id)
        nonces = self._nonces if access.peer.roles else self._strangers_nonces
        if not nonces.has_room(client_id, wall_ms):
            raise RateLimitedError("connects too often", client_id=client_id)
        if not nonces.admit(client_id, access.nonce, wall_ms):
            raise ReplayedError("token was used before", client_id=client_id)
        return access

    def _check_debt(self, client_id: str) -> None:
        """
        Before signatures are checked, which is what a connect costs.

        Nobody can bring a debt on another: only what was said under a proven identity counts.
        """
        real_s, market_s = self._clock.monotonic_s(), self._clock.now_ms() / 1000
        if self._quota.debt_s(client_id, real_s, market_s) > DEBT_MAX_S:
            raise RateLimitedError("connects too often", client_id=client_id[:64])

    def _set_peer(self, session: Session, peer: Peer) -> None:
        """Give a session its present roles; what they no longer allow is taken from its queue."""
        if session.peer == peer:
            return
        session.peer = peer
        self._router.forget_routes()
        for delivery in list(session.waiting):
            if not may_subscribe(peer, delivery.message.topic, self._trust.market):
                session.drop(delivery)
                self.journal.remove(delivery)

    def _is_full_of_strangers(self) -> bool:
        return sum(not s.peer.roles for s in self._clients.values()) >= MAX_UNENROLLED

    def _will_of(self, packet: ConnectPacket, peer: Peer) -> Publish | None:
        if not packet.will_flag:
            return None
        topic, payload = packet.will_topic or "", bytes(packet.will_message or b"")
        if not self._may_publish(peer, topic):
            self._count(Refusal.NOT_ALLOWED, "last will", peer.id, topic)
            return None
        return Publish(topic, payload, min(packet.will_qos or 0, 1), packet.will_retain_flag, 0)

    def _may_publish(self, peer: Peer, topic: str) -> bool:
        if (peer, topic) in self._allowed:
            return True
        if not may_publish(peer, topic, self._trust.market):
            return False
        if len(self._allowed) >= ALLOWED_TOPICS_MAX:
            self._allowed.clear()
        self._allowed.add((peer, topic))
        return True

    # --- messages -----------------------------------------------------------------------------

    def _may_retain(self, peer: Peer, publish: Publish) -> bool:
        """Services may; a home only its state, and no book of it. (What is not kept is sent on.)"""
        if is_service(peer):
            return True
        is_state = parse(publish.topic).kind == STATE
        if is_state and len(publish.payload) <= RETAINED_BYTES_MAX:
            return True
        self._count(Refusal.NOT_ALLOWED, "retain", peer.id, publish.topic)
        return False

    def _accept(self, peer: Peer, publish: Publish) -> bool:
        """Deliver and retain an allowed message. True when nothing of it has to reach the disk."""
        safe_now = self._deliver(publish.topic, publish.payload, publish.qos)
        if not publish.retain or not self._may_retain(peer, publish):
            return safe_now
        if not publish.payload:  # 3.3.1.3: an empty payload clears
            self._retained.pop(publish.topic, None)
            self.journal.retain(publish.topic, None)
        elif publish.topic in self._retained or len(self._retained) < MAX_RETAINED:
            message = self._new_message(publish.topic, publish.payload, publish.qos)
            self._retained[publish.topic] = message
            self.journal.retain(publish.topic, message)
        else:
            self._count(Refusal.RATE_LIMITED, "too many retained messages")
        return False

    def _deliver(self, topic: str, payload: bytes, qos: int) -> bool:
        message = self._new_message(topic, payload, qos)
        for session, granted in self._router.route(topic):
            self._offer(session, message, min(granted, qos), retained=False)
        return message.refs == 0

    def _offer(self, session: Session, message: Message, qos: int, retained: bool) -> None:
        if qos == 0:
            pipe = session.pipe
            if pipe is not None and pipe.writable:
                pipe.write(message.frame(0, retained, False, 0))
            return
        if session.full:
            session.dropped += 1
            self._count(Refusal.RATE_LIMITED, "queue is full", session.client_id)
            return
        delivery = Delivery(self._next_delivery, message, retained)
        self._next_delivery += 1
        if not session.clean:
            self.journal.add(session.client_id, delivery)
        session.offer(delivery)

    def _send_retained(self, session: Session, topic_filter: str, qos: int) -> None:
        if "+" not in topic_filter:
            found = [self._retained[topic_filter]] if topic_filter in self._retained else []
        else:
            found = [m for topic, m in self._retained.items() if matches(topic_filter, topic)]
        for message in found:
            if may_subscribe(session.peer, message.topic, self._trust.market):
                self._offer(session, message, min(qos, message.qos), retained=True)

    def _new_message(self, topic: str, payload: bytes, qos: int) -> Message:
        number = self._next_message
        self._next_message += 1
        return Message(number, topic, payload, qos)

    def _when_safe(self, answer: Callable[[], None], safe_now: bool) -> None:
        """Answer once what the answer promises is on disk, keeping the order of answers."""
        if safe_now and not self.journal.has_waiters:
            answer()
        else:
            self.journal.then(answer)

    def _forget(self, session: Session) -> None:
        if not session.clean:
            self.journal.forget_session(session)
        for topic_filter in list(session.subscriptions):
            self._router.remove(session, topic_filter)
        if self._clients.get(session.client_id) is session:
            del self._clients[session.client_id]

    def _count(self, reason: Refusal, what: str, client_id: str = "", topic: str = "") -> None:
        """Count by name; log the 1st, 10th, 100th, … of each kind."""
        count_refusal("broker", reason)
        kind = f"{reason.value} {what.split(' (', maxsplit=1)[0]}"
        self._refused[kind] += 1
        times = self._refused[kind]
        if str(times).rstrip("0") == "1":
            log.warning(
                "refused",
                reason=reason.value,
                what=what,
                client_id=client_id,
                topic=topic[:120],
                times=times,
            )
