"""The forecast benchmark looks only at the past, and adds up what it says."""

import json
import subprocess
import sys

import numpy as np
import pytest

from bench.forecast import (
    LEADS,
    METHODS,
    OURS,
    Score,
    errors_wh,
    measure,
    play,
    show,
)
from bench.forecast_data import (
    CITYLEARN,
    FOLDER,
    LEMLAB,
    DataSet,
    House,
    read_citylearn,
    read_lemlab,
)
from hem.controller.accuracy import KINDS
from hem.controller.scenarios import Scenarios
from wire.errors import ConfigError

FIRST = 24 * 20_000


def house(name="h", days=40, load_wh=lambda hour: 100 + 10 * (hour % 24)):
    hours = range(days * 24)
    return House(name, FIRST, [load_wh(h) for h in hours], [50 * (8 <= h % 24 < 16) for h in hours])


def data_set(*houses):
    return DataSet("made up", 24, 28, (), houses, None)


def write_citylearn(folder, rows=3):
    folder.mkdir(parents=True)
    lines = ["hour,non_shiftable_load,solar_generation", "24,1.5,0"]
    lines += [f"{hour},0.25,500" for hour in range(1, rows)]
    for name in ("Building_1", "Building_7"):
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    pv = {"pv": {"attributes": {"nominal_power": 4.0}}}
    (folder / "schema.json").write_text(
        json.dumps({"buildings": {"Building_1": pv, "Building_7": pv}})
    )
    return folder


def run(*arguments):
    command = [sys.executable, "-m", "bench.forecast", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_errors_are_read_at_their_leads():
    paths = Scenarios(0, *np.zeros((2, 1, 48), dtype=np.int32), np.array([1000], dtype=np.int32))
    load_wh = np.arange(1, 49, dtype=np.int32)
    errors = errors_wh(paths, load_wh, load_wh * 0, 24)
    assert errors.shape == (len(KINDS), 2, len(LEADS))
    assert errors[0, 0].tolist() == [1, 6, 24, 12.5, 24.5]
    assert errors[0, 1].tolist() == pytest.approx([0.5, 3, 12, 6.25, 12.25])
    assert not errors[1].any()
    assert errors[2].tolist() == errors[0].tolist()


def test_every_method_is_right_about_a_home_without_surprises():
    result = measure(data_set(house()), (house(),), 5, lambda _: None)
    assert result.forecasts == 10 * 24 // 5
    for method in METHODS:
        for kind in KINDS:
            figure = result.figure(method, kind)
            if method not in ("persistence", "bidding's forecaster"):
                assert max(*figure.error_w, *figure.pinball_w) <= 1, (method, kind)
    assert min(result.figure("persistence", "load").error_w[:2]) > 0


def test_no_method_sees_what_it_is_asked_for():
    """A home whose future is changed gets the same forecasts."""
    seen = []

    class Recorder(Score):
        def add(self, known, load_wh, pv_wh):
            if known.first_slot <= FIRST + same:
                seen.append({name: method(known) for name, method in METHODS.items()})

    same = 28 * 24 + 60
    for later_wh in (0, 5_000):
        changed = house(load_wh=lambda h, wh=later_wh: 100 + h % 7 if h < same else wh)
        play(data_set(changed), changed, 30, Recorder())
    half = len(seen) // 2
    assert half >= 2
    for a, b in zip(seen[:half], seen[half:], strict=True):
        for name in METHODS:
            assert np.array_equal(a[name].load_wh, b[name].load_wh), name


def test_the_table_says_which_homes_and_that_the_constants_come_from_others(capsys):
    result = measure(data_set(house("Elm")), (house("Elm"),), 50, lambda _: None)
    show([result], tuned=False)
    told = " ".join(capsys.readouterr().out.split())
    assert "Elm" in told
    assert "chosen on others" in told
    assert OURS in told
    show([result], tuned=True)
    assert "WERE chosen on them" in capsys.readouterr().out


def test_citylearn_is_read_in_wh_from_its_first_hour(tmp_path):
    data = read_citylearn(write_citylearn(tmp_path / CITYLEARN))
    (tuned,), (other,) = data.tuned, data.held_out
    assert (tuned.name, other.name) == ("Building_1", "Building_7")
    assert (other.load_wh, other.pv_wh) == ([1500, 250, 250], [0, 2000, 2000])
    # 23:00 of Sunday, 31 July 2016: the day before is 17,012 days after the epoch.
    assert other.first_slot == 17_013 * 24 + 23


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"buildings": {"Building_1": {}}}'])
def test_a_broken_schema_is_told(tmp_path, text):
    folder = write_citylearn(tmp_path / CITYLEARN)
    (folder / "schema.json").write_text(text)
    with pytest.raises(ConfigError, match=r"schema\.json"):
        read_citylearn(folder)


def test_a_missing_data_folder_is_one_line_and_exit_code_2(tmp_path):
    done = run("--data", str(tmp_path))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert str(tmp_path) in done.stderr
    assert "--data" in done.stderr
    write_citylearn(tmp_path / CITYLEARN)
    done = run("--data", str(tmp_path))
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert LEMLAB in done.stderr


@pytest.mark.slow
def test_a_short_run_on_the_published_data_beats_every_forecast_that_costs_nothing():
    for name in (CITYLEARN, LEMLAB):
        if not (FOLDER / name).is_dir():
            pytest.skip(f"{name} is not beside the project (../shared/data/{name})")
    done = run("--short", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [one["data"] for one in found["sets"]] == [CITYLEARN, LEMLAB]
    for one in found["sets"]:
        day = {
            (row["method"], row["kind"]): row["pinball_w"][LEADS.index("day")]
            for row in one["figures"]
        }
        for kind in KINDS:
            assert min(METHODS, key=lambda name, k=kind: day[name, k]) == OURS


def test_lemlabs_homes_live_by_the_clock_of_berlin():
    if not (FOLDER / LEMLAB).is_dir():
        pytest.skip(f"{LEMLAB} is not beside the project (../shared/data/{LEMLAB})")
    data = read_lemlab(FOLDER / LEMLAB)
    assert (len(data.tuned), len(data.held_out)) == (5, 10)
    first = data.held_out[0].first_slot
    assert data.offset_s(first) == 3_600
    assert data.offset_s(first + len(data.held_out[0].load_wh)) == 7_200
