"""
How the home is: ok, degraded or failing, with a named reason for each thing that is not as it ought
to be. Pure; `hem.ems.health_page` serves it.

    failing     what the home is for does not happen: no readings, no certificate, a full disk
    degraded    it works, or will again by itself, and somebody may want to know

A home that is not connected is degraded at first, and failing when it has seen no block for long:
what it must not lose is stored, but its neighbours do not hear of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from hem.ems.light import LightState, LightView
from hem.ems.renewal import CertificateState

LATE_SLOTS = 2.0
"""What happens once per slot is late after so many, …"""
FAILING_SLOTS = 4.0
"""… and missing after so many: then the ledger takes the receipt no longer."""
WAITING_MANY = 50
"""So much waits in the outboxes after half a day without a broker."""
DISK_LOW_BYTES = 200 * 1024 * 1024
DISK_FULL_BYTES = 20 * 1024 * 1024
CERTIFICATE_SOON_DAYS = 14.0
"""A certificate that ends so soon was not renewed when it ought to have been."""

Level = Literal["ok", "degraded", "failing"]
LEVELS: tuple[Level, ...] = ("ok", "degraded", "failing")


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of the home, now."""

    trading: bool
    home_connected: bool
    trade_connected: bool
    state_age_slots: float
    """Since the gateway told its state; infinite: never."""
    devices: Mapping[str, str]
    """What the gateway says of each: `ok`, or why not."""
    last_read_slot: int
    """−1: none since we started."""
    slots_unread: int
    """Slots that have ended since; −1: unknown."""
    height: int
    """Of the block read last; −1: none since we started."""
    block_age_slots: float
    certificate: CertificateState
    certificate_days: float
    grant_slots_left: int
    waiting_readings: int
    waiting_operations: int
    disk_free_bytes: int
    stuck: tuple[str, ...] = ()
    """Loops that do not come round."""
    policy_error: str = ""
    """Why the owner's file is not in force; empty: it is."""
    limits_error: str = ""
    """Why the file of limits is not read; empty: nothing is wrong with it."""
    light: LightView = field(default_factory=LightView)
    """What the light client has proved."""
    figures: Mapping[str, int] = field(default_factory=dict)
    """Powers [W], registers [Wh] and money [µ¤], for metrics."""


@dataclass(frozen=True, slots=True)
class Reason:
    """One thing that is not as it ought to be."""

    name: str
    level: Level
    text: str


@dataclass(frozen=True, slots=True)
class Health:
    """The worst of the reasons, and all of them."""

    level: Level
    reasons: tuple[Reason, ...]

    def to_json(self, facts: Facts) -> dict[str, Any]:
        """As `/api/health` gives it."""
        return {
            "status": self.level,
            "reasons": [
                {"name": one.name, "level": one.level, "text": one.text} for one in self.reasons
            ],
            "trading": facts.trading,
            "brokerConnected": facts.home_connected and facts.trade_connected,
            "gatewayAnswers": facts.state_age_slots < LATE_SLOTS,
            "devices": dict(facts.devices),
            "lastReadSlot": facts.last_read_slot,
            "lastHeight": facts.height,
            "light": facts.light.state.value,
            "verifiedHeight": facts.light.verified_height,
            "certificate": facts.certificate.value,
            "certificateDaysLeft": round(facts.certificate_days, 2),
            "grantSlotsLeft": facts.grant_slots_left,
            "waitingReadings": facts.waiting_readings,
            "waitingOperations": facts.waiting_operations,
            "diskFreeBytes": facts.disk_free_bytes,
        }


def assess(facts: Facts) -> Health:
    """Judge the facts."""
    reasons = tuple(_reasons(facts))
    worst = max((LEVELS.index(reason.level) for reason in reasons), default=0)
    return Health(LEVELS[worst], reasons)


def _reasons(facts: Facts) -> Iterator[Reason]:
    yield from _connections(facts)
    yield from _metering(facts)
    yield from _papers(facts)
    yield from _proofs(facts.light)
    if facts.waiting_readings + facts.waiting_operations >= WAITING_MANY:
        text = f"{facts.waiting_readings} readings and {facts.waiting_operations} operations wait"
        yield Reason("outbox", "degraded", text)
    if facts.disk_free_bytes < DISK_LOW_BYTES:
        level: Level = "failing" if facts.disk_free_bytes < DISK_FULL_BYTES else "degraded"
        yield Reason("disk", level, f"{facts.disk_free_bytes // 2**20} MiB left on the disk")
    if facts.policy_error:
        text = f"the last good policy stays in force: {facts.policy_error}"
        yield Reason("policy", "degraded", text)
    if facts.limits_error:
        yield Reason("limits", "degraded", facts.limits_error)
    if facts.stuck:
        yield Reason("stuck", "failing", f"does not go on: {', '.join(facts.stuck)}")


def _connections(facts: Facts) -> Iterator[Reason]:
    lanes = [("home", facts.home_connected), ("trade", facts.trade_connected)]
    away = [name for name, connected in lanes if not connected]
    if away:
        yield Reason("broker", "degraded", f"not connected: {' and '.join(away)} lane")
    if not facts.trading:
        yield Reason("starting", "degraded", "not trading yet")
    elif facts.block_age_slots >= LATE_SLOTS:
        yield Reason("ledger", _since(facts.block_age_slots), "no block was seen for two slots")


def _metering(facts: Facts) -> Iterator[Reason]:
    if facts.state_age_slots >= LATE_SLOTS:
        yield Reason("gateway", _since(facts.state_age_slots), "the gateway does not answer")
    for name, status in sorted(facts.devices.items()):
        if status != "ok":
            yield Reason(f"device:{name}", "degraded", status)
    if facts.slots_unread >= LATE_SLOTS:
        text = f"{facts.slots_unread} slots have ended since the last reading"
        yield Reason("reading", _since(facts.slots_unread), text)


def _papers(facts: Facts) -> Iterator[Reason]:
    match facts.certificate:
        case CertificateState.NONE:
            yield Reason("certificate", "failing", "not enrolled yet")
        case CertificateState.EXPIRED:
            text = "the certificate has ended; readings are kept until there is a new one"
            yield Reason("certificate", "failing", text)
        case CertificateState.REFUSED:
            yield Reason("certificate", "degraded", "the CSM-DB does not renew it")
        case _ if facts.certificate_days < CERTIFICATE_SOON_DAYS:
            text = f"ends in {facts.certificate_days:.1f} days and is not renewed yet"
            yield Reason("certificate", "degraded", text)
    if facts.trading and facts.grant_slots_left < 0:
        yield Reason("grant", "failing", "the address' grant has ended; another is asked for")


def _proofs(light: LightView) -> Iterator[Reason]:
    match light.state:
        case LightState.DIFFERS:
            text = f"after block {light.proved_height} the ledger proves another balance than ours"
            yield Reason("light", "degraded", text)
        case LightState.SILENT:
            yield Reason("light", "degraded", "no validator proves our balance")
        case LightState.EXPIRED:
            text = "offline for too long to follow; put a checkpoint into light.checkpoint"
            yield Reason("light", "degraded", text)
        case LightState.CONFLICT:
            text = "two blocks are final that exclude each other; the data folder has the evidence"
            yield Reason("light", "failing", text)


def _since(slots: float) -> Level:
    return "failing" if slots >= FAILING_SLOTS else "degraded"
