"""The console's data."""

from __future__ import annotations

import msgspec
import pytest
from support.console_preview import Preview

from analytics.live import LiveView, Situation, health


def test_a_second_poll_brings_only_what_changed(evening: Preview):
    first = evening.view.answer("", evening.situation())
    assert first["full"]
    assert first["market"]["slotS"] == 900
    second = evening.view.answer(first["cursor"], evening.situation())
    assert not second["full"]
    assert all(second[name] == [] for name in ("slots", "trades", "blocks", "homes", "validators"))
    evening.feed(evening._next)
    third = evening.view.answer(first["cursor"], evening.situation())
    assert sum(len(third[n]) for n in ("slots", "trades", "blocks", "homes", "validators")) < 12


def test_polls_are_small(evening: Preview):
    cursor = evening.view.answer("", evening.situation())["cursor"]
    size = len(msgspec.json.encode(evening.view.answer(cursor, evening.situation())))
    assert size < 1500


@pytest.mark.parametrize(
    "cursor", ["other.5", "preview.", "preview.x", "preview.-1", "…", "9" * 60]
)
def test_a_cursor_of_another_run_brings_everything(evening: Preview, cursor):
    assert evening.view.answer(cursor, evening.situation())["full"]


def test_tiles_agree_with_the_rows(evening: Preview):
    reply = evening.view.answer("", evening.situation())
    tiles = reply["tiles"]
    assert tiles["tradedWh"] == sum(row.get("tradedWh", 0) for row in reply["slots"]) > 0
    assert tiles["homes"] == len(reply["homes"]) == 10
    assert tiles["price"]["priceUc"] >= reply["tariff"]["feedInUc"]
    assert 0 < tiles["selfSufficiency"] < 1000


def test_the_summary_counts_funded_homes_without_the_supervisor(evening: Preview):
    supervisor = {"event": "balance", "address": evening.facts.supervisor, "balanceUc": 5}
    evening.rollup.fold_event(1, supervisor)
    assert evening.view.summary(evening.situation())["funded"] == 10


def test_health_says_what_is_wrong(evening: Preview):
    fine = evening.situation()
    assert health(evening.rollup, fine) == {"state": "ok", "reasons": []}
    cut = Situation(fine.now_ms, 1.0, connected=False, uptime_s=1.0)
    assert health(evening.rollup, cut)["state"] == "down"
    late = Situation(fine.now_ms + 10 * 900_000, 1.0, connected=True, uptime_s=1.0)
    assert health(evening.rollup, late)["reasons"] == ["no new block for three slots"]
    home = next(evening.rollup.homes.values())
    evening.rollup.homes.put(home["id"], {**home, "online": False}, evening.rollup.revision)
    assert health(evening.rollup, fine)["reasons"] == ["1 of 10 homes offline"]


def test_an_empty_market_is_shown_as_starting(tmp_path):
    preview = Preview(0, tmp_path)
    view = LiveView(preview.facts, type(preview.rollup)(preview.facts), "b")
    reply = view.answer("", Situation(preview.now_ms(), 1.0, True, 0.0))
    assert reply["health"]["state"] == "starting"
    assert reply["tiles"]["price"] is None
    assert reply["tiles"]["selfSufficiency"] is None
    preview.store.close()
