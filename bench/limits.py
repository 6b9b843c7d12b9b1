"""
What this machine can do at most: Ed25519 verifications, disk flushes.

A benchmark's figures are read beside these, taken in the same run, so that they compare between
machines. One verification is what one transaction costs a validator at least.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from nacl.signing import SigningKey

MESSAGE_BYTES = 480
"""About what a transaction with one order signs."""
MESSAGES = 256
FLUSHES = 100
FLUSH_BYTES = 512


def verifications_per_s(cores: int, seconds: float) -> float:
    """Ed25519 verifications a second with PyNaCl (libsodium), `cores` processes at once."""
    if cores == 1:
        return verify_for(seconds)
    with ProcessPoolExecutor(cores, get_context("spawn")) as pool:
        list(pool.map(verify_for, [0.01] * cores))  # start them before the clock runs
        return sum(pool.map(verify_for, [seconds] * cores))


def verify_for(seconds: float) -> float:
    """Verify different messages in this process; how many a second."""
    key = SigningKey(bytes(32))
    signed = [key.sign(n.to_bytes(4, "big") * (MESSAGE_BYTES // 4)) for n in range(MESSAGES)]
    public = key.verify_key
    done, started_s = 0, time.perf_counter()
    while (taken_s := time.perf_counter() - started_s) < seconds:
        for one in signed:
            public.verify(one.message, one.signature)
        done += MESSAGES
    return done / taken_s


def flush_ms(folder: Path) -> float:
    """Median time of an fdatasync of a few bytes in `folder` [ms]."""
    times = []
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        for _ in range(FLUSHES):
            file.write(bytes(FLUSH_BYTES))
            file.flush()
            started_s = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - started_s)
    return statistics.median(times) * 1000


def cpu_s(pid: int) -> float:
    """Processor time of a process so far, user and system [s]; 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    if fields[0] == "Z":  # killed: whoever killed it has counted it
        return 0.0
    return (int(fields[11]) + int(fields[12])) / float(os.sysconf("SC_CLK_TCK"))
