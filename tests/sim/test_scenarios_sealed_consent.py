"""A front-runner before sealed and open bids, and a rule that changes by consent."""

import re

import msgspec
import pytest

from ledger.contracts import flexibility
from ledger.genesis import Governance
from sim.scenarios import ScenarioError, consent, scenarios, sealed_auction
from sim.stage import stage


async def play(name, folder, **changes):
    """Play a scenario; its outcome and the lines that it told."""
    one, told = scenarios()[name], []
    async with stage(folder, **{**one.genesis, **changes}) as running:
        return await one.play(running, told.append), told


def awards_of(cleared):
    return [
        (one["address"], one["side"], one["energyWh"], one["priceUcPerKwh"])
        for one in cleared["awards"]
    ]


@pytest.mark.slow
async def test_a_front_runner_wins_open_auctions_and_is_blind_in_sealed_ones(tmp_path):
    outcome, told = await play("sealed-auction", tmp_path)
    assert outcome["askedUcPerKwh"] == {
        "open": {"ann": 150_000, "bob": 150_000, "eve": 149_999},
        "sealed": {"ann": 150_000, "bob": 150_000, "eve": 170_000},
    }
    assert awards_of(outcome["cleared"]["open"]) == [
        ("house", "buy", 600, 149_999), ("eve", "sell", 600, 149_999),
    ]  # fmt: skip
    assert awards_of(outcome["cleared"]["sealed"]) == [
        ("house", "buy", 600, 150_000), ("ann", "sell", 600, 150_000),
    ]  # fmt: skip
    assert outcome["changesUc"]["sealed"] == {
        "house": -90_000, "ann": 90_000, "bob": 0, "dan": -100_000, "eve": 0,
        "supervisor": 100_000,
    }  # fmt: skip
    assert outcome["changesUc"]["open"] == {
        "house": -89_999, "ann": 0, "bob": 0, "dan": 0, "eve": 89_999, "supervisor": 0,
    }  # fmt: skip
    assert sum("before" in line and "after" in line for line in told) == 3, "balances of each"
    sides = [line.split() for line in told[-3:]]
    assert sides[-1] == ["eve", "149,999", "600", "89,999", "170,000", "0", "0"]


@pytest.mark.slow
async def test_the_order_of_reveals_changes_nothing_in_the_scenario(tmp_path):
    outcome, told = await play("sealed-auction", tmp_path)
    assert outcome["cleared"]["sealed"] == outcome["cleared"]["again"]
    assert outcome["changesUc"]["sealed"] == outcome["changesUc"]["again"]
    orders = [line for line in told if line.startswith("  revealed by")]
    assert len(orders) == len(set(orders)) == 2
    commitments = [line for line in told if re.match(r"    \w+ +commit-bid", line)]
    assert len(commitments) == 8
    assert not any(re.search(r"buy|sell|Wh|µ¤", line) for line in commitments)


@pytest.mark.slow
async def test_another_deposit_than_the_rules_fails_the_sealed_auction(tmp_path):
    other = msgspec.structs.replace(sealed_auction.RULES, bid_deposit_uc=50_000)
    with pytest.raises(ScenarioError, match="the lost deposit"):
        await play("sealed-auction", tmp_path, auctions=other)


@pytest.mark.slow
async def test_a_front_runner_who_guesses_right_fails_the_sealed_auction(tmp_path, monkeypatch):
    monkeypatch.setattr(sealed_auction, "HOPED_FOR", 149_999)
    with pytest.raises(ScenarioError, match="changes of the balances"):
        await play("sealed-auction", tmp_path)


@pytest.mark.slow
async def test_a_ledger_that_goes_by_the_order_of_reveals_fails_it(tmp_path, monkeypatch):
    admit = flexibility.add_bid

    def by_reveal(ctx, *order):
        *bid, committed = order
        return admit(ctx, *bid, ctx.seq if committed is not None else None)

    monkeypatch.setattr(flexibility, "add_bid", by_reveal)
    with pytest.raises(ScenarioError, match="'bob': 90000"):
        await play("sealed-auction", tmp_path)


@pytest.mark.slow
async def test_a_price_changes_by_the_consent_of_all_and_from_its_slot_on(tmp_path):
    outcome, told = await play("consent", tmp_path)
    active = outcome["activationSlot"]
    assert outcome["enacted"] == [[400_000, active]] and outcome["lapsed"] == [True]
    assert outcome["settledUc"] == {"before": -60_000, "after": -80_000}
    assert outcome["changesUc"] == {
        "ann": 160_000, "bob": -300_000, "cleo": 0, "dan": 0, "supervisor": 140_000,
    }  # fmt: skip
    rows = [line.split() for line in told if line.endswith(" of 4")]
    assert [(row[0], row[-6], row[-3]) for row in rows] == [
        ("the", "0", "0"), ("the", "0", "0"), ("3", "3", "0"), ("ann", "3", "1"),
        ("bob", "3", "2"), ("ann", "0", "1"), ("bob", "0", "2"),
    ]  # fmt: skip


@pytest.mark.slow
async def test_a_rule_that_asks_one_home_only_fails_the_consent(tmp_path):
    with pytest.raises(ScenarioError, match="too few homes"):
        await play("consent", tmp_path, governance=Governance(participants_permille=250))


@pytest.mark.slow
async def test_two_of_four_validators_are_not_enough(tmp_path, monkeypatch):
    monkeypatch.setattr(consent, "WILLING", 2)
    with pytest.raises(ScenarioError, match="rules with enough homes"):
        await play("consent", tmp_path)


@pytest.mark.slow
async def test_operators_who_agree_to_anything_fail_the_consent(tmp_path, monkeypatch):
    generous = consent.APPROVALS.replace(f"{consent.NEW}", f"{consent.TOO_MUCH}")
    monkeypatch.setattr(consent, "APPROVALS", generous)
    with pytest.raises(ScenarioError, match="validators for too high a price"):
        await play("consent", tmp_path)


@pytest.mark.slow
async def test_a_row_that_is_not_there_is_none(tmp_path):
    async with stage(tmp_path) as s:
        assert s.state("account/nobody") is None
