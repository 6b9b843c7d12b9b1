"""
Does trading pay? Days as the demo runs them, each home against its own day without a market.

A cent is what whole watt-hours, the noise of a forecast and a battery's steps of 180 s come to.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from value_day import PROFILE_START_MS, Day, run_day

from sim.homes import generate_homes
from sim.profiles import load_profiles

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
CENT_UC = 10_000


def check(day: Day, least_saved_uc: int) -> None:
    for row in day.bills:
        saved_uc, why = row["savedUc"], row["why"]
        print(f"{row['home']} {row['kind']:10} {saved_uc / 1e6:+8.4f} {why}")
    worst = day.worst
    assert worst["savedUc"] >= -CENT_UC, f"{worst['home']}: {worst['why']}"
    assert day.without_uc - day.with_uc >= least_saved_uc


@pytest.mark.parametrize("seed", [1, 2, 4, 10])
def test_made_up_homes_gain_and_nobody_is_worse_off_on_the_first_day(seed):
    check(run_day(generate_homes(10, seed, PROFILE_START_MS, 4)), 2_000_000)


@pytest.mark.parametrize(
    ("name", "seed", "least_saved_uc"),
    [
        ("citylearn_2022", 2, 800_000),
        ("citylearn_2022", 6, 2_000_000),
        ("lemlab_15houses", 1, 1_000_000),
        ("lemlab_15houses", 5, 1_000_000),
    ],
)
def test_measured_homes_gain_and_nobody_is_worse_off_on_the_first_day(name, seed, least_saved_uc):
    folder = DATA / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: measured profiles are not part of the project")
    check(run_day(load_profiles(folder, 10, seed, PROFILE_START_MS, 4)), least_saved_uc)
