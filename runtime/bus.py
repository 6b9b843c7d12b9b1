"""
The Bus port on MQTT: one lane (identity, connection, session) to the broker.

A `MqttBus` keeps one `runtime.link.Link` standing: it connects, subscribes, and after a loss comes
back with exponential back-off and jitter. Messages go to their handlers one at a time and in order
per handler, and are acknowledged when every handler has returned (docs in `runtime.ports`), so the
broker keeps what a crashed process had not finished. Two lanes are two objects.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import structlog
from paho.mqtt.client import topic_matches_sub
from prometheus_client import Counter

from runtime.link import Incoming, Link, LinkRefusedError, Will
from runtime.metrics import count_refusal
from runtime.ports import BusDownError, Clock, Handler, Message, Rng
from wire.certificates import Signed, make_token
from wire.errors import OversizedError, Refusal, WireError
from wire.keys import SigningKey

BACKOFF_MIN_S = 0.2
BACKOFF_MAX_S = 10.0
STABLE_AFTER_S = 5.0
"""A connection that stood this long starts the back-off over; two clients fighting for one
identity do not."""
OPEN_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 2.0
KEEPALIVE_S = 20
MAX_PAYLOAD_BYTES = 128 * 1024 - 512
"""The broker takes packets of 128 KiB and disconnects whoever sends more; the rest is the topic."""
MAX_WAITING_QOS0 = 1_000
MAX_ROUTES = 4_096
TURN_S = 0.003
"""How long one handler may work through its queue before the others have their turn."""

HANDLER_ERRORS = Counter(
    "hearthgrid_handler_errors_total", "Messages whose handler failed", ["topic_filter"]
)

Credentials = Callable[[], tuple[str, str]]
"""Returns the client id and a fresh password; called before every attempt to connect."""

log = structlog.get_logger(component="bus")


class MqttBus:
    """
    The Bus port on paho-mqtt.

    Args:
        host, port: the broker
        credentials: gives client id and password for each attempt
        rng: jitter of the back-off
        will: said by the broker when we vanish
        tls: context of a TLS connection, or None for plain TCP
        user: user name where it is not the client id (a broker of others); empty: none is sent
    """

    def __init__(
        self,
        host: str,
        port: int,
        credentials: Credentials,
        rng: Rng,
        *,
        will: Will | tuple[str, bytes, bool] | None = None,
        tls: ssl.SSLContext | None = None,
        keepalive_s: int = KEEPALIVE_S,
        user: str | None = None,
    ) -> None:
        self._host, self._port = host, port
        self._credentials = credentials
        self._rng = rng
        self._will = Will(*will) if will is not None else None
        self._tls = tls
        self._keepalive_s = keepalive_s
        self._user = user
        self._subscriptions: dict[str, _Subscription] = {}
        self._routes: dict[str, list[_Worker]] = {}
        self._link: Link | None = None
        self._ready = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._background: set[asyncio.Task[None]] = set()
        self._births: list[Callable[[], Awaitable[None]]] = []
        self._trouble = ""
        self.dropped = 0
        """Messages that `publish_soon` could not hand over."""

    async def start(self) -> None:
        """Connect in the background, and go on reconnecting until `stop`."""
        assert self._task is None, "a bus is started once"
        for subscription in self._subscriptions.values():
            for worker in subscription.workers:
                worker.start()
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Wait up to 2 s for open acknowledgements, disconnect."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + STOP_TIMEOUT_S
        while self._link and self._link.unacknowledged and loop.time() < deadline_s:
            await asyncio.sleep(0.01)
        workers = [w for s in self._subscriptions.values() for w in s.workers]
        tasks = [self._task, *self._background, *(worker.task for worker in workers)]
        for task in tasks:
            if task is not None:
                task.cancel()
        await asyncio.gather(*(t for t in tasks if t is not None), return_exceptions=True)

    async def wait_connected(self, timeout_s: float | None = None) -> None:
        """
        Return once connected and subscribed.

        Raises:
            TimeoutError: not within `timeout_s`.
        """
        async with asyncio.timeout(timeout_s):
            await self._ready.wait()

    def reconnect(self) -> None:
        """Drop the connection and come back with fresh credentials (say, after enrolment)."""
        self._ready.clear()
        if self._link is not None:
            self._link.close()

    def subscribe(self, topic_filter: str, handler: Handler) -> None:
        """Subscribe now and after every reconnect; several handlers may share a filter."""
        worker = _Worker(topic_filter, handler)
        known = self._subscriptions.get(topic_filter)
        if known is None:
            known = self._subscriptions[topic_filter] = _Subscription(topic_filter)
            if self._link is not None:
                self._spawn(self._subscribe_late(self._link, topic_filter))
        known.workers.append(worker)
        self._routes.clear()
        if self._task is not None:
            worker.start()

    def on_connected(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Call back after every connect, once subscribed: the place for a birth message."""
        self._births.append(callback)

    async def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False
    ) -> None:
        """
        Send a message and wait for the broker's acknowledgement (QoS 0: until it is sent).

        Raises:
            BusDownError: not connected, or lost before the acknowledgement (then the broker may
                or may not have it).
            OversizedError: more than `MAX_PAYLOAD_BYTES`.
        """
        _check_size(topic, payload)
        if self._link is None:
            await asyncio.sleep(0)  # a caller that tries again at once must not starve the loop
            raise BusDownError("not connected")
        future = self._link.publish(topic, payload, qos, retain, wait=True)
        if future is not None:
            await future

    def publish_soon(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False
    ) -> None:
        """Send a message without waiting; dropped (and counted) when not connected or too big."""
        try:
            _check_size(topic, payload)
            if self._link is None:
                raise BusDownError("not connected")
            self._link.publish(topic, payload, qos, retain, wait=False)
        except BusDownError:
            self.dropped += 1
        except OversizedError as error:
            self.dropped += 1
            count_refusal("bus", error.refusal)
            log.warning("message too big to send", topic=topic, size=len(payload))

    @property
    def connected(self) -> bool:
        """True while the connection stands."""
        return self._link is not None

    # --- the connection -----------------------------------------------------------------------

    async def _run(self) -> None:
        backoff_s = BACKOFF_MIN_S
        loop = asyncio.get_running_loop()
        while True:
            began_s = loop.time()
            try:
                client_id, password = self._credentials()
                link = Link(
                    client_id, password, self._will, self._keepalive_s, self._take, self._user
                )
                await self._stand(link)
            except LinkRefusedError as error:
                self._report("refused by the broker", error)
            except (OSError, TimeoutError) as error:
                self._report("broker lost", error)
            except Exception:
                # credentials() is the caller's; whatever it does, the lane must come back
                log.exception("cannot connect")
            if loop.time() - began_s > STABLE_AFTER_S:
                backoff_s = BACKOFF_MIN_S
            await asyncio.sleep(backoff_s * self._rng.uniform(0.5, 1.0))
            backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)

    async def _stand(self, link: Link) -> None:
        """Open a link and hold it until it is lost, which is an OSError."""
        await link.open(self._host, self._port, self._tls, OPEN_TIMEOUT_S)
        self._link = link
        # at once, before whoever waits for an acknowledgement hears of the loss and tries again
        link.lost.add_done_callback(lambda _: self._forget(link))
        try:
            if self._subscriptions:
                async with asyncio.timeout(OPEN_TIMEOUT_S):
                    self._refuse_filters(await link.subscribe(list(self._subscriptions)))
            self._ready.set()
            if self._trouble:
                log.info("broker back", host=self._host, port=self._port)
                self._trouble = ""
            for callback in self._births:
                self._spawn(_call(callback))
            # waited for, not awaited: our being cancelled must not end the link's own future
            await asyncio.wait([link.lost])
            raise BusDownError(link.lost.result())
        finally:
            self._forget(link)
            link.close()

    def _forget(self, link: Link) -> None:
        """The link is gone."""
        if self._link is link:
            self._link = None
            self._ready.clear()

    def _report(self, what: str, error: Exception) -> None:
        """Log a kind of trouble once, however often it repeats."""
        if what != self._trouble:
            self._trouble = what
            log.warning(what, host=self._host, port=self._port, reason=str(error) or repr(error))
            if isinstance(error, LinkRefusedError):
                count_refusal("bus", Refusal.NOT_ALLOWED)

    async def _subscribe_late(self, link: Link, topic_filter: str) -> None:
        try:
            self._refuse_filters(await link.subscribe([topic_filter]))
        except BusDownError:
            return  # the next connection subscribes to everything

    def _refuse_filters(self, topic_filters: list[str]) -> None:
        for topic_filter in topic_filters:
            count_refusal("bus", Refusal.NOT_ALLOWED)
            log.warning("subscription refused", topic_filter=topic_filter)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # --- incoming -----------------------------------------------------------------------------

    def _take(self, link: Link, incoming: Incoming) -> None:
        workers = self._routes.get(incoming.topic)
        if workers is None:
            workers = self._route(incoming.topic)
        job = _Job(
            link,
            incoming,
            Message(incoming.topic, incoming.payload, incoming.retained),
            len(workers),
        )
        if not workers:
            link.acknowledge(incoming)
        for worker in workers:
            worker.put(job)

    def _route(self, topic: str) -> list[_Worker]:
        if len(self._routes) >= MAX_ROUTES:
            self._routes.clear()
        matching = [s for s in self._subscriptions.values() if topic_matches_sub(s.filter, topic)]
        self._routes[topic] = workers = [w for s in matching for w in s.workers]
        return workers


