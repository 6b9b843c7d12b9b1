"""`hearthgrid sim`: a seed is a schedule, a violation is an exit code."""

import json
from concurrent.futures import Future

import pytest
from typer.testing import CliRunner

from sim import schedules
from sim.cli import app
from sim.consensus import World
from sim.schedules import ACTORS, MIXES, combination, plan_of


def invoke(*words):
    return CliRunner().invoke(app, ["sim", *words])


def test_a_seed_prints_the_same_hash_twice():
    lines = invoke("--seed", "42").stdout.splitlines()
    first, again = (line.split()[-1] for line in lines if line.startswith(("event log", "again")))
    assert first == again
    assert len(first) == 64


def test_many_seeds_are_counted_and_pass():
    result = invoke("--seeds", "2", "--json")
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert (told["runs"], told["violations"], told["failed"]) == (4, 0, [])
    assert [row["validators"] for row in told["rows"]] == [4, 7]
    assert told["views"] >= told["blocks"] > 0


@pytest.mark.parametrize("words", [[], ["--seed", "1", "--seeds", "2"], ["--seeds", "0"]])
def test_a_mistake_has_exit_code_2(words):
    assert invoke(*words).exit_code == 2


def test_a_violation_is_exit_code_1_and_says_how_to_see_it_again(monkeypatch):
    def break_down(self):
        raise AssertionError("broken")

    monkeypatch.setattr(World, "run", break_down)
    monkeypatch.setattr(schedules, "ProcessPoolExecutor", InThisProcess)
    result = invoke("--seeds", "1")
    assert result.exit_code == 1
    assert "broken" in result.stdout
    assert "hearthgrid sim --seed 0 --validators 4" in result.stdout
    replayed = invoke("--seed", "0", "--json")
    assert replayed.exit_code == 1
    assert json.loads(replayed.stdout)["violations"] == ["AssertionError: broken"]


def test_as_many_seeds_as_combinations_are_every_combination():
    combinations = {combination(seed) for seed in range(len(MIXES) * len(ACTORS))}
    assert len(combinations) == len(MIXES) * len(ACTORS)


@pytest.mark.parametrize("n", [1, 3, 4, 7, 10])
def test_never_more_byzantine_validators_than_the_protocol_allows(n):
    for seed in range(len(MIXES) * len(ACTORS)):
        plan = plan_of(seed, n)
        assert len({*plan.byzantine, *plan.twins}) <= (n - 1) // 3


class InThisProcess:
    """A pool that has no processes, so that what a test replaces is replaced."""

    def __init__(self, processes):
        assert processes >= 2

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def submit(self, function, *args):
        future = Future()
        future.set_result(function(*args))
        return future

    def shutdown(self, **_):
        pass
