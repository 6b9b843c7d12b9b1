"""A CSM-DB in a folder, homes that enrol with it, and its command."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from support.brokers import REPOSITORY
from support.enrolment import AskingHome
from support.patience import PATIENCE_S

from csmdb.setup import CsmDb
from csmdb.sqlite import SqliteStorage
from csmdb.storage import Storage
from wire.certificates import Certificate

NOW_MS = 1_780_000_000_000


class StandingClock:
    """It is always now."""

    def now_ms(self) -> int:
        return NOW_MS

    def wall_ms(self) -> int:
        return NOW_MS

    def monotonic_s(self) -> float:
        return 0.0


def enrolled(csmdb: CsmDb, name: str = "home-1", **meter: str) -> AskingHome:
    home = AskingHome(name)
    code = csmdb.add_claim(["prosumer"], 10_000, 6_000, "feeder-1")
    decision = csmdb.desk.enroll(home.ems.id, home.enrolment(code, **meter), NOW_MS)
    assert isinstance(decision, Certificate), decision
    return home


def drop_triggers(db: Storage) -> None:
    """What somebody with the database in his hands does before he forges its log."""
    if isinstance(db, SqliteStorage):
        for event in ("update", "delete"):
            db.execute(f"DROP TRIGGER audit_no_{event}")
    else:
        db.execute("DROP TRIGGER audit_append_only ON audit")


def run_csmdb(*words: Any, code: int = 0, env: dict[str, str] | None = None) -> str:
    """What it printed: standard output, or standard error when it is to fail."""
    done = subprocess.run(
        [sys.executable, "-m", "csmdb.cli", *map(str, words)],
        capture_output=True,
        check=False,
        text=True,
        cwd=REPOSITORY,
        timeout=PATIENCE_S,
        env=env,
    )
    assert done.returncode == code, done.stderr
    return done.stderr if code else done.stdout
