"""The database: batches, restarts, SQL."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from support.console_preview import Preview
from support.made_up_day import DAY_START_MS

from analytics.live import measures
from analytics.rollups import Rollup
from analytics.store import AnalyticsStore


def _in_order(row: dict[str, Any]) -> str:
    return str(sorted(row.items()))


def test_a_restart_shows_what_was_shown_before(evening: Preview, tmp_path: Path):
    again = Rollup(evening.facts)
    store = AnalyticsStore(tmp_path / "analytics.sqlite")
    store.replay(again)
    store.close()
    now_ms = evening.now_ms()
    assert measures(evening.facts, again, now_ms) == measures(evening.facts, evening.rollup, now_ms)
    for name in ("slots", "blocks", "auctions", "validators", "homes"):
        before = sorted(getattr(evening.rollup, name).values(), key=_in_order)
        assert sorted(getattr(again, name).values(), key=_in_order) == before, name


def test_what_is_not_flushed_is_not_written(tmp_path: Path):
    store = AnalyticsStore(tmp_path / "a.sqlite")
    store.add_reading("hg1a", DAY_START_MS, 400, "00")
    with sqlite3.connect(tmp_path / "a.sqlite") as reader:
        assert reader.execute("SELECT COUNT(*) FROM readings").fetchone() == (0,)
        assert store.flush({"market": 7}, {"epoch": 3}) == 3
        assert reader.execute("SELECT COUNT(*) FROM readings").fetchone() == (1,)
    assert store.delivered() == {"market": 7}
    assert store.validators() == {"epoch": 3}
    assert store.flush({"market": 9}, {}) == 0, "nothing new, nothing written"
    assert store.delivered() == {"market": 7}
    store.close()


def test_readings_are_counted_per_home_across_restarts(tmp_path: Path):
    for _ in range(2):
        store = AnalyticsStore(tmp_path / "a.sqlite")
        store.add_reading("hg1a", DAY_START_MS, 400, "00")
        store.add_reading("hg1b", DAY_START_MS, 401, "01")
        store.flush({}, {})
        rows = store.rows("readings")
        store.close()
    assert [(r["home"], r["sequence"]) for r in rows] == [
        ("hg1a", 0), ("hg1b", 0), ("hg1a", 1), ("hg1b", 1),
    ]  # fmt: skip


def test_people_can_ask_in_sql(evening: Preview, tmp_path: Path):
    with sqlite3.connect(tmp_path / "analytics.sqlite") as reader:
        bought, sold = reader.execute(
            "SELECT SUM(energy_wh) FILTER (WHERE side = 'buy'),"
            " SUM(energy_wh) FILTER (WHERE side = 'sell') FROM trades WHERE kind = 'market'"
        ).fetchone()
        assert bought == sold > 0
        (traded,) = reader.execute("SELECT SUM(traded_wh) FROM clearings").fetchone()
        assert traded == bought


def test_an_auction_cleared_after_a_restart_keeps_its_side(tmp_path: Path):
    opened = {"event": "auction-opened", "auction": "f", "template": "forward", "slot": 1}
    award = {"address": "a", "energyWh": 5, "priceUcPerKwh": 9}
    cleared = {
        "event": "auction-cleared", "auction": "f", "slot": 1, "awards": [award], "boughtWh": 5,
    }  # fmt: skip
    for event in (opened, cleared):
        store = AnalyticsStore(tmp_path / "a.sqlite")
        store.add_event(1, DAY_START_MS, event)
        store.flush({}, {})
        rows = store.rows("trades")
        store.close()
    assert [(r["side"], r["kind"], r["reference"]) for r in rows] == [("buy", "auction", "f")]


def test_pruning_keeps_clearings_and_settlements(evening: Preview):
    before = len(evening.store.rows("settlements"))
    evening.store.prune(DAY_START_MS + 12 * 3_600_000)
    assert all(r["time_ms"] >= DAY_START_MS + 43_200_000 for r in evening.store.rows("events"))
    assert len(evening.store.rows("settlements")) == before


def test_names_that_an_earlier_release_kept_are_gone_from_the_file(tmp_path):
    path = tmp_path / "analytics.sqlite"
    AnalyticsStore(path).close()
    with sqlite3.connect(path) as db:
        row = ("hg1a", 5, 1, "Haus Musterfrau", 0, 0, 0, 0, -1, "", 1)
        db.execute(f"INSERT INTO states VALUES ({','.join('?' * len(row))})", row)
    db.close()
    assert b"Musterfrau" in path.read_bytes()
    AnalyticsStore(path).close()
    left = [one.read_bytes() for one in tmp_path.iterdir()]
    assert not any(b"Musterfrau" in content for content in left)
