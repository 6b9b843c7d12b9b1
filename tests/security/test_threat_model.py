"""docs/concepts/threat-model.md names what exists, and every interface has its threats."""

import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

from wire import day_ahead, enrolment, topics, withdrawal

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs/concepts/threat-model.md"
TEXT = DOCUMENT.read_text(encoding="utf-8")
PACKAGES = ("aggregator", "analytics", "broker", "csmdb", "hem", "ledger", "runtime")
"""What runs at somebody's; simulated devices and benchmarks are no interface."""
STRIDE = set("STRIDE")
SERVER = re.compile(
    r"\b(Starlette|asyncio\.start_server|asyncio\.start_unix_server|loop\.create_server)\("
)
DESK_OPERATIONS = (
    withdrawal.WITHDRAW_ASSETS, withdrawal.SHOW_ACCOUNT, day_ahead.APPROVE_SCHEDULE,
)  # fmt: skip
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE))
INTERFACES = {title: body for title, body in SECTIONS.items() if "\n| | threat |" in body}


def rows(body):
    """Cells of the rows of the tables in a section, without their heads."""
    lines = [line for line in body.splitlines() if re.match(r"\| (?!---|\| )", line)]
    return [line.strip("| ").split(" | ") for line in lines]


def named(body):
    """Words that are written as code."""
    return set(re.findall(r"`([^`\n]+)`", body))


@cache
def functions_of(path):
    source = (ROOT / path).read_text(encoding="utf-8")
    return set(re.findall(r"^(?:async )?def (\w+)\(", source, re.MULTILINE))


def test_every_test_that_it_names_exists():
    found = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)
    assert len(found) > 150
    for path, name in found:
        assert (ROOT / path).is_file(), path
        assert name in functions_of(path), f"{path}::{name}"


def test_every_module_file_and_folder_that_it_names_exists():
    found = {one for one in named(TEXT) if re.fullmatch(r"[\w.-]+(/[\w.-]+)+", one)}
    topic_shapes = {one for one in found if one in topics.KINDS}
    files = found - topic_shapes
    assert len(files) > 80
    assert [one for one in sorted(files) if not (ROOT / one).exists()] == []


@pytest.mark.parametrize("title", list(INTERFACES))
def test_each_interface_has_a_row_for_each_letter_and_each_row_a_test(title):
    found = rows(INTERFACES[title])
    assert {cells[0] for cells in found} == STRIDE
    for letter, threat, against, shown in found:
        where = f"{title}, {letter}: {threat}"
        assert "`tests/" in shown or shown == "open", where
        if shown == "open":
            assert "*open*" in against, where


def test_each_of_the_papers_attackers_has_a_test():
    found = rows(SECTIONS["The papers' attackers"])[1:]
    assert len(found) >= 12
    assert [cells[0] for cells in found if "`tests/" not in cells[3]] == []


@pytest.mark.parametrize(
    "what",
    [*topics.KINDS, *enrolment.OPERATIONS, *DESK_OPERATIONS,
     *tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]],
)  # fmt: skip
def test_every_topic_operation_and_command_is_in_some_interface(what):
    """A command counts with its subcommand, too: `hem run`."""
    words = set().union(*map(named, INTERFACES.values()))
    assert what in words or any(word.startswith(f"{what} ") for word in words)


def servers():
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if SERVER.search(path.read_text(encoding="utf-8")):
                yield path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("module", list(servers()))
def test_every_server_is_in_some_interface(module):
    assert any(module in named(body) for body in INTERFACES.values())


def test_there_are_servers_and_interfaces():
    """The two searches above find something."""
    assert {"hem/web/app.py", "csmdb/door.py", "hem/gateway/server.py"} <= set(servers())
    assert len(INTERFACES) >= 14


def test_what_is_called_open_is_told():
    assert SECTIONS["Open"].count("\n- **") >= 10
