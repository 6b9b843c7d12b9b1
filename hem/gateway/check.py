"""
A live device tried out: read three times, its values judged, its battery held for a moment.

Reading writes nothing. `held` writes: it holds a small power under the lease that the gateway would
take, reads the setpoint back, gives the battery back and looks whether it is in its own mode again.
Both want the gateway to be away (`alone`), for many devices accept one client, and two who command
a battery undo each other's work.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from hem.config import Device, Provisioning
from hem.gateway.builders import BUILDERS
from hem.gateway.devices import Site
from hem.gateway.leases import BOOK, LeaseBook, LeaseRefusedError, start_watchdog
from hem.gateway.modbus import DeviceError, DeviceLostError
from hem.gateway.source import Sample
from hem.gateway.template import NEEDS, SAMPLE_NAMES, load_template
from hem.locks import lock
from runtime.ports import Store
from runtime.store import SqliteStore
from wire.errors import ConfigError

READS = 3
PAUSE_S = 1.0
"""Between two reads [real s]."""
FIRST_S_MAX = 15.0
"""A device that speaks when it likes (P1, MQTT, Z-Wave) has so long to say something [real s]."""
MODBUS_KINDS = ("sunspec", "sunspec-meter", "sunspec-inverter", "sunspec-battery", "template")
TRIAL_W = 200
"""Charged with in a trial: enough to be seen, little enough to harm nothing."""
TRIAL_S = 4.0
"""How long [real s]."""
LEASE_S = 30
"""The lease of the trial: should we die, the battery is neutral this soon [real s]."""
FULL_PERMILLE = 950
"""Above it a battery takes little more: it is held at 0 W."""
WATCHDOG_S_MAX = 10.0
READ_S_SLOW = 2.0
"""A read is several requests; one that takes longer holds up a slot's reading [real s]."""
OVER = 1.1
"""A battery's power may be so far beyond its rated one while it settles."""
JITTER_WH = 2
"""A counter's last step, and rounding."""
UNITS = {"w": "W", "wh": "Wh", "permille": "%"}
MAY_LACK = ("pv_w", "soc_permille", "battery_w")
"""Not known at night, or while a battery sleeps; the site does without."""

Level = Literal["ok", "warn", "fail"]
Say = Callable[[str], None]


class Notes:
    """Takes what a site would write to the log."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def info(self, event: str, **facts: Any) -> None:
        """Keep it."""
        self.lines.append(f"{event}: {facts.get('why', '')}".rstrip(": "))

    warning = info


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    level: Level
    text: str


@dataclass
class Report:
    """What became of one device."""

    device: str
    kind: str
    values: dict[str, int] = field(default_factory=dict)
    """Of the last read; the units are the names' last part."""
    nameplate: dict[str, str] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True when nothing failed."""
        return all(check.level != "fail" for check in self.checks)

    def note(self, name: str, level: Level, text: str) -> None:
        """Add a check."""
        self.checks.append(Check(name, level, text))

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        checks = [{"name": c.name, "level": c.level, "text": c.text} for c in self.checks]
        return {
            "device": self.device, "kind": self.kind, "ok": self.ok, "values": self.values,
            "nameplate": self.nameplate, "checks": checks,
        }  # fmt: skip

    def to_text(self) -> list[str]:
        """For people."""
        lines = [f"{self.device} ({self.kind}): {'ok' if self.ok else 'FAILED'}"]
        lines += [f"  {label(name)}: {text}" for name, text in self.nameplate.items() if text]
        lines += [f"  {label(name)}: {shown(name, value)}" for name, value in self.values.items()]
        return lines + [f"  {c.level:<4}  {c.name}: {c.text}" for c in self.checks]


def label(name: str) -> str:
    """`import_wh` as people say it: the unit stands behind the number."""
    words = name.rsplit("_", 1)[0] if unit(name) else name
    return words.replace("_", " ")


def unit(name: str) -> str:
    """The unit that a value's name ends in."""
    return UNITS.get(name.rsplit("_", 1)[-1], "")


