"""
Other people's clearings, for comparison in the same run: pymarket in an environment of its own.

The environment is made once in a cache folder. pymarket's last version is of 2019 and needs the
pandas of before version 3, which hands out arrays that cannot be written.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

PACKAGES = ("pymarket==0.7.6", "pandas>=2.2,<3")
MECHANISMS = ("huang", "muda", "p2p")
SCRIPT = Path(__file__).with_name("peer_pymarket.py")
INSTALL_S = 300
RUN_S = 60


def cache_folder() -> Path:
    """Where the environment is kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "hearthgrid-bench"


def install(folder: Path) -> tuple[Path | None, str]:
    """
    Make the environment, or find it.

    Returns:
        Its interpreter, or None and why there is none.
    """
    environment = folder / "pymarket"
    python = environment / "bin" / "python"
    ready = environment / "ready"
    if ready.exists():
        return python, ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _run([sys.executable, "-m", "venv", "--clear", str(environment)], INSTALL_S)
        quiet = ["--quiet", "--disable-pip-version-check"]
        _run([str(python), "-m", "pip", "install", *quiet, *PACKAGES], INSTALL_S)
        _run([str(python), "-c", "import pymarket"], RUN_S)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        return None, str(said).strip().splitlines()[-1][:200]
    ready.touch()
    return python, ""


def time_pymarket(python: Path, mechanism: str, orders: int, seed: int) -> float | None:
    """CPU seconds of one clearing; None when it failed or took more than a minute."""
    try:
        said = _run([str(python), str(SCRIPT), mechanism, str(orders), str(seed)], RUN_S)
        return float(json.loads(said.splitlines()[-1])["seconds"])
    except (subprocess.SubprocessError, ValueError, KeyError, IndexError):
        return None


def _run(command: list[str], limit_s: float) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=limit_s)
    return done.stdout
