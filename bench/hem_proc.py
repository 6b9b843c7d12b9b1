"""
What the kernel says of a process: memory, processor time, bytes written.

Processes of one program share its files in memory, and with them everything else that runs here. So
the memory of some of them *together* is their own memory (anonymous), and each file's pages once,
as many as the process with the most of them holds: what they would need on a machine of their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

KB = 1024
MB = 1_000_000.0


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one process [MB]."""

    rss_mb: float
    """Resident; pages shared with others count in full."""
    pss_mb: float
    """Pages shared with others count in part, by how many share them here."""
    uss_mb: float
    """Pages that nobody else here has."""
    anonymous_mb: float
    """Heap and stacks: no file's pages."""


def memory(pid: int) -> Memory:
    """Now (`/proc/PID/smaps_rollup`)."""
    found: Counter[str] = Counter()
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value, *_ = line.split()
        found[name.rstrip(":")] += int(value) * KB
    return Memory(
        rss_mb=found["Rss"] / MB,
        pss_mb=found["Pss"] / MB,
        uss_mb=(found["Private_Clean"] + found["Private_Dirty"]) / MB,
        anonymous_mb=found["Anonymous"] / MB,
    )


def together_mb(pids: Iterable[int]) -> float:
    """Memory of some processes, each file's pages once [MB]."""
    return together_bytes([Path(f"/proc/{pid}/smaps").read_text() for pid in pids]) / MB


def together_bytes(smaps: Iterable[str]) -> int:
    """The same of the contents of `/proc/PID/smaps` (proc_pid_smaps(5))."""
    own, files = 0, Counter[str]()
    for text in smaps:
        mapped: Counter[str] = Counter()
        file = ""
        for line in text.splitlines():
            words = line.split()
            if not words[0].endswith(":"):  # address, permissions, offset, device, inode, path
                file = " ".join(words[2:5]) if words[4] != "0" else ""
            elif words[0] == "Rss:":
                mapped[file] += int(words[1]) * KB
            elif words[0] == "Anonymous:" and file:
                mapped[file] -= int(words[1]) * KB
                mapped[""] += int(words[1]) * KB
        own += mapped.pop("", 0)
        files |= mapped
    return own + files.total()


def written_bytes(pid: int) -> int:
    """What the process has caused to be written to the disk so far (`/proc/PID/io`)."""
    for line in Path(f"/proc/{pid}/io").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "write_bytes":
            return int(value)
    raise AssertionError("the kernel counts no write_bytes")
