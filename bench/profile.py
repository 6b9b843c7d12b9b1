"""
Where a validator's processor time goes: samples of its stack, counted by what they are for.

py-spy looks into the running process a hundred times a second and writes every stack it saw while a
thread was on a processor. A sample belongs to the innermost frame whose file is in `AREAS`.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wire.errors import ConfigError

RATE_HZ = 100
STOP_S = 20.0
OTHER = "other"

AREAS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Ed25519", ("/nacl/",)),
    ("execution: contracts, market", ("/ledger/contracts/", "/market/", "/ledger/execution.py")),
    ("state tree and other hashes", ("/ledger/smt.py", "/ledger/merkle.py", "/ledger/state.py")),
    ("blocks to SQLite", ("/ledger/store.py", "/runtime/store.py", "/sqlite_utils/")),
    ("vote log", ("/ledger/wal.py",)),
    ("events and answers to clients", ("/ledger/publish.py", "/ledger/event_chain.py")),
    ("mempool", ("/ledger/mempool.py",)),
    ("reading and writing messages", ("/wire/", "/ledger/types.py")),
    ("MQTT and TLS", ("/paho/", "/runtime/bus.py", "/ssl.py")),
    ("consensus", ("/ledger/",)),
    ("event loop", ("/asyncio/", "/uvloop/", "/selectors.py", "/threading.py")),
)
"""What a frame's file says about its purpose; the first that fits, innermost frame first."""

WAITING = (("_worker ", "/concurrent/futures/thread.py"),)
"""A thread of a pool without work: it waits outside Python, and py-spy takes it for busy."""

_FRAME = re.compile(r"\((?P<file>[^():]+)(?::\d+)?\)$")


@contextmanager
def recording(pid: int, file: Path) -> Iterator[None]:
    """
    Sample a process while the body runs; the stacks are in `file` afterwards.

    Raises:
        ConfigError: py-spy is missing, or may not look into the process.
    """
    found = Path(sys.executable).with_name("py-spy")
    program = str(found) if found.exists() else shutil.which("py-spy")
    if program is None:
        raise ConfigError("--profile needs py-spy: pip install py-spy")
    spy = subprocess.Popen(
        [program, "record", "--pid", str(pid), "--rate", str(RATE_HZ), "--format", "raw",
         "--full-filenames", "--duration", "3600", "--output", str(file)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        time.sleep(0.2)
        yield
    finally:
        spy.send_signal(signal.SIGINT)
        _, errors = spy.communicate(timeout=STOP_S)
    if not file.exists():
        raise ConfigError(f"py-spy wrote nothing: {errors.strip().splitlines()[-1:]}")


def shares(file: Path) -> dict[str, float]:
    """The share of each area in the samples of a file, the largest first; they add up to 1."""
    counts: Counter[str] = Counter()
    for line in file.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        if not any(frames[-1].startswith(name) and part in frames[-1] for name, part in WAITING):
            counts[area_of(frames)] += int(count)
    total = max(1, counts.total())
    return {area: count / total for area, count in counts.most_common()}


def area_of(frames: list[str]) -> str:
    """What a stack is for; its innermost frame comes last."""
    for frame in reversed(frames):
        match = _FRAME.search(frame)
        if match is None:
            continue
        file = "/" + match["file"].lstrip("/")
        for area, parts in AREAS:
            if any(part in file for part in parts):
                return area
    return OTHER