def shown(name: str, value: int) -> str:
    """A value with its unit, as people read it."""
    if name.endswith("_permille"):
        return f"{value / 10:g} %"
    return f"{value:,} {unit(name)}".strip()


def chosen(config: Provisioning, name: str, path: Path) -> list[Device]:
    """
    The device of a name, or all of them.

    Raises:
        ConfigError: there is none of that name.
    """
    found = [device for device in config.devices if name in ("", device.name)]
    if not found:
        names = ", ".join(device.name for device in config.devices)
        raise ConfigError(f"{path}: no device is named {name!r}; there are {names}")
    return found


def can_hold(device: Device, report: Report) -> bool:
    """Did a battery answer that can be commanded, as far as reading shows?"""
    read_only = device.template is not None and load_template(device.template).hold is None
    return "max_charge_w" in report.values and not read_only


@contextmanager
def alone(config: Provisioning) -> Iterator[Path]:
    """
    Hold the gateway's folder while the block runs; gives the folder.

    Raises:
        ConfigError: the gateway runs, or the folder cannot be used.
    """
    folder = config.home.data_dir / "gateway"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = lock(folder / "lock")
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be used ({error}); check home.data_dir") from None
    if descriptor is None:
        raise ConfigError(
            f"{folder}: the gateway is running on it; stop it first (systemctl stop hem-gateway)"
        )
    try:
        yield folder
    finally:
        os.close(descriptor)


async def read_device(device: Device, config: Provisioning, pause_s: float = PAUSE_S) -> Report:
    """Read one device three times and judge what it says. Never writes, never raises."""
    report = Report(device.name, device.template or device.kind)
    timeout_s = config.gateway.timeout_s
    site = Site([], timeout_s, Notes(), folder=config.home.data_dir.parent)
    try:
        build = BUILDERS.get(device.kind)
        if build is None:
            raise ConfigError(f"unknown kind {device.kind!r}")
        source = build(device, site)
    except (ConfigError, ValidationError, ValueError) as error:
        report.note("configured", "fail", _line(error))
        return report
    samples: list[tuple[float, Sample]] = []
    took_s: list[float] = []
    try:
        for turn in range(READS):
            if turn:
                await asyncio.sleep(pause_s)
            patient_s = FIRST_S_MAX if not turn and device.kind not in MODBUS_KINDS else 0.0
            began_s = time.monotonic()
            samples.append((began_s, await _sample(source.read, patient_s)))
            took_s.append(time.monotonic() - began_s)
        report.note("answers", "ok", f"{READS} of {READS} reads")
    except Exception as error:  # whatever nonsense it sends, the report says so
        report.note("answers", "fail", f"read {len(samples) + 1} of {READS}: {_line(error)}")
    finally:
        source.close()
        site.close()
    if samples:
        last = samples[-1][1]
        report.values = _values(last)
        report.nameplate = dict(last.details)
        _judge(report, source.capabilities, samples, config.gateway.max_power_w)
        _judge_nameplate(report, device)
        if device.kind in MODBUS_KINDS:
            slow = max(took_s) > READ_S_SLOW
            text = f"{min(took_s) * 1000:.0f} to {max(took_s) * 1000:.0f} ms a read"
            report.note("latency", "warn" if slow else "ok", text)
    return report


async def hold_device(
    device: Device, config: Provisioning, folder: Path, say: Say, seconds: float = TRIAL_S
) -> Report:
    """
    Hold a battery for a moment and give it back. Says what it writes before it does.

    Args:
        folder: the gateway's (`alone`)
        say: told in plain words what is about to happen
        seconds: how long it is held [real s]
    """
    report = Report(device.name, device.template or device.kind)
    store = SqliteStore(folder / "registers.sqlite", synchronous="FULL")
    try:
        leases = LeaseBook(folder / BOOK)
    except LeaseRefusedError as error:
        store.close()
        report.note("control", "fail", _line(error))
        return report
    beating: asyncio.Task[None] | None = None
    watchdog: subprocess.Popen[bytes] | None = None
    try:
        site = _site(device, config, store, leases)
        if site.watched:
            beating = asyncio.create_task(leases.keep_beating(_restore_of(site)))
            watchdog = await _watched(leases)
        await _hold(report, site, say, seconds)
    except (DeviceError, OSError, ConfigError) as error:
        report.note("control", "fail", _line(error))
    finally:
        if beating is not None:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)
        leases.close()
        store.close()
        if watchdog is not None and report.ok:  # else it has something to give back
            watchdog.terminate()
    return report


