"""The policy file while the home runs: taken when it is whole, else the last good one holds."""

from __future__ import annotations

import pytest
from home_at_hand import SLOT, begin, make_home
from structlog.testing import capture_logs

from hem.controller.policy import Policy
from hem.ems.health import assess
from hem.ems.policy_file import GOOD_FILE, PolicyFile, in_force
from wire.errors import ConfigError

GOOD, OTHER, BROKEN = "reserve_permille = 300\n", "reserve_permille = 400\n", "\nreserve = 5 %\n"


@pytest.fixture
def path(tmp_path):
    found = tmp_path / "policy.toml"
    found.write_text(GOOD)
    return found


def looked(file):
    """Two looks: a file that is just being written is not taken at the first."""
    return [file.look(), file.look()]


def test_a_change_is_taken_once_the_file_is_still(path, tmp_path):
    file = PolicyFile(path, tmp_path)
    assert looked(file) == [False, False]
    path.write_text(OTHER)
    assert looked(file) == [False, True]
    assert file.policy.reserve_permille == 400
    assert looked(file) == [False, False]


def test_a_broken_file_is_told_once_and_the_last_good_one_holds(path, tmp_path):
    file = PolicyFile(path, tmp_path)
    path.write_text(BROKEN)
    with capture_logs() as logs:
        assert looked(file) + looked(file) == [False] * 4
    assert len(logs) == 1
    assert "line 2" in file.error and file.policy.reserve_permille == 300
    path.write_text(GOOD + "# mended\n")
    looked(file)
    assert file.error == ""


def test_after_a_restart_the_last_good_one_holds_still(path, tmp_path):
    PolicyFile(path, tmp_path)
    path.write_text(BROKEN)
    again = PolicyFile(path, tmp_path)
    assert again.policy.reserve_permille == 300 and "line 2" in again.error
    assert in_force(path, tmp_path) == (again.policy, again.error)


def test_a_home_that_never_had_a_good_one_does_not_start_with_a_broken_one(path, tmp_path):
    path.write_text(BROKEN)
    with pytest.raises(ConfigError, match="line 2"):
        PolicyFile(path, tmp_path)


def test_a_copy_that_is_damaged_is_not_believed(path, tmp_path):
    PolicyFile(path, tmp_path)
    (tmp_path / GOOD_FILE).write_bytes(b"\xff")
    path.write_text(BROKEN)
    with pytest.raises(ConfigError):
        PolicyFile(path, tmp_path)


def test_without_the_file_the_defaults_hold(path, tmp_path):
    file = PolicyFile(path, tmp_path)
    path.unlink()
    assert looked(file) == [False, True]
    assert file.policy == Policy()
    assert PolicyFile(path, tmp_path).policy == Policy()


async def test_a_running_home_takes_a_changed_policy_up_and_tells_of_a_broken_one(tmp_path):
    home = make_home(tmp_path)
    path = tmp_path / "policy.toml"
    await begin(home, SLOT)
    path.write_text('participation = "RE"\n[wallet]\nwithdraw = true\n')
    for _ in range(2):
        home._look_at_wishes()
    assert not home.trader._policy.trades and home.funds._policy.withdraw
    path.write_text(BROKEN)
    for _ in range(2):
        home._look_at_wishes()
    (reason,) = [one for one in assess(home.facts()).reasons if one.name == "policy"]
    assert "line 2" in reason.text
    assert not home.trader._policy.trades, "the last good one"
