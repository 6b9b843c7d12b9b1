"""
A simulated home: its profile of load and PV, its battery, its connection.

Profiles are piecewise constant and repeat when they end. `generate_homes` makes a feeder from a
seed; `sim.profiles` makes one from measured data. The battery's behaviour is in
`sim.battery_physics`.
"""

from __future__ import annotations

from math import isqrt
from pathlib import Path
from random import Random

import msgspec

from sim.shapes import ev_charging_w, household_w, pv_series_w, sky, vacant_w
from wire.errors import ConfigError

KINDS = (
    "pv-battery", "pv", "pv-battery", "pv", "consumer", "ev", "pv-battery", "consumer", "vacant",
    "consumer",
)  # fmt: skip
"""Of ten homes in turn. The first four have PV: they host the validators."""
VALIDATORS = 4
CONNECTION_W = 17_250
"""Three phases of 25 A at 230 V."""
DAY_WH = (6_500, 14_500)
"""What a household uses in a day, least and most [Wh]."""


class BatterySpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A home battery."""

    capacity_wh: int
    max_charge_w: int
    max_discharge_w: int
    efficiency_permille: int = 900
    """Of a round trip; each way takes its square root."""
    soc0_permille: int = 400
    """State of charge when the profile starts."""

    @property
    def one_way_permille(self) -> int:
        """Efficiency of charging alone, and of discharging alone."""
        return isqrt(self.efficiency_permille * 1000)


class Home(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A home on the feeder."""

    name: str
    kind: str
    interval_s: int
    start_ms: int
    """When the first value of both series begins."""
    load_w: list[int]
    """Mean power in each interval [W]."""
    pv_w: list[int]
    """As many values as `load_w`; all zero without PV."""
    battery: BatterySpec | None = None
    max_import_w: int = CONNECTION_W
    max_export_w: int = 0
    validator: bool = False
    """Does it host a validator?"""

    @property
    def has_pv(self) -> bool:
        """Is there any PV output in the profile?"""
        return any(self.pv_w)

    @property
    def pv_peak_w(self) -> int:
        """The highest output in the profile [W]."""
        return max(self.pv_w)

    def load_at(self, time_ms: int) -> int:
        """Load at a market time [W]."""
        return self.load_w[self._index(time_ms)]

    def pv_at(self, time_ms: int) -> int:
        """PV output at a market time [W]."""
        return self.pv_w[self._index(time_ms)]

    def load_wms(self, from_ms: int, to_ms: int) -> int:
        """Energy used in [from_ms, to_ms), exact [W·ms]; 3,600,000 W·ms are 1 Wh."""
        return self._energy_wms(self.load_w, from_ms, to_ms)

    def pv_wms(self, from_ms: int, to_ms: int) -> int:
        """Energy produced in [from_ms, to_ms), exact [W·ms]."""
        return self._energy_wms(self.pv_w, from_ms, to_ms)

    def _index(self, time_ms: int) -> int:
        return (time_ms - self.start_ms) // (self.interval_s * 1000) % len(self.load_w)

    def _energy_wms(self, series: list[int], from_ms: int, to_ms: int) -> int:
        interval_ms = self.interval_s * 1000
        total_wms, at_ms = 0, from_ms
        while at_ms < to_ms:
            next_ms = at_ms + interval_ms - (at_ms - self.start_ms) % interval_ms
            until_ms = min(next_ms, to_ms)
            total_wms += series[self._index(at_ms)] * (until_ms - at_ms)
            at_ms = until_ms
        return total_wms


def generate_homes(
    count: int, seed: int, start_ms: int, days: int = 2, interval_s: int = 300
) -> list[Home]:
    """
    A feeder of made-up homes, the same for the same arguments.

    Of ten: three consumers, two with PV, three with PV and battery, one vacant, one with an
    electric car. All roofs share one sky.

    Args:
        start_ms: when the profiles begin (its date sets the sun's path)
        interval_s: a divisor of a day

    Raises:
        ValueError: no homes, no days, or an interval that does not divide the day.
    """
    if count < 1 or days < 1 or interval_s < 1 or 86_400 % interval_s:
        raise ValueError(f"count={count}, days={days}, interval_s={interval_s}")
    sky_share = sky(Random(f"{seed}/sky"), days, interval_s)
    return [
        _generate(index, KINDS[index % len(KINDS)], seed, start_ms, days, interval_s, sky_share)
        for index in range(count)
    ]


def home_name(index: int) -> str:
    """`home-01`, `home-02`, …"""
    return f"home-{index + 1:02d}"


def save_home(home: Home, path: Path) -> None:
    """Write a home as JSON."""
    path.write_bytes(msgspec.json.encode(home))


def load_home(path: Path) -> Home:
    """
    Read a home written by `save_home`.

    Raises:
        ConfigError: no such file, or not a home.
    """
    try:
        home = msgspec.json.decode(path.read_bytes(), type=Home)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a home's profile: {error}; make it again") from None
    if not home.load_w or len(home.load_w) != len(home.pv_w) or home.interval_s < 1:
        raise ConfigError(f"{path}: load_w and pv_w must be of one length, not empty")
    return home


def _generate(
    index: int,
    kind: str,
    seed: int,
    start_ms: int,
    days: int,
    interval_s: int,
    sky_share: list[float],
) -> Home:
    # One source of chance a home: adding a home changes no other.
    rng = Random(f"{seed}/{index}")
    if kind == "vacant":
        load_w = vacant_w(rng, days, interval_s)
    else:
        load_w = household_w(rng, start_ms, days, interval_s, DAY_WH)
    if kind == "ev":
        car_w = ev_charging_w(rng, start_ms, days, interval_s)
        load_w = [house + car for house, car in zip(load_w, car_w, strict=True)]
    pv_w = [0] * len(load_w)
    peak_w = 0
    battery = None
    if kind in ("pv", "pv-battery"):
        peak_w = rng.randrange(3_000, 8_001, 250)
        pv_w = pv_series_w(
            rng, sky_share, start_ms, interval_s, peak_w, rng.choice((-1.5, 0.0, 0.0, 1.5))
        )
    if kind == "pv-battery":
        battery = make_battery(rng)
    return Home(
        name=home_name(index),
        kind=kind,
        interval_s=interval_s,
        start_ms=start_ms,
        load_w=load_w,
        pv_w=pv_w,
        battery=battery,
        max_export_w=export_limit_w(peak_w, battery),
        validator=index < VALIDATORS and peak_w > 0,
    )


def make_battery(rng: Random) -> BatterySpec:
    """A home battery of an ordinary size: 5 to 10 kWh, empty in two hours at full power."""
    capacity_wh = rng.randrange(5_000, 10_001, 500)
    power_w = capacity_wh // 2
    return BatterySpec(capacity_wh, power_w, power_w, 900, rng.randrange(200, 601, 50))


def export_limit_w(peak_w: int, battery: BatterySpec | None) -> int:
    """What a home may feed in: its PV and its battery together, within the connection [W]."""
    discharge_w = battery.max_discharge_w if battery else 0
    return min(CONNECTION_W, peak_w + discharge_w)
