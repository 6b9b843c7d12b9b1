"""
What a process pays for the packages it imports.

    python -m bench.hem_imports OUT.json MODULE [ARGUMENT …]

Runs `python -m MODULE ARGUMENT …`, notes what every import adds to resident memory and time, and
writes it when the program ends. Everything counts that the process imports on its way, however
late. A package's *own* part is that of its modules; *with others* is what came first with it. The
time that reading the memory takes is left out.
"""

from __future__ import annotations

import atexit
import json
import runpy
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from importlib import _bootstrap
from pathlib import Path
from typing import Any

STANDARD = "standard library"
BELONGS = {"pydantic_core": "pydantic", "_cffi_backend": "cffi"}
ROLLUP = Path("/proc/self/smaps_rollup")


def package_of(module: str) -> str:
    """The package that a module belongs to."""
    top = module.partition(".")[0]
    return STANDARD if top in sys.stdlib_module_names else BELONGS.get(top, top)


def resident_kb() -> int:
    """Of this process, exact."""
    for line in ROLLUP.read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1])
    raise AssertionError("the kernel tells no Rss")


class Profile:
    """Adds imports up, package by package."""

    def __init__(
        self, find: Callable[..., Any], memory_kb: Callable[[], int], now_s: Callable[[], float]
    ) -> None:
        self._find, self._memory_kb, self._now_s = find, memory_kb, now_s
        self._reading_s = 0.0
        self._thread = threading.get_ident()
        self._inside: list[list[float]] = []
        """Of every import under way: memory and time of those it waited for."""
        self._open: list[str] = []
        self.own: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self.with_others: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self.python_kb = memory_kb()

    def find_and_load(self, name: str, import_: Any) -> Any:
        """In place of `importlib._bootstrap._find_and_load`, which only loads what is not there."""
        if threading.get_ident() != self._thread:
            return self._find(name, import_)
        package = package_of(name)
        first = package not in self._open
        self._open.append(package)
        self._inside.append([0.0, 0.0])
        before = self._read()
        try:
            return self._find(name, import_)
        finally:
            after = self._read()
            spent = [b - a for a, b in zip(before, after, strict=True)]
            inner = self._inside.pop()
            self._open.pop()
            for at in (0, 1):
                self.own[package][at] += spent[at] - inner[at]
                if first:
                    self.with_others[package][at] += spent[at]
                if self._inside:
                    self._inside[-1][at] += spent[at]

    def _read(self) -> tuple[float, float]:
        began_s = self._now_s()
        kb = self._memory_kb()
        ended_s = self._now_s()
        self._reading_s += ended_s - began_s
        return kb, ended_s - self._reading_s

    def facts(self) -> dict[str, Any]:
        """The profile as JSON, dearest first."""
        dearest = sorted(self.own.items(), key=lambda item: item[1][0], reverse=True)
        return {
            "python_mb": _mb(self.python_kb),
            "imports_mb": _mb(sum(kb for kb, _ in self.own.values())),
            "imports_ms": round(sum(s for _, s in self.own.values()) * 1000, 1),
            "packages": [
                {
                    "package": package,
                    "own_mb": _mb(kb),
                    "own_ms": round(s * 1000, 1),
                    "with_others_mb": _mb(self.with_others[package][0]),
                    "with_others_ms": round(self.with_others[package][1] * 1000, 1),
                }
                for package, (kb, s) in dearest
            ],
        }


def _mb(kb: float) -> float:
    return round(kb * 1024 / 1e6, 2)


def main() -> None:
    """Run a module under the profile."""
    out, module, *arguments = sys.argv[1:]
    machinery: Any = _bootstrap
    profile = Profile(machinery._find_and_load, resident_kb, time.perf_counter)
    atexit.register(lambda: Path(out).write_text(json.dumps(profile.facts())))
    machinery._find_and_load = profile.find_and_load
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
