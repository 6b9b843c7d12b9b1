"""Who leads: what TMI's raw rule gives to cheats, and what ours leaves them."""

import json

import pytest
from typer.testing import CliRunner

from ledger.genesis import Poe
from sim.cli import app
from sim.poe_days import (
    ALONE,
    HOMES,
    NEIGHBOURS,
    Role,
    make_homes,
    play,
    shares,
    tmi_cpf,
    try_alone,
)

DAYS = 3
EQUAL = 100 / (len(NEIGHBOURS) + 1)


@pytest.fixture(scope="module")
def alone():
    return {role: try_alone(role, DAYS, Poe(), seed=1) for role in ALONE}


@pytest.mark.parametrize("role", [Role.ZERO_ZERO, Role.KWH, Role.FAKE_P, Role.VACANT])
def test_under_the_raw_rule_who_reports_or_uses_nothing_leads_almost_always(alone, role):
    assert alone[role]["TMI, Wh"] > 75


@pytest.mark.parametrize("role", [Role.FAKE_P, Role.VACANT])
def test_without_production_no_home_has_more_than_an_equal_share(alone, role):
    assert max(alone[role]["strict"], alone[role]["smooth"]) < EQUAL


@pytest.mark.parametrize("role", [Role.ZERO_ZERO, Role.KWH])
def test_what_a_home_reports_does_not_matter_only_what_its_meter_signs(alone, role):
    """It has PV, and leads as a neighbour with the same PV would."""
    assert alone[role]["smooth"] < 1.5 * EQUAL
    homes = make_homes(1, DAYS, [*NEIGHBOURS, Role.PROSUMER])
    honest = {led.rule: shares(homes, led) for led in play(homes, Poe())}
    total = honest["smooth"][Role.PROSUMER]
    assert alone[role]["smooth"] <= total / 7 + 5


def test_battery_round_trips_bring_less_than_an_equal_share(alone):
    assert alone[Role.BATTERY_CYCLER]["smooth"] < EQUAL


@pytest.mark.parametrize("role", ALONE)
def test_no_cheat_has_more_than_a_quarter_of_the_turns(alone, role):
    """The orders of 30 blocks are cut from rounds of more, so there is a block of rounding."""
    assert alone[role]["smooth"] <= 25 + 100 / 30


def test_the_raw_exponential_of_watt_hours_is_zero_for_an_ordinary_home():
    assert tmi_cpf(2000, 1200, 1) == 0.0
    assert tmi_cpf(2000, 1200, 1000) > 0.4
    assert tmi_cpf(0, 0, 1) == 1.0


def test_every_block_has_a_leader_and_the_same_seed_gives_the_same():
    homes = make_homes(2, 1)
    first, again = play(homes, Poe(), 2), play(make_homes(2, 1), Poe(), 2)
    assert first == again
    assert [home.role for home in homes] == list(HOMES)
    for led in first:
        assert sum(shares(homes, led).values()) == pytest.approx(100)


def test_the_command_prints_numbers_and_draws_them(tmp_path):
    chart = tmp_path / "poe.svg"
    words = ["poe", "--days", "1", "--json", "--chart", str(chart)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert [row["role"] for row in told["alone"]] == [str(role) for role in ALONE]
    assert len(told["rules"]) == len(told["alone"][0]["percent"]) == 5
    drawn = chart.read_text()
    assert drawn.startswith("<svg") and all(rule in drawn for rule in told["rules"])
    assert "Alone among" in CliRunner().invoke(app, ["poe", "--days", "1"]).stdout
