"""After an erasure no store, log or backup of the operators tells who a household was."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.brokers import REPOSITORY
from support.csmdb_site import run_csmdb
from support.patience import PATIENCE_S
from support.traces import traces

from sim.demo import Demo, DemoOptions

NAME, MAIL = "Adelgunde Wunderlich", "adelgunde@example.org"
STREET, CELLAR = "Zwetschgenweg 31b", "hinter der Mostpresse"
HOUSE = "haus-wunderlich-zwetschge"
"""What the household calls its home, in its own configuration."""


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """A finished day of four homes, in processes of their own; one has an unmistakable name."""
    options = DemoOptions(
        out=tmp_path_factory.mktemp("day") / "out", homes=4, speed=450.0, slots=3, start_hour=11
    )
    demo = Demo(options)
    provision = demo.feeder.write_provisioning

    def named(*given: object) -> None:
        provision(*given)
        path = demo.feeder.home_folder(demo.feeder.homes[1]) / "provisioning.toml"
        own = demo.feeder.homes[1].name
        path.write_text(path.read_text().replace(f'name = "{own}"', f'name = "{HOUSE}"', 1))

    demo.feeder.write_provisioning = named  # type: ignore[method-assign]
    try:
        for _ in demo.start():
            pass
        demo.go()
        who = demo.feeder.identity(demo.feeder.homes[1])["participant"]
        run_csmdb(
            "person", demo.feeder.csmdb.folder, who, "--name", NAME, "--contact", MAIL,
            "--address", STREET, "--meter-location", CELLAR,
        )  # fmt: skip
        for _ in demo.run():
            pass
        demo.settle_down()
        yield demo
    finally:
        demo.stop()


def of_operators(demo: Demo) -> list[Path]:
    """Every file but the household's own, and the simulator's plan of the houses."""
    home = demo.feeder.homes[1].name
    outside = [demo.feeder.home_folder(demo.feeder.homes[1]), demo.feeder.out / "profiles"]
    return [
        path
        for path in demo.feeder.out.rglob("*")
        if path.is_file()
        and not any(path.is_relative_to(one) for one in outside)
        and path.name != f"{home}.log"
    ]


@pytest.mark.long
def test_nothing_tells_who_an_erased_household_was_and_the_chain_still_verifies(day: Demo) -> None:
    folder = day.feeder.csmdb.folder
    who = day.feeder.identity(day.feeder.homes[1])["participant"]
    serial = json.loads(run_csmdb("export", folder, who, "--json"))["meter"]["serial"]
    assert serial, "the meter has told its serial number"
    words = [NAME, MAIL, STREET, CELLAR, HOUSE, "Wunderlich", "wunderlich", "Mostpresse"]

    before = traces(of_operators(day), [*words, serial])
    found = {word for _, word in before}
    assert found >= {NAME, MAIL, STREET, CELLAR, serial}, "there was something"
    assert HOUSE not in found, "no topic says what a home is called"

    run_csmdb("erase", folder, who)
    run_csmdb("backup", folder, day.feeder.out / "later.backup")
    assert (day.feeder.out / "later.backup") in of_operators(day)
    assert traces(of_operators(day), [*words, serial]) == set()

    verified = subprocess.run(
        [sys.executable, "-m", "ledger.cli", "verify", str(day.feeder.ledger_folder(0))],
        capture_output=True, check=False, text=True, cwd=REPOSITORY, timeout=PATIENCE_S,
    )  # fmt: skip
    assert verified.returncode == 0, verified.stdout + verified.stderr
