"""
One process with the Modbus devices of all homes.

    python -m sim.devices --homes DIR --base-port 0 --ports-file devices.json [--state DIR]

Every home file (JSON, `sim.homes`) in DIR gets one port with a meter, and an inverter and a battery
where it has them. The ports file tells what listens where. With base port 0 the system chooses, and
a restarted process takes the ports of its ports file again. With a state folder the registers and
the state of charge survive a crash: state is saved at every change of a setpoint, and from there on
the physics is deterministic.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

from runtime.clock import clock_from_environment
from runtime.ports import Clock
from sim.battery_physics import WMS_PER_WH, BatteryFacts, HomePhysics, Window
from sim.homes import Home, load_home
from sim.sunspec_server import BATTERY_ID, INVERTER_ID, METER_ID, HomeDevices
from wire.errors import ConfigError

HOST = "127.0.0.1"
KINDS = {
    METER_ID: ("meter", "sunspec-meter"),
    INVERTER_ID: ("pv", "sunspec-inverter"),
    BATTERY_ID: ("battery", "sunspec-battery"),
}


class FeederDevices:
    """
    The devices of several homes.

    Args:
        state: folder for what must survive a crash, or None
    """

    def __init__(self, homes: Sequence[Home], clock: Clock, state: Path | None = None) -> None:
        self._state = state
        if state is not None:
            state.mkdir(parents=True, exist_ok=True)
        self.homes: dict[str, HomeDevices] = {}
        self.ports: dict[str, int] = {}
        for home in homes:
            now_ms = clock.now_ms()
            physics = physics_of(home, now_ms)
            self._restore(home.name, physics, now_ms)
            save = partial(self.save, home.name)
            self.homes[home.name] = HomeDevices(
                home.name, physics, clock, has_pv=home.has_pv, on_change=save
            )

    async def start(self, base_port: int = 0, wanted: dict[str, int] | None = None) -> None:
        """
        Listen, on consecutive ports from `base_port`, on the ports wanted, or on any.

        Raises:
            OSError: a port is taken.
        """
        for number, (name, devices) in enumerate(self.homes.items()):
            port = base_port + number if base_port else (wanted or {}).get(name, 0)
            self.ports[name] = await devices.start(HOST, port)
            self.save(name)

    async def stop(self) -> None:
        """Save and hang up."""
        for name, devices in self.homes.items():
            devices.refresh()
            self.save(name)
            await devices.stop()

    def listing(self) -> dict[str, Any]:
        """What listens where: per home its port and its `[[devices]]`."""
        return {
            name: {
                "port": port,
                "devices": [
                    {
                        "name": KINDS[device_id][0],
                        "kind": KINDS[device_id][1],
                        "host": HOST,
                        "port": port,
                        "device_id": device_id,
                    }
                    for device_id in self.homes[name].images
                ],
            }
            for name, port in self.ports.items()
        }

    def save(self, name: str) -> None:
        """Write a home's state in one step."""
        if self._state is None:
            return
        physics = self.homes[name].physics
        window = physics.window
        saved = {
            "time_ms": physics.time_ms,
            "stored_wms": [physics.stored_wms.numerator, physics.stored_wms.denominator],
            "window_w": [window.low_w, window.high_w] if window else [],
            "import_wms": physics.import_wms,
            "export_wms": physics.export_wms,
            "generation_wms": physics.generation_wms,
        }
        write_json(self._state / f"{name}.json", saved)

    def _restore(self, name: str, physics: HomePhysics, now_ms: int) -> None:
        """Go on from the saved state; one from the future is another run's."""
        path = self._state / f"{name}.json" if self._state is not None else None
        if path is None or not path.exists():
            return
        saved = json.loads(path.read_text())
        if saved["time_ms"] > now_ms:
            return
        physics.time_ms = saved["time_ms"]
        physics.stored_wms = Fraction(*saved["stored_wms"])
        physics.import_wms = saved["import_wms"]
        physics.export_wms = saved["export_wms"]
        physics.generation_wms = saved["generation_wms"]
        physics.window = Window(*saved["window_w"]) if saved["window_w"] else None
        physics.advance(now_ms)
        physics.window = None  # a device that starts is in its own mode


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT. Exit code 2 with one line where that cannot be."""
    parser = argparse.ArgumentParser(prog="sim.devices", description="Modbus devices of all homes")
    parser.add_argument("--homes", type=Path, required=True, help="folder with the home files")
    parser.add_argument("--base-port", type=int, default=0, help="first port; 0 lets us choose")
    parser.add_argument("--ports-file", type=Path, required=True, help="what listens where (JSON)")
    parser.add_argument("--state", type=Path, help="folder that survives a crash")
    options = parser.parse_args(arguments)
    try:
        homes = load_folder(options.homes)
        devices = FeederDevices(homes, clock_from_environment(), options.state)
        wanted = _ports_of(options.ports_file)
        ready = partial(write_json, options.ports_file)
        asyncio.run(_serve(devices, options.base_port, wanted, ready))
    except (ConfigError, OSError) as error:
        sys.stderr.write(f"sim.devices: {error}\n")
        return 2
    return 0


def load_folder(folder: Path) -> list[Home]:
    """
    All homes of a folder, by file name.

    Raises:
        ConfigError: there are none, or a file is not a home.
    """
    homes = [load_home(path) for path in sorted(folder.glob("*.json"))]
    if not homes:
        raise ConfigError(f"{folder}: no home files (*.json); generate homes first")
    return homes


def physics_of(home: Home, now_ms: int) -> HomePhysics:
    """A home's electricity from `now_ms` on, registers at zero."""
    physics = HomePhysics(
        now_ms, home.interval_s * 1000, home.load_at, home.pv_at, origin_ms=home.start_ms
    )
    if (spec := home.battery) is not None:
        physics.battery = BatteryFacts(
            spec.capacity_wh,
            spec.max_charge_w,
            spec.max_discharge_w,
            charge_permille=spec.one_way_permille,
            discharge_permille=spec.one_way_permille,
        )
        stored = Fraction(spec.capacity_wh * WMS_PER_WH * spec.soc0_permille, 1000)
        physics.stored_wms = stored
    return physics


def write_json(path: Path, value: Any) -> None:
    """Write a file in one step, so that nobody reads half of it."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=1))
    temporary.replace(path)


async def _serve(
    devices: FeederDevices,
    base_port: int,
    wanted: dict[str, int],
    ready: Callable[[Any], None],
) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await devices.start(base_port, wanted)
    ready(devices.listing())
    await stop.wait()
    await devices.stop()


def _ports_of(path: Path) -> dict[str, int]:
    """Ports of the run before, so that those who know them find us again."""
    if not path.exists():
        return {}
    try:
        return {name: int(row["port"]) for name, row in json.loads(path.read_text()).items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: not a ports file ({error!r}); remove it") from None


if __name__ == "__main__":
    sys.exit(main())