def _site(device: Device, config: Provisioning, store: Store, leases: LeaseBook) -> Site:
    folder = config.home.data_dir.parent
    return Site([device], config.gateway.timeout_s, Notes(), store, leases, folder)


def _restore_of(site: Site) -> Any:
    async def restore(name: str) -> None:
        storage = site.watched.get(name)
        if storage is not None:
            await storage.restore_neutral()

    return restore


async def _watched(leases: LeaseBook) -> subprocess.Popen[bytes] | None:
    """
    Wait until somebody would give the battery back if we died; a watchdog, where we started one.

    Raises:
        DeviceError: nobody does.
    """
    started = None if await leases.alive() else start_watchdog(leases.path)
    deadline_s = time.monotonic() + WATCHDOG_S_MAX
    while not await leases.alive():
        if time.monotonic() > deadline_s:
            raise DeviceLostError(f"no watchdog: {leases.trouble}")
        await asyncio.sleep(0.1)
    return started


async def _hold(report: Report, site: Site, say: Say, seconds: float) -> None:
    """Hold, look, give back, look. Gives back whatever happens."""
    say(f"{report.device}: if it stands on another's setpoint now, it is given back first")
    await site.poll(time.monotonic())
    battery = site.battery
    if battery is None or battery.device.storage is None:
        report.note("control", "fail", "this device has no battery that can be commanded")
        site.close()
        return
    try:
        if battery.limits is None or not battery.ok:
            raise DeviceLostError(f"not read: {site.state().devices.get(report.device, 'lost')}")
        wanted_w = 0 if battery.soc_permille > FULL_PERMILLE else -min(
            TRIAL_W, battery.limits.max_charge_w
        )  # fmt: skip
        what = f"charged with {-wanted_w} W" if wanted_w else "held at 0 W"
        say(f"{report.device}: the battery is {what} for {seconds:g} s (a lease of {LEASE_S} s),"
            " and given back to its own mode")  # fmt: skip
        held_w = await battery.command(wanted_w, LEASE_S, time.monotonic())
        report.note("held", "ok", f"asked for {wanted_w} W, accepted and read back {held_w} W")
        await asyncio.sleep(seconds)
        await site.poll(time.monotonic())
        report.values = {"held_w": held_w, "battery_w": battery.battery_w}
        standing = getattr(battery.device.source, "standing", "ours")
        level: Level = "ok" if standing == "ours" else "fail"
        report.note("keeps it", level, f"after {seconds:g} s the setpoint is {standing},"
                    f" the battery shows {battery.battery_w} W")  # fmt: skip
    except DeviceError as error:
        report.note("held", "fail", _line(error))
    finally:
        await _give_back(report, site)
        site.close()


async def _give_back(report: Report, site: Site) -> None:
    battery = site.battery
    if battery is None or battery.device.storage is None:
        return
    try:
        await battery.restore_neutral(time.monotonic())
        neutral = await battery.device.storage.is_neutral()
    except DeviceError as error:
        report.note("neutral", "fail", f"not given back: {_line(error)}")
        return
    text = "it is in its own mode again" if neutral else "it was given back and is not neutral"
    report.note("neutral", "ok" if neutral else "fail", text)


async def _sample(read: Callable[[], Any], patient_s: float) -> Sample:
    """
    One read; a device that speaks when it likes is waited for.

    Raises:
        DeviceError: as the source does.
    """
    deadline_s = time.monotonic() + patient_s
    while True:
        with suppress(DeviceLostError):
            found: Sample = await read()
            return found
        if time.monotonic() >= deadline_s:
            found = await read()
            return found
        await asyncio.sleep(0.2)