@dataclass(slots=True)
class _Job:
    link: Link
    incoming: Incoming
    message: Message
    handlers_left: int

    def done(self) -> None:
        self.handlers_left -= 1
        if self.handlers_left == 0:
            self.link.acknowledge(self.incoming)


@dataclass(slots=True)
class _Subscription:
    filter: str
    workers: list[_Worker] = field(default_factory=list)


class _Worker:
    """Runs one handler, one message at a time."""

    def __init__(self, topic_filter: str, handler: Handler) -> None:
        self._filter = topic_filter
        self._handler = handler
        self._queue: asyncio.Queue[_Job] = asyncio.Queue()
        self._failed = 0
        self.task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self.task = asyncio.create_task(self._work())

    def put(self, job: _Job) -> None:
        # QoS 1 is bounded by the broker's window of unacknowledged messages; QoS 0 by this
        if job.incoming.qos == 0 and self._queue.qsize() >= MAX_WAITING_QOS0:
            count_refusal("bus", Refusal.RATE_LIMITED)
            job.done()
            return
        self._queue.put_nowait(job)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        while True:
            if loop.time() - began_s > TURN_S:
                await asyncio.sleep(0)  # a full queue must not keep the other handlers waiting
                began_s = loop.time()
            if self._queue.empty():
                job = await self._queue.get()
                began_s = loop.time()
            else:
                job = self._queue.get_nowait()
            try:
                await self._handler(job.message)
            except WireError as error:
                count_refusal("bus", error.refusal)
                self._failed += 1
                if is_milestone(self._failed):
                    log.info(
                        "message refused",
                        topic=job.message.topic,
                        reason=str(error)[:200],
                        refused_so_far=self._failed,
                    )
            except Exception:
                # a poisonous message must neither kill the lane nor come back for ever
                HANDLER_ERRORS.labels(self._filter).inc()
                log.exception("handler failed", topic=job.message.topic)
            job.done()


