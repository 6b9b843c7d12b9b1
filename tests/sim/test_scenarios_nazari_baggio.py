"""Nazari's and Baggio's examples on a real market: broker, four validators, meters."""

import msgspec
import pytest

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
