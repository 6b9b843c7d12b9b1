"""
The linkage attack: it succeeds against fixed addresses, and against fresh ones no better than the
market's content allows; leaks that are planted are found by the attack that is for them.
"""

from __future__ import annotations

import json
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from typer.testing import CliRunner

from sim.cli import app
from sim.linkage import Month, Task, attack, restrict, study
from sim.linkage_measures import by_day, share
from sim.linkage_tracks import read
from sim.month import run_month
from sim.month_habits import FIXED, FRESH

HOMES, CHANCE = 6, 1 / 6
MARGIN = 0.15
"""Of a share of some fifty links: two standard errors."""
TRAIN, TEST = 11, 12


def planted(month, spoil):
    """The same month, where each home does something of its own: `spoil(track, drawn)`."""
    fresh = Month(replace(month.reading, tracks={}), month.truth)
    drawn = {home: Random(f"{home}").random() for home in sorted(month.truth.nets_wh)}
    for address, track in month.reading.tracks.items():
        home = month.truth.home_of.get(address)
        fresh.reading.tracks[address] = spoil(track, drawn[home]) if home else track
    return fresh


def with_delay(track, drawn):
    """A delay of the home's own in front of each receipt."""
    times = {name: dict(rows) for name, rows in track.times.items()}
    times["receipt_delay_ms"] = {
        slot: [60_000 * drawn + slot * 7919 % 400] for slot in times["receipt_delay_ms"]
    }
    return replace(track, times={**track.times, **times})


def with_limits(track, drawn):
    """The connection's own limit in the grant."""
    return replace(track, limits_wh=(round(drawn * 1_000), round(drawn * 1_000)))


def with_money(track, drawn):
    """An amount of the owner's own, withdrawn to each address."""
    return replace(track, withdrawn_uc=round(drawn * 100_000_000))


def test_fresh_addresses_are_linked_no_better_than_content_allows_and_leaks_are_found():
    train, test = (Month.of(*run_month(HOMES, 1, seed, FRESH, slots=40)) for seed in (TRAIN, TEST))
    linked = attack(train, [test], FRESH.address_slots).linked
    assert linked["combined"].mean <= linked["market"].mean + MARGIN
    for channel in ("timing", "grant"):
        assert linked[channel].mean <= CHANCE + MARGIN, channel
    leaks = {"timing": with_delay, "grant": with_limits, "money": with_money}
    for channel, spoil in leaks.items():
        spoiled = [planted(train, spoil), planted(test, spoil)]
        found = attack(spoiled[0], spoiled[1:], FRESH.address_slots, [channel, "combined"]).linked
        assert found[channel].mean > 0.9, channel
        assert found["combined"].mean > linked["market"].mean, channel


def test_fixed_addresses_are_linked_and_the_homes_profiles_are_read():
    train, test = (Month.of(*run_month(HOMES, 1, seed, FIXED, slots=20)) for seed in (TRAIN, TEST))
    result = attack(train, [test], 4)
    assert result.linked["combined"].mean > 0.95
    chained = result.followed["combined"]
    assert chained.attributed.mean > 0.95
    assert chained.correlation.mean > 0.95
    rows = study(train, [test], [3, HOMES], (1, 4))
    assert [(row["homes"], row["addressSlots"]) for row in rows] == [(3, 1), (3, 4), (6, 1), (6, 4)]
    assert len(restrict(test, 3).reading.tracks) == 3


def test_the_interval_is_of_days_not_of_slots():
    told = by_day([(0, 1.0), (1, 1.0), (96, 0.0), (97, 0.0)])
    assert told.mean == 0.5
    assert told.margin == pytest.approx(1.96 * np.std([1, 0], ddof=1) / 2**0.5)
    assert np.isnan(share([]).mean)


def test_a_missing_folder_is_one_line(tmp_path):
    done = CliRunner().invoke(app, ["linkage", "--observation", str(tmp_path)])
    assert done.exit_code != 0
    assert "genesis" in str(done.exception)


@pytest.mark.long
@pytest.mark.parametrize(
    ("channel", "leak"),
    [
        ("timing", {"own_delay": True}),
        ("timing", {"quantised": False, "delay_s": 0}),
        ("grant", {"same_limits": False}),
        ("cpf", {"cpf_apart": False}),
    ],
)
def test_a_leak_that_homes_really_have_is_found(channel, leak):
    """Each promise of fresh addresses is broken in turn, in the homes themselves."""
    habits = [FRESH, replace(FRESH, **leak)]
    linked = []
    for one in habits:
        tasks = [Task(homes=8, days=1, seed=seed, habits=one) for seed in (TRAIN, TEST)]
        months = [Month.of(*task.run()) for task in tasks]
        linked.append(attack(months[0], months[1:], FRESH.address_slots, [channel]).linked)
    assert linked[1][channel].mean > linked[0][channel].mean + 0.1


@pytest.mark.long
def test_the_command_prints_its_numbers_draws_them_and_attacks_what_it_kept(tmp_path):
    chart, out = tmp_path / "linkage.svg", tmp_path / "out"
    arguments = ["linkage", "--homes", "6", "--days", "2", "--train-days", "1", "--jobs", "1"]
    done = CliRunner().invoke(app, [*arguments, "--chart", str(chart), "--out", str(out), "--json"])
    found = json.loads(done.stdout)
    assert found["modes"]["fixed"]["linked"]["combined"]["mean"] > 0.95
    assert chart.read_text().startswith("<svg")
    kept = out / "fixed-1"
    again = CliRunner().invoke(app, [*arguments, "--observation", str(kept), "--json"])
    told = json.loads(again.stdout)
    assert [len(chain) for chain in told["chains"]] == [1] * 6
    assert read_homes(kept) == 6


def read_homes(folder):
    from sim.observation import load  # noqa: PLC0415

    return len(read(load(folder)).tracks)