def _judge(
    report: Report,
    capabilities: frozenset[str],
    samples: Sequence[tuple[float, Sample]],
    max_power_w: int,
) -> None:
    """What the samples say of a device with these capabilities."""
    last = samples[-1][1]
    needs = [name for one in sorted(capabilities) for name in NEEDS.get(one, ())]
    lacking = [name for name in needs if getattr(last, name) is None]
    if not capabilities:
        report.note("complete", "fail", "it shows nothing that a home uses")
    elif [name for name in lacking if name not in MAY_LACK]:
        report.note("complete", "fail", f"not available: {', '.join(map(label, lacking))}")
    elif lacking:
        text = f"not available now: {', '.join(map(label, lacking))} (asleep, or at night)"
        report.note("complete", "warn", text)
    else:
        report.note(
            "complete", "ok", f"all {len(needs)} values of {', '.join(sorted(capabilities))}"
        )
    beyond = _beyond(last, max_power_w)
    text = "; ".join(beyond) or "no value is beyond the connection's or the battery's limits"
    report.note("limits", "fail" if beyond else "ok", text)
    _judge_counters(report, samples, max_power_w)


def _judge_nameplate(report: Report, device: Device) -> None:
    """What the device says of itself; the vendor that a template names is no proof."""
    given = load_template(device.template).vendor if device.template else ""
    told = [name for name in ("vendor", "model", "serial") if report.nameplate.get(name)]
    if not told:
        report.note("nameplate", "warn", "it tells neither vendor nor model")
    elif given and not report.nameplate.get("serial"):
        report.note("nameplate", "ok", "vendor and model are the template's, the device tells none")
    else:
        report.note("nameplate", "ok", f"it tells {', '.join(told)}")


def _beyond(last: Sample, max_power_w: int) -> list[str]:
    """What no home of this connection could show."""
    found = []
    for name in ("grid_w", "pv_w", "load_w"):
        power_w = getattr(last, name)
        if power_w is not None and abs(power_w) > max_power_w:
            found.append(f"{label(name)} {power_w} W is beyond gateway.max_power_w {max_power_w} W")
    if last.battery_w is not None and last.max_charge_w and last.max_discharge_w:
        low_w, high_w = -OVER * last.max_charge_w, OVER * last.max_discharge_w
        if not low_w <= last.battery_w <= high_w:
            found.append(f"battery {last.battery_w} W is beyond {low_w:.0f} to {high_w:.0f} W")
    for name in ("capacity_wh", "max_charge_w", "max_discharge_w"):
        if getattr(last, name) is not None and getattr(last, name) <= 0:
            found.append(f"{label(name)} is 0")
    return found


def _judge_counters(
    report: Report, samples: Sequence[tuple[float, Sample]], max_power_w: int
) -> None:
    """Counters never go back, and never faster than the connection carries."""
    wrong, seen = [], []
    for name in ("import_wh", "export_wh", "generation_wh"):
        known = [(at_s, value) for at_s, sample in samples
                 if (value := getattr(sample, name)) is not None]  # fmt: skip
        if not known:
            continue
        seen.append(label(name))
        (first_s, first), (last_s, last) = known[0], known[-1]
        if any(b < a for (_, a), (_, b) in itertools.pairwise(known)):
            wrong.append(f"{label(name)} went back")
        elif last - first > max_power_w * (last_s - first_s) / 3600 + JITTER_WH:
            wrong.append(f"{label(name)} grew by {last - first} Wh in {last_s - first_s:.1f} s")
    if seen:
        text = "; ".join(wrong) or f"{', '.join(seen)} did not go back"
        report.note("counters", "fail" if wrong else "ok", text)


def _values(sample: Sample) -> dict[str, int]:
    return {name: value for name in SAMPLE_NAMES if (value := getattr(sample, name)) is not None}


def _line(error: BaseException) -> str:
    """An error as one line."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_context=False)[0]
        key = ".".join(map(str, first["loc"]))
        return f"{key}: {first['msg'].removeprefix('Value error, ')}"
    return " ".join(str(error).split()) or type(error).__name__
