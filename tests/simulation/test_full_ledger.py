"""The whole ledger survives what the simulator does to it; a broken rule of it does not."""

import os
import subprocess
import sys

import pytest

from ledger import light
from ledger.checkpoint import checkpoint_at
from ledger.contracts import keys
from ledger.execution import Ledger
from ledger.light import LightClient
from ledger.proofs import RowFact
from sim.consensus import CALM, Plan
from sim.consensus_full import combination, plan_of, play
from sim.consensus_ledger import LedgerNode, LedgerWorld

RUNS = ((16, 5), (28, 4), (42, 5), (80, 4), (85, 5))
"""Seeds of different mixes and actors, and how many validators."""


def calm_world(n):
    plan = Plan(seed=3, n=n, node=LedgerNode, faults=CALM, submit_s=13.0, end_s=25.0)
    return LedgerWorld(plan, joining=n == 5)


@pytest.mark.parametrize(("seed", "n"), RUNS)
def test_every_invariant_holds(seed, n):
    assert play(seed, n).violations == ()


def test_the_market_is_a_real_one():
    """Gates close, slots settle, epochs seal, seeds are revealed, false accusers are refused."""
    world = calm_world(5)
    assert world.run().violations == []
    done = world.watcher.codes
    for operation in (
        "register-address", "add-energy-asset", "add-financial-balance", "fund-rewards",
        "bid-offer", "receipt", "deploy-auction", "auction-bid", "cpf", "reveal-seed", "set-payee",
        "set-participation", "join-validator", "leave-validator",
    ):  # fmt: skip
        assert done.get(f"{operation} OK"), operation
    assert done["evidence NO_CONFLICT"] > 0
    assert done["evidence BAD_SIGNATURE"] > 0
    rows = [row for _, row in world.nodes[0].ledger.state.scan(keys.SLOT)]
    assert sum(row["settled"] for row in rows) >= 4
    assert sum(row["tradedWh"] for row in rows) > 0
    assert len(world.watcher.seals) >= 7


def test_a_validator_joins_and_a_founder_leaves():
    world = calm_world(5)
    founders = world.nodes[0].epoch.validators.ids
    assert world.run().violations == []
    members = world.nodes[0].epoch.validators.ids
    assert world.nodes[4].key.id in members
    assert set(founders) - set(members) == {founders[0]}


def test_the_light_client_is_led_on_and_refuses_much():
    world = calm_world(5)
    assert world.run().violations == []
    relay = world.watcher.relay
    assert len(relay.accepted) > 20
    assert relay.believed > 50
    assert relay.refused > 100
    assert relay.light.trust.validators.ids == world.nodes[0].epoch.validators.ids


def test_who_is_caught_is_banned_and_nobody_else():
    seed = next(one for one in range(90) if combination(one) == ("calm", "equivocator"))
    world = LedgerWorld(plan_of(seed, 4))
    assert world.run().violations == []
    assert world.watcher.bans == world.guilty
    assert len(world.guilty) == 1


def test_power_cuts_lose_blocks():
    seeds = [one for one in range(90) if combination(one)[0] == "crashes"]
    lost = 0
    for seed in seeds[:2]:
        world = LedgerWorld(plan_of(seed, 4))
        assert world.run().violations == []
        lost += world.watcher.blocks_lost
    assert lost > 0


def test_one_seed_is_one_run_whatever_python_hashes():
    """Also across processes: nothing in execution depends on the order of a set."""
    script = "from sim.consensus_full import play; print(play(8, 5).log_hash)"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    other = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert {play(8, 5).log_hash, play(8, 5).log_hash, other.stdout.strip()} == {
        other.stdout.strip()
    }


# --- Mutants --------------------------------------------------------------------------------------


class Mints(Ledger):
    """Every block brings the supervisor 1 µ¤, and its own count of deposits agrees."""

    def _apply(self, header, txs):
        account = keys.account(self.genesis.supervisor.address)
        row, totals = self.state.get(account), self.state.get(keys.TOTALS)
        self.state.put(account, {**row, "balanceUc": row["balanceUc"] + 1})
        self.state.put(keys.TOTALS, {**totals, "depositsUc": totals["depositsUc"] + 1})
        return super()._apply(header, txs)


class SellsNothing(Ledger):
    """Once settled, a slot's first position has sold 1 Wh more."""

    def _apply(self, header, txs):
        for key, row in list(self.state.scan(keys.SLOT)):
            if row["settled"]:
                number = int(key.removeprefix(keys.SLOT))
                for place, held in list(self.state.scan(keys.positions(number)))[:1]:
                    self.state.put(place, {**held, "soldWh": held["soldWh"] + 1})
        return super()._apply(header, txs)


class Personal(Ledger):
    """Its state depends on the machine."""

    machines = 0

    def __init__(self, *args):
        super().__init__(*args)
        Personal.machines += 1
        self._machine = Personal.machines

    def _apply(self, header, txs):
        if header.height > 3:
            self.state.put(keys.POOL, {"rewardsUc": 0, "machine": self._machine})
        return super()._apply(header, txs)


class Gullible(LightClient):
    """Takes any header of its validators for final."""

    def advance(self, anchor, now_ms, following=None):
        header = anchor.header
        self._check_newer(header)
        if header.seal:
            return super().advance(anchor, now_ms, following)
        self.trust = checkpoint_at(header, self.trust.validators, self.trust.firm_height)
        return True


class TakesRows(LightClient):
    """Does not follow the Merkle path of a row."""

    def check(self, proof, now_ms):
        fact = super().check(proof, now_ms) if not hasattr(proof, "value") else None
        if fact is not None:
            return fact
        header = proof.header
        value = light.verify.__globals__["canonical"].decode(proof.value) if proof.value else None
        return RowFact(
            header.chain_id, header.exec_height, header.height, header.time_ms, proof.key, value
        )


MUTANTS = [
    # what is broken, and within how many seeds (0, 1, 2 …) it is noticed
    ({"ledger": Mints}, 1),
    ({"ledger": SellsNothing}, 2),
    ({"ledger": Personal}, 1),
    ({"light": Gullible}, 2),
    ({"light": TakesRows}, 1),
]


@pytest.mark.parametrize(("broken", "seeds"), MUTANTS, ids=lambda one: str(one)[:40])
def test_a_broken_rule_is_noticed_within_so_many_seeds(broken, seeds):
    assert any(play(seed, 4, **broken).violations for seed in range(seeds))


def test_believing_accusers_is_noticed(monkeypatch):
    """Without a check of signatures Eve gets the innocent banned."""
    monkeypatch.setattr("ledger.contracts.evidence.types.verify_vote", lambda *_: True)
    assert any("is banned" in text for s in range(2) for text in play(s, 4).violations)


def test_executing_again_is_noticed(monkeypatch):
    """Without the judge's look at what was executed, a repeater stops the chain."""
    monkeypatch.setattr(Ledger, "check_admission", lambda *_: None)
    seeds = [one for one in range(90) if combination(one)[1] == "repeater"]
    assert any(play(seed, 4).violations for seed in seeds[:3])
