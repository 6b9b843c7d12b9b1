"""Nazari's and Baggio's examples on a real market: broker, four validators, meters."""

import re
from pathlib import Path

import msgspec
import pytest

from ledger.genesis import Feeder
from sim.scenarios import ScenarioError, balances, nazari, scenarios
from sim.stage import stage


async def play(name, folder, **changes):
    """Play a scenario; its outcome and the lines that it told."""
    one, told = scenarios()[name], []
    async with stage(folder, **{**one.genesis, **changes}) as running:
        return await one.play(running, told.append), told


async def test_nazaris_five_scenarios_end_with_the_papers_balances(tmp_path):
    outcome, told = await play("nazari", tmp_path)
    assert outcome["changesUc"] == {
        "1 delivered": {"seller": 149_000, "buyer": -151_000, "supervisor": 2_000},
        "2 given up before the deadline": {"seller": -16_000, "buyer": 0, "supervisor": 16_000},
        "2 given up after the deadline": {"seller": -1_000, "buyer": 0, "supervisor": 1_000},
        "3 accepted too late": {"seller": -1_000, "buyer": 0, "supervisor": 1_000},
        "4 delivered too late": {"seller": -16_000, "buyer": -1_000, "supervisor": 17_000},
        "5 more than k penalties": {"seller": -32_000, "buyer": -2_000, "supervisor": 34_000},
    }
    assert sum("before" in line and "after" in line for line in told) >= 6
    assert any("100,000,000        100,149,000" in line for line in told)


async def test_a_ledger_with_another_rule_fails_nazaris_scenario(tmp_path):
    other = msgspec.structs.replace(nazari.RULES, penalty_permille=500)
    with pytest.raises(ScenarioError, match="changes of the balances"):
        await play("nazari", tmp_path, escrow=other)


@pytest.mark.parametrize("after", [(101, 0), (105, 1)])
def test_a_balance_that_is_not_the_rules_is_an_error(after):
    with pytest.raises(ScenarioError):
        balances.compare(lambda _: None, {"ann": (100, 0)}, {"ann": after}, {"ann": 5})


async def test_baggios_six_nodes_schedule_deviate_and_keep_the_feeders_rating(tmp_path):
    outcome, told = await play("baggio", tmp_path)
    assert outcome["takenWh"]["second"] == {
        "house-1": 300, "house-2": 200, "ev": 0, "pv-1": -1_389, "pv-2": -1_111,
    }  # fmt: skip
    assert outcome["changesUc"] == {
        "house-1": -1_200 * 190,
        "house-2": -800 * 190 - 250 * 400,
        "ev": -1_800 * 190 + 400 * 80,
        "pv-1": 2_589 * 190,
        "pv-2": 2_911 * 190 - 300 * 400,
        "supervisor": -135_000,
    }
    assert sum(line.split()[:1] == ["ev"] for line in told) == 3, "a table per interval, and all"


async def test_a_feeder_that_carries_all_fails_baggios_scenario(tmp_path):
    with pytest.raises(ScenarioError, match="through the feeder"):
        await play("baggio", tmp_path, feeder=Feeder())


async def test_baggios_supervisor_closes_an_interconnection_and_adjusts(tmp_path):
    outcome, _ = await play("baggio-zones", tmp_path)
    assert outcome["zones"]["split"] == {
        "north": (1_500, 212_500, True), "south": (-1_800, 305_000, False),
    }  # fmt: skip
    assert outcome["zones"]["adjusted"]["north"][0] == 0, "nothing flows through it"
    assert sum(outcome["changesUc"].values()) == 0
    assert outcome["changesUc"]["pv-1"] == 1_200 * (212_500 - 375_000) // 1_000


def test_the_page_lists_every_scenario_and_no_other():
    page = (Path(__file__).parents[2] / "docs/how-to/scenarios.md").read_text()
    assert re.findall(r"^\| `([a-z0-9-]+)`", page, re.MULTILINE) == list(scenarios())
