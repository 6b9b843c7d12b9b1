"""The savings benchmark on a made-up home: the order of the ways, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench.savings import measure, totals
from bench.savings_data import House, Tariff, houses, tariffs
from hem.controller.battery import Battery

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
DAYS, HOURS = 14, 14 * 24


def made_up():
    """Little sun in a dark week, a dear evening, a load that is not the same every day."""
    rng = np.random.default_rng(5)
    hour = np.arange(HOURS) % 24
    load_wh = np.where((hour >= 17) & (hour < 22), 1_200, 300) + rng.integers(0, 300, HOURS)
    sun_wh = np.maximum(np.sin((hour - 6) / 12 * np.pi), 0) * np.repeat(
        rng.uniform(200, 1_200, DAYS), 24
    )
    return House(
        "made-up", "citylearn", 3_600, 400_000, load_wh, sun_wh.astype(np.int64),
        Battery(6_400, 5_000, 5_000, soc_min_permille=0), False, 0,
    )  # fmt: skip


def dear_evenings():
    hour = np.arange(HOURS) % 24
    imports = np.where((hour >= 17) & (hour < 21), 500_000, 220_000)
    return Tariff("time of use", imports, np.full(HOURS, 80_000), day_ahead=False, phase=0)


@pytest.fixture(scope="module")
def case():
    return measure(made_up(), dear_evenings())


def test_nobody_is_better_than_who_knows_everything(case):
    costs = {way: run.cost_uc for way, run in case.runs.items()}
    assert min(costs, key=costs.get) == "perfect"
    assert costs["planner"] < costs["rule"] < costs["none"]


def test_the_planner_gets_most_of_what_there_is(case):
    (total,) = totals([case])
    assert 850 <= total.share_permille("planner") <= 1_000
    assert total.share_permille("rule") < total.share_permille("planner")


def test_a_battery_that_is_not_there_does_nothing(case):
    assert case.runs["none"].switches_per_day == 0
    assert case.saving_uc("none") == 0


def test_prices_of_tomorrow_are_known_from_one_o_clock_on():
    prices = np.arange(96, dtype=np.int64)
    tariff = Tariff("day-ahead", prices, prices, day_ahead=True, phase=0)
    at_noon, _ = tariff.known(24 + 13, 40, 24)  # it is 12:xx
    assert at_noon[:11].tolist() == list(range(37, 48))
    assert at_noon[11:].tolist() == [*range(24, 48), *range(24, 29)]
    later, _ = tariff.known(24 + 14, 40, 24)  # it is 13:xx
    assert later[:34].tolist() == list(range(38, 72))
    assert later[34:].tolist() == list(range(48, 54))


def test_a_missing_folder_is_one_line():
    command = [sys.executable, "-m", "bench.savings", "--data", "/nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("bench-savings: /nowhere/citylearn_2022: no such folder")
    assert len(done.stderr.splitlines()) == 1


def test_measured_homes_are_read_with_their_prices():
    if not (DATA / "citylearn_2022").is_dir():
        pytest.skip(f"{DATA / 'citylearn_2022'} is not there: measured homes are not part of this")
    every = houses(DATA)
    assert {house.source for house in every} == {"citylearn", "lemlab"}
    for house in (every[0], every[-1]):
        for tariff in tariffs(DATA, house):
            assert len(tariff.imports) == len(tariff.exports) == len(house.load_wh)
            assert (tariff.exports <= tariff.imports).all()
    lemlab = every[-1]
    assert 2_500 < lemlab.load_wh.sum() / 45 * 365 / 1000 < 4_500  # kWh a year, as its name says
