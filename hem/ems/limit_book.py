"""
The limits from outside that a home keeps to: its connection's, the DSO's, the household's.

    [grid] of the provisioning file   for as long as the home runs
    hem/<id>/command                  signed by the DSO (`wire.grid_limit`); kept in the database
    limits.json in the data folder    written by `hem limit`, read again when it changes

A message that is not the DSO's, is old or asks for what nobody may ask is dropped under the name of
its refusal. A file that cannot be read changes nothing: what it said before holds until its end.

Source: `hem.controller.limits`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog

from hem.controller.limits import Caps, GridSide, Limit, caps_between, fault_of
from hem.files import mark_of
from runtime.metrics import count_refusal
from runtime.ports import Clock, Message, Store
from wire.canonical import decode, encode
from wire.enrolment import MAX_AGE_MS, MAX_AHEAD_MS
from wire.envelope import EnvelopeReader
from wire.errors import ConfigError, MalformedError, UnknownOperationError, WireError
from wire.firmware import CHECK_FIRMWARE
from wire.grid_limit import LIMIT_GRID, read_grid_limit
from wire.keys import Domain, id_of
from wire.replay import ReplayGuard

LIMITS_FILE = "limits.json"
KEPT = "limit/"
MAX_REQUESTS_REMEMBERED = 1_000

log = structlog.get_logger(component="hem")


class LimitBook:
    """
    All limits of one home.

    Args:
        connection: what never ends
        home: our participant's identity
        dso_key: the supervisor's public key
        changed: called when another limit holds from now on
        nudged: called when the DSO asks us to look for firmware, on the same lane
    """

    def __init__(
        self,
        store: Store,
        folder: Path,
        connection: tuple[Limit, ...],
        home: str,
        market: str,
        dso_key: bytes,
        clock: Clock,
        changed: Callable[[], None] = lambda: None,
        nudged: Callable[[], None] = lambda: None,
    ) -> None:
        self._nudged = nudged
        self._store, self._folder, self._clock = store, folder, clock
        self._connection, self._home, self._changed = connection, home, changed
        self._dso = _kept(store)
        self._household: tuple[Limit, ...] = ()
        self._mark = (-1, -1, -1)
        self.error = ""
        """Why the file is not read; empty: nothing is wrong with it."""
        dso = id_of(dso_key)
        self._reader = EnvelopeReader(
            chain_id=market,
            domain=Domain.MESSAGE,
            key_of=lambda envelope: dso_key if envelope.client_id == dso else None,
            replay=ReplayGuard(MAX_AGE_MS + MAX_AHEAD_MS + 1_000, MAX_REQUESTS_REMEMBERED),
            max_age_ms=MAX_AGE_MS,
            max_ahead_ms=MAX_AHEAD_MS,
        )
        self.look()

    def between(self, start_ms: int, end_ms: int) -> Caps:
        """The tightest limits of an interval of market time."""
        limits = (*self._connection, *self._dso.values(), *self._household)
        return caps_between(limits, start_ms, end_ms)

    def look(self) -> None:
        """Read the household's file again if it has changed."""
        mark = mark_of(self._folder / LIMITS_FILE)
        if mark == self._mark:
            return
        self._mark = mark
        try:
            self._household = read_limits(self._folder)
        except ConfigError as error:
            self.error = str(error)
            log.warning("limits not read; those from before hold", reason=self.error)
            return
        self.error = ""
        self._changed()

    async def take(self, message: Message) -> None:
        """Handle one message of the DSO."""
        try:
            envelope = self._reader.read(message.payload, self._clock.wall_ms())
            if envelope.operation == CHECK_FIRMWARE and envelope.parameters == {"home": self._home}:
                self._nudged()
                return
            if envelope.operation != LIMIT_GRID:
                raise UnknownOperationError("not a command", operation=envelope.operation[:32])
            asked = read_grid_limit(envelope.parameters)
            if asked.home != self._home:
                raise MalformedError("a limit for another home", home=asked.home)
            limit = Limit(asked.side, asked.power_w, "dso", asked.from_ms, asked.until_ms)
            lifts = limit.from_ms == limit.until_ms
            fault = "" if lifts else fault_of(limit, self._clock.now_ms())
            if fault:
                raise MalformedError("a limit that nobody may ask for", why=fault)
        except WireError as error:
            count_refusal("hem", error.refusal)
            log.warning("limit refused", reason=str(error)[:200])
            return
        self._keep(asked.side, None if lifts else limit)
        log.info("limit of the DSO", side=asked.side, power_w=asked.power_w, lifted=lifts)
        self._changed()

    def _keep(self, side: GridSide, limit: Limit | None) -> None:
        """Durable when this returns."""
        with self._store.atomic():
            if limit is None:
                self._dso.pop(side, None)
                self._store.delete(KEPT + side)
            else:
                self._dso[side] = limit
                self._store.put(KEPT + side, encode(msgspec.to_builtins(limit)))


def read_limits(folder: Path) -> tuple[Limit, ...]:
    """
    The limits that the household set; none where there is no file.

    Raises:
        ConfigError: not such a file.
    """
    path = folder / LIMITS_FILE
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return msgspec.json.decode(raw, type=tuple[Limit, ...])
    except (msgspec.DecodeError, RecursionError) as error:
        raise ConfigError(
            f"{path}: not a file of limits ({error}); set them anew with `hem limit`"
        ) from None


def set_limits(folder: Path, new: tuple[Limit, ...], now_ms: int) -> tuple[Limit, ...]:
    """
    Set limits beside those of the household that hold still; each takes its side's place.

    Returns:
        All that hold now or later.

    Raises:
        ConfigError: one that nobody may ask for, or the file cannot be written.
    """
    for limit in new:
        fault = fault_of(limit, now_ms)
        if fault:
            raise ConfigError(f"--{limit.side}-w: {fault}")
    sides = {limit.side for limit in new}
    kept = [one for one in read_limits(folder) if one.side not in sides and one.until_ms > now_ms]
    all_of_them = (*kept, *new)
    _write(folder / LIMITS_FILE, msgspec.json.encode(all_of_them))
    return all_of_them


def lift_limits(folder: Path) -> None:
    """
    Lift what the household has set.

    Raises:
        ConfigError: the file cannot be written.
    """
    _write(folder / LIMITS_FILE, b"[]")


def _write(path: Path, content: bytes) -> None:
    draft = path.with_name(f"{path.name}.new")
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be written ({error.strerror}); run the home once, then try again"
        ) from None


def _kept(store: Store) -> dict[str, Limit]:
    found = {}
    for key, raw in store.scan(KEPT):
        try:
            found[key.removeprefix(KEPT)] = msgspec.convert(decode(raw), Limit)
        except (msgspec.ValidationError, WireError) as error:
            log.warning("a limit that was kept is lost", reason=str(error))
    return found
