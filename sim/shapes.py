"""
Made-up but plausible days: household load, clear-sky PV and clouds.

The feeder lies at 50° N on the meridian of its own clock: solar noon is 12:00 UTC and there is no
daylight saving time. Series have one value for each interval, mean power in whole watts.

Sources: solar declination after Cooper (1969); clear-sky irradiance after Haurwitz (1945), as in
pvlib's `clearsky.haurwitz`. Household figures are ordinary nameplate values, not measurements.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from random import Random

LATITUDE_RAD = math.radians(50.0)
DAY_S = 86_400
MS_PER_DAY = DAY_S * 1000
PERFORMANCE_RATIO = 0.85
"""What wiring, inverter and heat leave of the modules' power."""
CLOUD_TIME_CONSTANT_S = 2_700.0
"""How long a cloudy or a clear spell lasts."""
LOCAL_TIME_CONSTANT_S = 600.0
CLOUD_FLOOR = 0.12
"""Share of the light that passes an overcast sky."""


def household_w(
    rng: Random, start_ms: int, days: int, interval_s: int, day_wh: tuple[int, int]
) -> list[int]:
    """
    The load of an inhabited house.

    Standby, a refrigerator, morning and evening peaks, cooking and now and then a washing machine;
    scaled day by day to a consumption drawn from `day_wh` [Wh].
    """
    habits = _Habits(rng)
    per_day = DAY_S // interval_s
    series: list[int] = []
    for _ in range(days):
        day = [0.0] * per_day
        for k in range(per_day):
            hour = (start_ms // 1000 % DAY_S + k * interval_s) % DAY_S / 3600
            day[k] = habits.calm_w(hour) * rng.uniform(0.85, 1.15)
        _add_fridge(day, rng, interval_s)
        offset_h = start_ms // 1000 % DAY_S / 3600
        for hour, minutes, power_w in habits.events(rng):
            _add(day, (hour - offset_h) % 24, minutes / 60, power_w, interval_s)
        wanted_wh = rng.uniform(*day_wh)
        factor = wanted_wh / (sum(day) * interval_s / 3600)
        series += [round(power * factor) for power in day]
    return series


def vacant_w(rng: Random, days: int, interval_s: int) -> list[int]:
    """The load of an empty house: its refrigerator and a few watts of standby."""
    standby_w = rng.uniform(8, 20)
    series = [standby_w] * (days * DAY_S // interval_s)
    _add_fridge(series, rng, interval_s)
    return [round(power) for power in series]


def ev_charging_w(rng: Random, start_ms: int, days: int, interval_s: int) -> list[int]:
    """Evening charging of a car: 7.4 or 11 kW until the day's driving is back in the battery."""
    power_w = rng.choice((7_360, 11_000))
    per_day = DAY_S // interval_s
    series: list[float] = []
    for _ in range(days):
        day = [0.0] * per_day
        hour = rng.uniform(17.5, 20.0) - start_ms // 1000 % DAY_S / 3600
        _add(day, hour % 24, rng.uniform(7_000, 15_000) / power_w, power_w, interval_s)
        series += day
    return [round(power) for power in series]


def clouds(rng: Random, count: int, interval_s: int, time_constant_s: float) -> list[float]:
    """A first-order autoregressive process of mean 0 and variance 1, one value an interval."""
    keep = math.exp(-interval_s / time_constant_s)
    spread = math.sqrt(1 - keep * keep)
    value = rng.gauss(0, 1)
    series = []
    for _ in range(count):
        series.append(value)
        value = keep * value + rng.gauss(0, spread)
    return series


def sky(rng: Random, days: int, interval_s: int) -> list[float]:
    """What the clouds over the feeder leave of the light, 0…1, the same for all roofs."""
    mood = rng.uniform(0.6, 1.2)  # at 1.2 the days are mostly blue, at 0.6 mixed
    noise = clouds(rng, days * DAY_S // interval_s, interval_s, CLOUD_TIME_CONSTANT_S)
    return [min(1.0, max(CLOUD_FLOOR, mood + 0.3 * value)) for value in noise]


def pv_series_w(
    rng: Random, sky_share: list[float], start_ms: int, interval_s: int, peak_w: int, turn_h: float
) -> list[int]:
    """
    PV output under a shared sky with a little weather of its own.

    Args:
        sky_share: of `sky`, one value an interval
        peak_w: nominal power of the modules [W]
        turn_h: hours by which the roof is turned: its curve comes earlier (−, east) or later
    """
    own = clouds(rng, len(sky_share), interval_s, LOCAL_TIME_CONSTANT_S)
    series = []
    for k, (share, noise) in enumerate(zip(sky_share, own, strict=True)):
        middle_ms = start_ms + k * interval_s * 1000 + interval_s * 500
        if sun_sine(middle_ms) <= 0:
            series.append(0)
            continue
        clear = clear_sky_w_m2(sun_sine(middle_ms - round(turn_h * 3_600_000))) / 1000
        local = min(1.0, max(CLOUD_FLOOR, share * (1 + 0.06 * noise)))
        series.append(min(peak_w, round(peak_w * PERFORMANCE_RATIO * clear * local)))
    return series


def sun_sine(time_ms: int) -> float:
    """Sine of the sun's elevation at 50° N; negative at night."""
    day = datetime.fromtimestamp(time_ms / 1000, UTC).timetuple().tm_yday
    declination = math.radians(23.45) * math.sin(2 * math.pi * (284 + day) / 365)
    hour_angle = 2 * math.pi * (time_ms % MS_PER_DAY / MS_PER_DAY - 0.5)
    return math.sin(LATITUDE_RAD) * math.sin(declination) + math.cos(LATITUDE_RAD) * math.cos(
        declination
    ) * math.cos(hour_angle)


def clear_sky_w_m2(sine: float) -> float:
    """Global irradiance on the level under a clear sky: 1098 sin α exp(−0.057 / sin α)."""
    return 1098 * sine * math.exp(-0.057 / sine) if sine > 0 else 0.0


class _Habits:
    """What is the same every day in one house."""

    def __init__(self, rng: Random) -> None:
        self.standby_w = rng.uniform(60, 150)
        self.morning_h = rng.uniform(6.3, 8.0)
        self.morning_w = rng.uniform(120, 350)
        self.evening_h = rng.uniform(18.5, 21.0)
        self.evening_w = rng.uniform(250, 600)
        self.day_w = rng.uniform(30, 200)
        """Higher where somebody is at home."""

    def calm_w(self, hour: float) -> float:
        """Power without any appliance running for a time."""
        return (
            self.standby_w
            + self.morning_w * _bell(hour, self.morning_h, 0.8)
            + self.evening_w * _bell(hour, self.evening_h, 1.8)
            + self.day_w * _bell(hour, 13.0, 3.5)
        )

    def events(self, rng: Random) -> list[tuple[float, float, float]]:
        """The day's appliances: (hour, minutes, watts)."""
        found = [
            (self.morning_h + rng.uniform(-0.3, 0.3), rng.uniform(5, 12), rng.uniform(1500, 2200)),
            (self.evening_h - rng.uniform(0.3, 1.2), rng.uniform(25, 50), rng.uniform(1300, 2600)),
        ]
        if rng.random() < 0.5:
            found.append((rng.uniform(11.8, 13.2), rng.uniform(15, 35), rng.uniform(1000, 2200)))
        if rng.random() < 0.6:  # a dishwasher or a washing machine heats, then turns
            start_h = rng.uniform(9.0, 21.0)
            found += [(start_h, 20, 2000.0), (start_h + 1 / 3, 60, 150.0)]
        return found


def _bell(hour: float, centre: float, width: float) -> float:
    return math.exp(-(((hour - centre) / width) ** 2) / 2)


def _add_fridge(series: list[float], rng: Random, interval_s: int) -> None:
    """A compressor that runs for about a third of each cycle."""
    power_w, cycle_s, running = rng.uniform(70, 110), rng.uniform(2700, 4500), 0.35
    offset_s = rng.uniform(0, cycle_s)
    for k in range(len(series)):
        if (k * interval_s + offset_s) % cycle_s < running * cycle_s:
            series[k] += power_w


def _add(day: list[float], hour: float, hours: float, power_w: float, interval_s: int) -> None:
    """Add a block of power; intervals covered in part get their share, the end of day cuts it."""
    start_s, end_s = hour * 3600, (hour + hours) * 3600
    for k in range(int(start_s // interval_s), min(len(day), int(end_s // interval_s) + 1)):
        covered_s = min(end_s, (k + 1) * interval_s) - max(start_s, k * interval_s)
        day[k] += power_w * max(covered_s, 0) / interval_s
