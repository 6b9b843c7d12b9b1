"""The report: sums, words, and a page that opens anywhere."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from support.console_preview import Preview, baseline_homes

from analytics.report import build_report, histogram, read_audit, write_report
from analytics.report_page import render_html
from wire.errors import ConfigError


@pytest.fixture(scope="module")
def report(whole_day: Preview) -> dict:
    return whole_day.report()


def test_the_load_is_met_by_roof_neighbours_and_grid(report):
    energy = report["energy"]
    parts = energy["ownWh"] + energy["sharedWh"] + energy["importWh"]
    assert parts == pytest.approx(energy["loadWh"], rel=0.01)
    assert energy["settledSlots"] == 96


def test_every_bill_is_explained(report):
    assert len(report["bills"]) == 10
    for row in report["bills"]:
        assert sum(row["parts"].values()) == row["savedUc"]
        assert row["parts"]["other"] == 0
    worse = [row["home"] for row in report["bills"] if row["worseOff"]]
    assert worse == ["home-01"]
    assert "the battery ran for the market" in report["bills"][0]["why"]


def test_the_summary_names_who_is_worse_off(report):
    assert report["lines"][1].endswith("worse off: 1.")
    assert report["lines"][2].startswith("home-01 pays ")
    assert report["summary"] == report["lines"][0]


def test_known_load_and_generation_are_preferred_to_the_states(whole_day: Preview):
    homes, balances = baseline_homes(whole_day.rollup)
    known = [{**home, "load_wh": 10_000, "generation_wh": 20_000} for home in homes]
    made = build_report(whole_day._folder, whole_day.facts, homes=known, final_balances=balances)
    assert (made["energy"]["loadWh"], made["energy"]["generationWh"]) == (100_000, 200_000)


def test_without_baselines_there_are_no_bills(whole_day: Preview):
    made = build_report(whole_day._folder, whole_day.facts)
    assert made["bills"] == []
    assert "Bills" not in render_html(made)
    assert "has not been audited" in render_html(made)


def test_the_folder_holds_everything_the_page_needs(report, tmp_path: Path):
    page = write_report(report, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"report.html", "report.json", "plotly.min.js"}
    assert json.loads((tmp_path / "report.json").read_text()) == report
    text = page.read_text()
    links = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert sorted(links) == ["data:,", "plotly.min.js"], "nothing from elsewhere"
    assert "@import" not in text
    assert "url(" not in text


def test_names_cannot_break_out_of_the_page(report):
    evil = "</script><img src=x onerror=alert(1)>"
    bills = [{**report["bills"][0], "home": evil}, *report["bills"][1:]]
    text = render_html({**report, "bills": bills, "market": evil, "audit": {"lines": [evil]}})
    assert evil not in text
    assert "<img" not in text


def test_the_histogram_counts_every_block_once():
    values = [5] * 50 + [20] * 49 + [10_000]
    rows = histogram(values, 10)
    assert sum(row["count"] for row in rows) == 100
    assert rows[-1]["count"] == 1, "the outlier is in the last step"
    assert histogram([], 10) == []


def test_any_audit_can_be_shown():
    assert read_audit(None) == {"lines": []}
    audit = read_audit({"passed": False, "lines": ["height 3: root differs"], "blocks": 9})
    assert audit == {"passed": False, "lines": ["height 3: root differs", "blocks: 9"]}


def test_a_missing_database_is_said_in_one_line(tmp_path: Path, whole_day: Preview):
    with pytest.raises(ConfigError, match="no such database"):
        build_report(tmp_path, whole_day.facts)
