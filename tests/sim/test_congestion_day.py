"""A feeder that overloads stays within its rating under the contract."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from sim import congestion_day
from sim.cli import app
from sim.congestion_day import SLOTS, load_simbench, made_up, play
from wire.errors import ConfigError

SIMBENCH = Path(__file__).parents[3] / "shared" / "data" / "simbench_lv"

FILES = {
    "grid_x_Load.csv": "id;profile;pLoad\nl1;H0-A;0.004\n",
    "grid_x_RES.csv": "id;profile;pRES\np1;PV1;0.05\np2;PV2;0.03\n",
    "grid_x_Transformer.csv": "id;type;subnet\nt;kind;village\n",
    "grid_TransformerType.csv": "id;sR\nkind;0.04\n",
}


def times(day):
    return [f"{day:02}.06.2016 {n // 4:02}:{n % 4 * 15:02}" for n in range(SLOTS)]


def written(folder, **changes):
    """Two days, the second with more sun."""
    for name, text in {**FILES, **changes}.items():
        (folder / name).write_text(text.replace("\\\n", "\n"))
    loads = [f"{time};0.5;0.1" for day in (6, 7) for time in times(day)]
    plants = [f"{time};{0.4 * (day - 5)};1" for day in (6, 7) for time in times(day)]
    (folder / "LoadProfile_x.csv").write_text("\n".join(["time;H0-A_pload;H0-A_qload", *loads]))
    (folder / "RESProfile_x.csv").write_text("\n".join(["time;PV1;PV2", *plants]))
    return folder


def test_a_feeder_is_read_and_its_worst_day_taken(tmp_path):
    feeder = load_simbench(written(tmp_path))
    assert (feeder.name, feeder.day, feeder.rating_w) == ("village", "2016-06-07", 40_000)
    assert feeder.export_w(50) == 40_000 + 30_000 - 2_000
    assert load_simbench(tmp_path, "2016-06-06").export_w(0) == 20_000 + 30_000 - 2_000


def test_with_the_contract_the_rating_is_kept_and_no_load_is_cut(tmp_path):
    feeder = load_simbench(written(tmp_path))
    for one in play(feeder):
        assert one.without_w == 68_000 > feeder.rating_w
        assert 39_996 <= one.with_w <= feeder.rating_w
        assert one.curtailed_w == pytest.approx(28_000, abs=8)


def test_what_fits_is_not_curtailed():
    for one in play(made_up()):
        if one.without_w <= made_up().rating_w:
            assert one.curtailed_w == 0
            assert one.with_w == pytest.approx(one.without_w, abs=100), "whole Wh in a quarter hour"


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("grid_x_Load.csv", "id;profile;pLoad\\\nl1;H0-Z;0.004\\\n", "H0-Z"),
        ("grid_x_Load.csv", "id;profile;pLoad\\\nl1;H0-A;much\\\n", "not a feeder"),
        ("grid_x_RES.csv", "id;profile;pRES\\\np1;PV1;-1\\\n", "no power of a feeder"),
        ("grid_TransformerType.csv", "id;sR\\\nother;0.04\\\n", "kind"),
        ("grid_x_Transformer.csv", "id;type;subnet\\\n", "no rows"),
    ],
)
def test_a_folder_that_is_wrong_is_refused_in_words(tmp_path, name, text, why):
    with pytest.raises(ConfigError, match=why):
        load_simbench(written(tmp_path, **{name: text}))


def test_a_missing_folder_or_day_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no grid_"):
        load_simbench(tmp_path)
    with pytest.raises(ConfigError, match="no whole day 2020-01-01"):
        load_simbench(written(tmp_path), "2020-01-01")


def test_the_command_prints_both_and_plots_them(tmp_path):
    chart = tmp_path / "c.svg"
    done = CliRunner().invoke(app, ["congestion", "--json", "--chart", str(chart)])
    assert done.exit_code == 0
    facts = json.loads(done.output)
    assert facts["peakWithoutW"] > facts["ratingW"] >= facts["peakWithW"]
    assert facts["slotsOverWithout"] > 0 == facts["slotsOverWith"]
    lines = ElementTree.parse(chart).getroot().findall("{http://www.w3.org/2000/svg}polyline")
    assert [len(line.get("points").split()) for line in lines] == [SLOTS, SLOTS]


def test_a_contract_that_does_not_keep_the_rating_is_noticed(monkeypatch):
    real = congestion_day.clear_session
    wide = congestion_day.Limit(10**9, 10**9)
    monkeypatch.setattr(
        congestion_day, "clear_session", lambda s, z, _limit, t, c: real(s, z, wide, t, c)
    )
    assert CliRunner().invoke(app, ["congestion"]).exit_code == 1


def test_the_rural_reference_feeder_overloads_without_and_not_with_it():
    if not SIMBENCH.is_dir():
        pytest.skip(f"{SIMBENCH} is not there")
    feeder = load_simbench(SIMBENCH)
    assert feeder.rating_w == 160_000
    results = play(feeder)
    assert max(one.without_w for one in results) > 200_000
    assert max(abs(one.with_w) for one in results) <= feeder.rating_w