async def _call(callback: Callable[[], Awaitable[None]]) -> None:
    try:
        await callback()
    except BusDownError:
        return  # lost again already; the next connection calls again
    except Exception:
        log.exception("on_connected failed")


def is_milestone(count: int) -> bool:
    """True for 1, 10, 100, …: how often something that may flood is worth a log line."""
    return str(count).rstrip("0") == "1"


def lane(
    key: SigningKey,
    market: str,
    credential: Signed | Callable[[], Signed | None] | None,
    host: str,
    port: int,
    clock: Clock,
    rng: Rng,
    will: Will | tuple[str, bytes, bool] | None = None,
    tls: ssl.SSLContext | None = None,
) -> MqttBus:
    """
    A bus under the identity of `key`, with a fresh token (wall time) for every attempt.

    `credential` is a Certificate or AddressGrant, None before enrolment, or a function that tells
    what it is by now (call `reconnect` after it has changed).
    """

    def credentials() -> tuple[str, str]:
        held = credential() if callable(credential) else credential
        token = make_token(key, market, clock.wall_ms(), rng.bytes(16).hex(), held)
        return key.id, token

    return MqttBus(host, port, credentials, rng, will=will, tls=tls)


def _check_size(topic: str, payload: bytes) -> None:
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise OversizedError("too big for the broker", topic=topic, size=len(payload))
