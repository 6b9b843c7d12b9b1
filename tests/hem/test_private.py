"""What a home writes is for its own user only, whichever command makes the folder first."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faulty_site import end_watchdog
from register_server import device_of
from support.homes import Site
from support.patience import PATIENCE_S
from test_device_check import home, of  # noqa: F401  (a fixture)

from hem.private import make_data_folder, private_files
from wire.errors import ConfigError

OPEN_UMASK = 0o022
"""As a shell has it: new files can be read by everybody."""


def opened(folder: Path) -> dict[str, str]:
    """What of a folder, itself too, others than its owner may touch: mode by name."""
    modes = {path: path.lstat().st_mode for path in (folder, *folder.rglob("*"))}
    return {
        str(path.relative_to(folder.parent)): stat.filemode(mode)
        for path, mode in modes.items()
        if mode & 0o077
    }


def hem(*arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "hem.cli", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, umask=OPEN_UMASK,
    )  # fmt: skip


def until(condition) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def ended(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    process.wait(PATIENCE_S)
    process.stdout.close()  # not read to its end: a watchdog has it, too


def test_a_folder_that_setup_makes_is_its_users_alone(home):  # noqa: F811
    data = home(of("eastron-sdm630", 9, "meter")).parent / "data"
    process = hem("setup", data.parent / "provisioning.toml", "--port", "0")
    assert process.stdout.readline().startswith(b"open ")
    assert (data / "setup.url").exists()
    assert opened(data) == {}
    ended(process)


@pytest.mark.slow
async def test_a_folder_that_the_gateway_and_its_watchdog_make_is_their_users_alone(home):  # noqa: F811
    async with device_of("marstek-venus") as (_, _, port):
        data = home(of("marstek-venus", port, "battery")).parent / "data"
        process = hem("gateway", data.parent / "provisioning.toml")
        try:
            until((data / "gateway" / "leases.sqlite.sock").exists)
            names = {path.name for path in (data / "gateway").iterdir()}
            assert {"registers.sqlite", "leases.sqlite", "meter.key"} <= names
            assert opened(data) == {}
        finally:
            ended(process)
            end_watchdog(data / "gateway")


@pytest.mark.slow
async def test_a_folder_that_enrolment_makes_is_its_users_alone(tmp_path):
    site = await Site.open(tmp_path)
    try:
        made = await site.home("home-01", load_w=1_000)
        process = hem("enroll", made.file)
        assert await asyncio.to_thread(process.wait, PATIENCE_S) == 0
        process.stdout.close()
        data = made.folder / "data"
        names = {path.name for path in data.iterdir()}
        assert {"ems.sqlite", "outbox.sqlite", "keys", "gateway", "policy.good.toml"} <= names
        assert opened(data) == {}
        limit = hem("limit", made.file, "--import-w", "5000")
        assert await asyncio.to_thread(limit.wait, PATIENCE_S) == 0
        limit.stdout.close()
        assert (data / "limits.json").exists()
        assert opened(data) == {}
    finally:
        await site.close()


def test_a_folder_that_is_there_keeps_its_mode(tmp_path):
    """Whoever made it may share it with the gateway's user."""
    tmp_path.chmod(0o750)
    make_data_folder(tmp_path)
    assert tmp_path.stat().st_mode & 0o777 == 0o750


def test_the_umask_is_as_before_afterwards(tmp_path):
    before = os.umask(OPEN_UMASK)
    try:
        with private_files():
            (tmp_path / "mine").touch()
        (tmp_path / "all").touch()
    finally:
        os.umask(before)
    assert (tmp_path / "mine").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "all").stat().st_mode & 0o777 == 0o644


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot be made \(Not a directory\); check home.data"):
        make_data_folder(tmp_path / "file" / "data")
