"""Every paper's example comes out as the paper says; another outcome is told, and exits with 1."""

import asyncio
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import sim.scenarios
from sim.cli import app
from sim.scenario_cli import play, with_advisory
from sim.scenarios import Scenario, ScenarioError, expect, scenarios
from sim.stage import StageError, stage


@pytest.fixture
def told():
    lines = []
    return lines


async def outcome_of(name, folder, told):
    return await play(scenarios()[name], folder, told.append)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "winner", "paid_uc"), [("etse-updated", "n3", 27_360), ("etse-banned", "n5", 31_680)]
)
async def test_etse_has_both_endings_and_says_what_is_not_shown(
    name, winner, paid_uc, tmp_path, told
):
    outcome = await outcome_of(name, tmp_path, told)
    assert (outcome["winner"], outcome["energyWh"], outcome["storedAh"]) == (winner, 576, 60)
    n1 = outcome["balances"]["n1"]
    assert n1["beforeUc"] - n1["afterUc"] == paid_uc
    assert any("BANNED" in line for line in told)
    assert any(line.startswith("Not shown: ") for line in told)


@pytest.mark.slow
async def test_a_vulnerable_meter_is_out_within_a_slot_updated_attested_and_back(tmp_path, told):
    """Real gateway process, repository over HTTP, meter over Modbus; nobody sets a version."""
    outcome = await outcome_of("vulnerable-meter", tmp_path, told)
    assert (outcome["winner"], outcome["updatedTo"], outcome["runs"]) == ("n3", "1.1", "1.1")
    assert outcome["banSlots"] <= 1 and outcome["banSeconds"] < 60
    assert any("attested it to the CSM-DB" in line for line in told)


@pytest.mark.slow
async def test_without_a_patch_a_vulnerable_meter_stays_out_and_the_runner_up_wins(tmp_path, told):
    scenario = with_advisory(scenarios()["vulnerable-meter"], None, patch=False)
    outcome = await play(scenario, tmp_path, told.append)
    assert (outcome["winner"], outcome["updatedTo"], outcome["runs"]) == ("n5", "", "0.1")
    assert any("No fixed version is published yet" in line for line in told)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "fixed"),
    [
        ("icsa-23-026-07", ""),  # all versions
        ("icsa-19-281-01", ""),  # end of life
        ("icsa-18-240-03", "2.5.4"),
        ("icsa-17-061-02", "3.03 BN 830"),
    ],
)
async def test_a_published_advisory_keeps_its_meter_out_until_it_is_fixed(
    name, fixed, tmp_path, told
):
    file = Path(__file__).parents[3] / f"shared/data/csaf_advisories/{name}.json"
    if not file.is_file():
        pytest.skip(f"{name} is not beside the project (../shared/data/csaf_advisories)")
    scenario = with_advisory(scenarios()["vulnerable-meter"], file, patch=True)
    outcome = await play(scenario, tmp_path, told.append)
    assert (outcome["advisory"], outcome["updatedTo"]) == (name.upper(), fixed)
    assert outcome["winner"] == ("n3" if fixed else "n5")
    assert outcome["runs"] == (fixed or outcome["make"].rpartition(" ")[2])


@pytest.mark.slow
async def test_tmis_aggregator_takes_the_cheapest_and_pays_after_delivery(tmp_path, told):
    outcome = await outcome_of("tmi-aggregator-auction", tmp_path, told)
    assert outcome["taken"] == [["p2", 500, 120_000], ["p4", 800, 150_000], ["p1", 200, 200_000]]
    order = [
        told.index(next(line for line in told if line.startswith(start)))
        for start in ("The slot is over, nobody has been paid", "Every meter", "Settled")
    ]
    assert order == sorted(order)


@pytest.mark.slow
async def test_petras_partial_trade_leaves_the_rest_with_its_owner(tmp_path, told):
    outcome = await outcome_of("petra-sequence", tmp_path, told)
    assert outcome["sellerLeftWh"] == [300, 200, 200, 300]
    assert (outcome["tradedWh"], outcome["amountUc"]) == (200, 40_000)
    assert outcome["buyerReturnedUc"] == 960_000


@pytest.mark.slow
async def test_petras_case_study_closes_every_trade(tmp_path, told):
    outcome = await outcome_of("petra-case-study", tmp_path, told)
    assert outcome["trades"] == 98 and len(outcome["tradedWhBySlot"]) == 14
    assert told[0].startswith("14:15") and told[13].startswith("17:30")
    assert outcome["p90Seconds"] < 23
    changes = [row["afterUc"] - row["beforeUc"] for row in outcome["balances"].values()]
    assert sum(changes) == 0


@pytest.mark.slow
async def test_a_stage_does_what_is_due_when_its_clock_is_moved_and_says_what_failed(tmp_path):
    async with stage(tmp_path) as s:
        home = await s.home("ann", production_wh=500)
        bid = {"op": "bid-offer", "side": "sell", "slot": s.slot0, "energyWh": 600,
               "priceUcPerKwh": 1}  # fmt: skip
        assert (await home.submit(bid))["codes"] == ["INSUFFICIENT_ASSET"]
        assert (await home.submit({**bid, "energyWh": 500}))["codes"] == ["OK"]
        await s.to_slot(s.slot0)
        assert [event["slot"] for event in s.events("cleared")] == [s.slot0]
        row = s.state(f"account/{home.id}")
        assert await home.balance() == (row["balanceUc"], row["lockedUc"])
        assert s.name_of(home.id) == "ann"
        with pytest.raises(StageError, match="not final"):
            home.nonce += 7
            await home.submit(bid, timeout_s=0.3)


def test_another_outcome_than_the_papers_is_told_with_both_values_and_exits_with_1(monkeypatch):
    async def wrong(_stage, tell):
        tell("a line")
        expect("the winner", "n3", "n5")

    found = {"x": Scenario("x", "a paper", "a claim", wrong)}
    monkeypatch.setattr(sim.scenarios, "scenarios", lambda: found)
    result = CliRunner().invoke(app, ["scenario", "run", "x", "--json"])
    assert result.exit_code == 1
    said = json.loads(result.stdout.splitlines()[-1])
    assert not said["passed"] and "'n3'" in said["error"] and "'n5'" in said["error"]


def test_the_list_names_every_scenario_with_its_paper():
    result = CliRunner().invoke(app, ["scenario", "list", "--json"])
    rows = json.loads(result.stdout)
    names = {row["name"] for row in rows}
    assert names >= {
        "etse-updated", "etse-banned", "tmi-aggregator-auction", "petra-sequence",
        "petra-case-study",
    }  # fmt: skip
    assert all(row["paper"] and row["claim"].endswith(".") for row in rows)
    assert CliRunner().invoke(app, ["scenario", "run", "nothing"]).exit_code == 2


def test_expect_is_silent_when_both_agree():
    expect("anything", 1, 1)
    with pytest.raises(ScenarioError):
        expect("anything", 1, 2)
    assert asyncio.iscoroutinefunction(scenarios()["petra-sequence"].play)
