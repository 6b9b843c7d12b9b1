"""Limits from outside reach the home, are believed from the DSO only, and end by themselves."""

from __future__ import annotations

import pytest
from home_at_hand import SLOT, SLOT_MS, award, begin, make_home
from structlog.testing import capture_logs
from support.chain_builder import SUPERVISOR

from hem.controller.limits import Limit
from hem.ems.health import assess
from hem.ems.limit_book import LIMITS_FILE, LimitBook, read_limits, set_limits
from runtime.ports import Message
from wire import topics
from wire.errors import ConfigError, MalformedError
from wire.grid_limit import GridLimit, make_grid_limit, read_grid_limit
from wire.keys import SigningKey

NOW_MS = SLOT * SLOT_MS
HOUR_MS = 3_600_000


@pytest.fixture
def home(tmp_path):
    return make_home(tmp_path)


def said(at, key=SUPERVISOR, number=0, **change):
    """A message of the DSO on the home's lane."""
    facts = {
        "home": at.ems_key.id, "side": "import", "power_w": 4_200, "from_ms": NOW_MS,
        "until_ms": NOW_MS + HOUR_MS, **change,
    }  # fmt: skip
    payload = make_grid_limit(
        GridLimit(**facts), key, "demo", at.clock.wall_ms(), bytes([number]) * 10
    )
    return Message(topics.build("demo", topics.COMMAND, at.ems_key.id), payload)


def held_w(home, at_ms=NOW_MS):
    return home.limits.between(at_ms, at_ms + 1).import_w


async def test_the_dsos_limit_holds_until_its_end_also_after_a_restart(home, tmp_path):
    await home.limits.take(said(home))
    assert held_w(home) == held_w(home, NOW_MS + HOUR_MS - 1) == 4_200
    assert held_w(home, NOW_MS + HOUR_MS) is None
    home.store.close()
    assert held_w(make_home(tmp_path)) == 4_200


async def test_the_dso_lifts_its_limit(home):
    await home.limits.take(said(home))
    await home.limits.take(said(home, number=1, until_ms=NOW_MS))
    assert held_w(home) is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"power_w": 4_199}, "4200"),
        ({"until_ms": NOW_MS - 1, "from_ms": 0}, "ended already"),
        ({"home": "hg1" + "a" * 32}, "another home"),
        ({"key": SigningKey(b"x" * 32)}, "UNKNOWN_SENDER"),
    ],
)
async def test_what_nobody_may_ask_for_is_refused_by_name(home, change, told):
    with capture_logs() as logs:
        await home.limits.take(said(home, **change))
    assert held_w(home) is None
    assert told in logs[0]["reason"]


async def test_a_message_counts_once(home):
    message = said(home)
    await home.limits.take(message)
    await home.limits.take(said(home, number=1, until_ms=NOW_MS))
    with capture_logs() as logs:
        await home.limits.take(message)
    assert held_w(home) is None and "REPLAYED" in logs[0]["reason"]


async def test_nonsense_is_refused(home):
    for payload in (b"", b"{}", b"\xff" * 50):
        await home.limits.take(Message("x", payload))
    assert held_w(home) is None


@pytest.mark.parametrize(
    "change", [{"side": "both"}, {"powerW": -1}, {"powerW": 1.5}, {"more": 1}, {"untilMs": 1}]
)
def test_a_limit_of_another_form_is_malformed(change):
    good = {"home": "h", "side": "import", "powerW": 4_200, "fromMs": 5, "untilMs": 9}
    assert read_grid_limit(good).power_w == 4_200
    with pytest.raises(MalformedError):
        read_grid_limit({**good, **change})


def test_the_households_limit_is_read_when_it_is_set_and_replaced_by_side(home):
    folder = home.config.home.data_dir
    one = Limit("import", 6_000, "household", 0, NOW_MS + HOUR_MS)
    set_limits(folder, (one,), NOW_MS)
    assert held_w(home) is None
    home.limits.look()
    assert held_w(home) == 6_000
    two = Limit("import", 5_000, "household", 0, NOW_MS + HOUR_MS)
    other = Limit("export", 0, "household", 0, NOW_MS + HOUR_MS)
    assert set_limits(folder, (two, other), NOW_MS) == (two, other)
    assert set_limits(folder, (one,), NOW_MS + HOUR_MS // 2) == (other, one)
    assert read_limits(folder) == (other, one)


def test_a_broken_file_of_limits_changes_nothing_and_is_told(home):
    folder = home.config.home.data_dir
    set_limits(folder, (Limit("import", 6_000, "household", 0, NOW_MS + HOUR_MS),), NOW_MS)
    home.limits.look()
    (folder / LIMITS_FILE).write_text('[{"side": "import"}]')
    home.limits.look()
    assert held_w(home) == 6_000
    (reason,) = [one for one in assess(home.facts()).reasons if one.name == "limits"]
    assert "hem limit" in reason.text
    with pytest.raises(ConfigError, match="hem limit"):
        read_limits(folder)


def test_the_connections_limit_is_always_there(home, tmp_path):
    book = LimitBook(
        home.store, tmp_path, (Limit("export", 0, "connection"),), "h", "demo",
        SUPERVISOR.public, home.clock,
    )  # fmt: skip
    assert book.between(0, 1).export_w == 0


async def test_the_battery_is_steered_within_a_limit(home):
    """250 Wh are sold, 1 kW to the grid beside a load of 2 kW; half a kW is allowed."""
    await home.limits.take(said(home, side="export", power_w=500))
    await award(home, SLOT, "sell", 250)
    await begin(home, SLOT)
    assert [power for power, _ in home.gateway.orders] == [2_500]
