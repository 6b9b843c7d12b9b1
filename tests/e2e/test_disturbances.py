"""Real processes, disturbed in the middle of a run: the day goes on and the audit passes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.patience import PATIENCE_S

from ledger.store import LedgerStore
from sim.demo import Demo, DemoOptions
from sim.finish import finish

HOMES = 5
SLOTS = 8
NOON = 11
SPEED = 450.0


@contextmanager
def running_day(out: Path) -> Iterator[Demo]:
    """Five homes around noon, already trading."""
    demo = Demo(
        DemoOptions(out=out, homes=HOMES, speed=SPEED, seed=3, slots=SLOTS, start_hour=NOON)
    )
    try:
        for _ in demo.start():
            pass
        demo.go()
        yield demo
    finally:
        demo.stop()


def run_until(demo: Demo, share: float) -> None:
    """Let the day pass until a share of it is over."""
    for step in demo.run():
        if step.done >= share:
            return


def audited(demo: Demo) -> dict:
    """Run the rest of the day, stop, audit; nothing of any home and slot may be lost."""
    run_until(demo, 2.0)
    demo.settle_down()
    summary = finish(demo.feeder, demo.home_states)
    audit = summary["audit"]
    assert audit["passed"], [line for line in audit["lines"] if line.startswith("FAILED")]
    everything = {home.name: SLOTS for home in demo.feeder.homes}
    assert len(everything) == HOMES
    assert audit["receiptsOf"] == everything, "a receipt is not on chain"
    assert audit["checkedOf"] == everything, "the DSO has not compared a receipt"
    assert audit["settledSlots"] == SLOTS
    assert audit["readings"] >= HOMES * (SLOTS + 1)
    return summary


def height(demo: Demo, index: int) -> int:
    store = LedgerStore.in_folder(demo.feeder.ledger_folder(index), read_only=True)
    try:
        return store.height
    finally:
        store.close()


@pytest.mark.long
def test_a_killed_validator_is_not_missed_and_catches_up(tmp_path: Path) -> None:
    with running_day(tmp_path / "out") as demo:
        run_until(demo, 0.25)
        demo.processes.kill("ledger-2")
        before = height(demo, 1)
        deadline_s = time.monotonic() + PATIENCE_S
        while height(demo, 0) < before + 8:
            assert time.monotonic() < deadline_s, "the day does not go on without the validator"
            time.sleep(0.1)
        assert height(demo, 1) == before
        demo.processes.restart("ledger-2")
        summary = audited(demo)
        assert height(demo, 1) == height(demo, 0)
        assert summary["audit"]["lateReceipts"] == 0
        assert summary["energy"]["tradedWh"] > 0


@pytest.mark.long
def test_a_killed_broker_comes_back_and_nothing_is_lost(tmp_path: Path) -> None:
    with running_day(tmp_path / "out") as demo:
        run_until(demo, 0.4)
        demo.processes.kill("broker")
        time.sleep(0.5)
        demo.restart_broker()
        summary = audited(demo)
        assert summary["energy"]["settledSlots"] >= SLOTS
        assert demo.live() == {}  # everything has stopped


def test_a_killed_home_comes_back_with_its_outbox_and_wallet(tmp_path: Path) -> None:
    with running_day(tmp_path / "out") as demo:
        run_until(demo, 0.4)
        home = demo.feeder.homes[0]
        demo.processes.kill(home.name)
        demo.processes.restart(home.name)
        summary = audited(demo)
        bill = next(row for row in summary["bills"] if row["home"] == home.name)
        assert abs(bill["parts"]["other"]) < 20_000, "something was lost or paid twice"
