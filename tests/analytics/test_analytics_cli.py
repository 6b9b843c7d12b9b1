"""The `analytics` command: a real process, and mistakes in one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from support.brokers import REPOSITORY, Authority, make_key, running_broker
from support.console_preview import Preview
from support.made_up_day import made_up_genesis
from support.patience import PATIENCE_S

from analytics.config import load_config, read_password
from ledger.genesis import write_genesis
from runtime.keyfiles import write_secret
from wire.certificates import dump_text
from wire.errors import ConfigError

KEY = make_key("analytics service")


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "analytics.cli", *map(str, words)]


def run(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words),
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        timeout=PATIENCE_S,
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A service's files, as an operator would lay them out."""
    write_genesis(made_up_genesis(), tmp_path / "genesis.json")
    write_secret(tmp_path / "service.key", KEY.seed)
    certificate = Authority("demo").certificate(KEY, {"analytics"})
    (tmp_path / "certificate.json").write_text(dump_text(certificate) + "\n")
    (tmp_path / "analytics.toml").write_text(
        '[service]\nkey = "service.key"\ncertificate = "certificate.json"\ndata_dir = "data"\n'
        '[broker]\nport = 1\n[market]\ngenesis = "genesis.json"\ncurrency = "€"\n'
        "[web]\nport = 0\n"
    )
    return tmp_path


async def test_a_real_process_serves_the_console_until_told_to_stop(folder: Path):
    authority = Authority("demo")
    async with running_broker(authority) as broker:
        port_file = folder / "run" / "port"
        words = command(
            "run", folder / "analytics.toml", "--port", broker.port, "--port-file", port_file,
            "--json",
        )  # fmt: skip
        import asyncio  # noqa: PLC0415

        process = await asyncio.create_subprocess_exec(
            *words, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**os.environ, "HEARTHGRID_CLOCK": ""},
        )  # fmt: skip
        try:
            deadline_s = time.monotonic() + PATIENCE_S
            while not port_file.exists():
                assert time.monotonic() < deadline_s
                await asyncio.sleep(0.05)
            url = f"http://127.0.0.1:{int(port_file.read_text())}"

            def health() -> str:
                with urllib.request.urlopen(url + "/api/summary", timeout=5) as answer:
                    return str(json.load(answer)["health"])

            while await asyncio.to_thread(health) != "starting":  # down until connected
                assert time.monotonic() < deadline_s
                await asyncio.sleep(0.05)
        finally:
            process.send_signal(signal.SIGTERM)
            output, _ = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    assert process.returncode == 0
    assert json.loads(output)["url"] == url + "/"
    assert (folder / "data" / "analytics.sqlite").exists()


def test_a_report_is_written_from_the_folder(folder: Path):
    preview = Preview(12.0, folder)
    preview.store.close()
    done = run("report", folder, "--out", folder / "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("The homes traded ")
    assert (folder / "out" / "report.html").exists()
    as_json = run("report", folder, "--out", folder / "out", "--json")
    assert json.loads(as_json.stdout)["market"] == "demo"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["report", "nowhere"], "no genesis.json"),
        (["run", "nowhere.toml"], "nowhere.toml"),
        (["run", "analytics.toml", "--web-host", "0.0.0.0"], "password_file"),
        (["run", "analytics.toml", "--key-file", "certificate.json"], "certificate.json"),
        (["run", "analytics.toml", "--genesis", "service.key"], "not a genesis"),
        (["run", "analytics.toml", "--web-port", "99999"], "web.port"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(folder: Path, words: list[str], message: str):
    known = {p.name: p for p in folder.iterdir()}
    done = run(*(known.get(word, word) for word in words))
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_options_win_over_the_file_and_paths_follow_it(folder: Path):
    config = load_config(folder / "analytics.toml", {"broker": {"port": 7, "host": None}})
    assert (config.broker.port, config.broker.host) == (7, "127.0.0.1")
    assert config.service.key == folder / "service.key"
    assert config.market.currency == "€"


def test_a_key_we_do_not_know_is_a_mistake(folder: Path):
    path = folder / "analytics.toml"
    path.write_text(path.read_text() + "prot = 5\n")
    with pytest.raises(ConfigError, match=r"web\.prot"):
        load_config(path, {})


def test_a_short_password_is_refused(folder: Path):
    (folder / "password").write_text("short\n")
    options = {"web": {"host": "0.0.0.0", "password_file": folder / "password"}}
    with pytest.raises(ConfigError, match="at least 12"):
        read_password(load_config(folder / "analytics.toml", options).web)
    (folder / "password").write_text("long enough for this\n")
    web = load_config(folder / "analytics.toml", options).web
    assert read_password(web) == "long enough for this"
