"""
The console with a made-up day, without a market: `python tests/support/console_preview.py [PORT]`.

For work on the page. The day runs at 600 times real time, or stands still at HOUR when given.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import uvicorn

sys.path.insert(0, str(Path(__file__).parents[1]))
from starlette.applications import Starlette
from support.made_up_day import DAY_START_MS, Moment, made_up_day, made_up_genesis, made_up_homes

from analytics.facts import facts_of
from analytics.live import LiveView, Situation
from analytics.report import build_report
from analytics.rollups import Rollup
from analytics.statements import BlockVotes, read_refused
from analytics.store import AnalyticsStore
from analytics.web import build_app
from market.settlement import settle


class Preview:
    """A view fed from the made-up day up to a moment."""

    def __init__(self, hour: float | None, folder: Path, homes: int = 10) -> None:
        self.facts = facts_of(made_up_genesis())
        self.rollup = Rollup(self.facts)
        self.store = AnalyticsStore(folder / "analytics.sqlite")
        self.view = LiveView(self.facts, self.rollup, "preview")
        self._votes = BlockVotes(self.facts)
        self._moments = made_up_day(homes=homes)
        self._next: Moment | None = next(self._moments)
        self._fixed_ms = None if hour is None else DAY_START_MS + int(hour * 3_600_000)
        self._folder = folder
        self._began_s = time.monotonic()
        self.situation()

    def now_ms(self) -> int:
        if self._fixed_ms is not None:
            return self._fixed_ms
        return DAY_START_MS - 120_000 + int((time.monotonic() - self._began_s) * 600_000)

    def situation(self) -> Situation:
        """Feed what has happened by now."""
        now_ms = self.now_ms()
        fed = False
        while self._next is not None and self._next.time_ms <= now_ms:
            self.feed(self._next)
            self._next = next(self._moments, None)
            fed = True
        if fed:
            self.store.flush({}, {})
        return Situation(now_ms, 600.0, True, 1.0)

    def feed(self, moment: Moment) -> None:
        """Take one moment as the service would."""
        if moment.kind == "event":
            self.store.add_event(moment.height, moment.time_ms, moment.body)
            self.rollup.fold_event(moment.height, moment.body)
        elif moment.kind == "state":
            self.store.add_state(moment.body)
            self.rollup.fold_state(moment.body)
        elif moment.kind == "refused":
            self.store.add_refused(*read_refused(moment.body))
            self.rollup.fold_refused(*read_refused(moment.body))
        elif (row := self._votes.take(moment.body)) is not None:
            self.store.add_block(row)
            self.rollup.fold_block(row)

    def report(self) -> dict[str, Any]:
        homes, balances = baseline_homes(self.rollup)
        audit = {
            "passed": True,
            "lines": ["290 blocks re-executed from genesis", "870 signatures verified"],
        }
        return build_report(
            self._folder, self.facts, homes=homes, final_balances=balances, audit=audit
        )

    def app(self) -> Starlette:
        return build_app(self.view, self.situation, self.report)


def baseline_homes(
    rollup: Rollup, count: int = 10
) -> tuple[list[dict[str, Any]], dict[str, dict[str, int]]]:
    """What the demo would hand to the report: homes with baselines, and final balances."""
    homes, balances = [], {}
    tariff = rollup.facts.tariff
    for i, home in enumerate(made_up_homes(count)):
        rows = [r[home.address] for r in rollup.settlements.values() if home.address in r]
        trades = [t for t in rollup.trades.values() if t["address"] == home.address]
        paid_uc = -sum(row["amountUc"] for row in rows) + sum(
            t["amountUc"] * (1 if t["side"] == "buy" else -1) for t in trades
        )
        alone_uc = sum(settle(row["netWh"], 0, 0, tariff).amount_uc for row in rows)
        battery = "battery" in home.kind
        soc = 3600 if battery else 0
        homes.append({
            "name": home.name, "address": home.address, "participant": home.participant,
            "kind": home.kind, "baseline_cost_uc": alone_uc - (90_000 - 25_000 * i) * battery,
            "baseline_import_wh": sum(max(0, row["netWh"]) for row in rows),
            "baseline_export_wh": sum(max(0, -row["netWh"]) for row in rows),
            "soc_start_wh": soc, "soc_end_wh": soc and soc - 420 + 60 * i,
            "baseline_soc_end_wh": soc and soc - 300,
        })  # fmt: skip
        balances[home.address] = {"balanceUc": 50_000_000 - paid_uc, "depositedUc": 50_000_000}
    return homes, balances


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8765
    hour = float(sys.argv[2]) if len(sys.argv) > 2 else None
    with tempfile.TemporaryDirectory() as folder:
        uvicorn.run(Preview(hour, Path(folder)).app(), port=port, log_level="warning")
