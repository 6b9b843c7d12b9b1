"""What a person sees when something given is wrong, and that Ctrl-C leaves nothing behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from support.patience import PATIENCE_S

DEMO = [sys.executable, "-m", "sim.cli", "demo"]


def run_demo(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*DEMO, *map(str, words)], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


def assert_one_line(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 2, one line on standard error, no traceback, and the line says what is wrong."""
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    for word in words:
        assert word in lines[0]


def test_a_missing_profile_folder_is_one_line(tmp_path: Path) -> None:
    done = run_demo("--out", tmp_path / "out", "--profiles", tmp_path / "nowhere")
    assert_one_line(done, "nowhere")


def test_a_broken_profile_names_file_line_and_column(tmp_path: Path) -> None:
    folder = tmp_path / "lab" / "prosumers"
    (folder / "hh").mkdir(parents=True)
    (folder / "pv").mkdir()
    rows = "".join(f"{1613343600 + 900 * n},250,0\n" for n in range(2 * 96))
    broken = rows.replace("250", "two hundred", 1)
    for number in range(4):
        text = "timestamp,power,heat\n" + (broken if number == 2 else rows)
        (folder / "hh" / f"hh_{3000 + number}_0.csv").write_text(text)
    (folder / "pv" / "pv_1_pu.csv").write_text(
        "timestamp,power\n" + "".join(f"{1613343600 + 900 * n},0.5\n" for n in range(2 * 96))
    )
    done = run_demo("--out", tmp_path / "out", "--profiles", tmp_path / "lab", "--homes", "4")
    assert_one_line(done, "hh_3002_0.csv", "power")


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run_demo("--out", tmp_path / "out", "--page-port", str(port))
    assert_one_line(done, str(port))


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("ten years of work")
    done = run_demo("--out", tmp_path)
    assert_one_line(done, "--out")
    assert (tmp_path / "thesis.txt").read_text() == "ten years of work"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_stops_every_process(tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "out"
    demo = subprocess.Popen(
        [*DEMO, "--out", str(out), "--homes", "4"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    deadline_s = time.monotonic() + PATIENCE_S
    while len(processes_of(out)) < 10:
        assert demo.poll() is None, demo.stdout and demo.stdout.read()
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
    os.kill(demo.pid, number)
    assert demo.wait(20) == 130
    assert_all_end(out, 5)


def test_killing_the_demo_stops_every_process(tmp_path: Path) -> None:
    out = tmp_path / "out"
    demo = subprocess.Popen(
        [*DEMO, "--out", str(out), "--homes", "4"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline_s = time.monotonic() + PATIENCE_S
    while len(processes_of(out)) < 10:
        assert demo.poll() is None
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
    demo.kill()
    demo.wait(5)
    assert_all_end(out, 15)


def assert_all_end(out: Path, within_s: float) -> None:
    """The kernel tells what was being started in that moment; it may still be on its way out."""
    deadline_s = time.monotonic() + within_s
    while processes_of(out):
        assert time.monotonic() < deadline_s, processes_of(out)
        time.sleep(0.1)


def processes_of(out: Path) -> list[str]:
    """Command lines of the processes that work in a run's folder (but for the demo itself)."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        if any(str(out) in word for word in words) and "sim.cli" not in words:
            found.append(" ".join(words))
    return found
