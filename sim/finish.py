"""The end of a run: audit, final balances, the day without a market, the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from analytics.report import build_report, write_report
from ledger.contracts.keys import account as account_key
from ledger.genesis import load_genesis
from ledger.store import LedgerStore
from market.settlement import Tariff
from sim.audit import Audit, audit
from sim.baseline import Baseline, day_without_market
from sim.feeder import DEPOSIT_UC, PRICES, SLOT_S, WARM_UP_SLOTS, Feeder
from sim.homes import Home

TARIFF = Tariff(PRICES.retail_uc_per_kwh, PRICES.feed_in_uc_per_kwh, PRICES.imbalance_uc_per_kwh)


def finish(feeder: Feeder, states: dict[str, Any]) -> dict[str, Any]:
    """
    Audit a stopped run and write its report.

    Args:
        states: per home what its gateway said right after the last slot (`socPermille`, `timeMs`)

    Returns:
        The summary: the report's `lines`, `bills`, `energy`, `blocks`, `auctions`; the audit; where
        the report is.
    """
    result = audit(feeder)
    report = build_report(
        feeder.out / "analytics",
        load_genesis(feeder.out / "genesis.json"),
        homes=[_home_row(feeder, home, states.get(home.name, {})) for home in feeder.homes],
        final_balances=_balances(feeder),
        audit={"passed": result.passed, "lines": result.lines},
    )
    page = write_report(report, feeder.out)
    summary = _summary(report, result, page)
    (feeder.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    return summary


def _summary(report: dict[str, Any], result: Audit, page: Path) -> dict[str, Any]:
    chosen = ("lines", "bills", "energy", "blocks", "auctions", "refusals")
    return {
        **{name: report[name] for name in chosen},
        "audit": {
            **result.facts,
            "passed": result.passed,
            "failed": result.failed,
            "lines": result.lines,
        },
        "report": str(page),
    }


def _home_row(feeder: Feeder, home: Home, state: dict[str, Any]) -> dict[str, Any]:
    """What only the run's owner knows of a home: who it is, and its day without a market."""
    baseline = without_market(home, feeder, state.get("timeMs", 0))
    capacity_wh = home.battery.capacity_wh if home.battery else 0
    identity = feeder.identity(home)
    end_ms = feeder.end_ms
    return {
        "name": home.name,
        "kind": home.kind,
        "address": identity["address"],
        "participant": identity["participant"],
        "baseline_cost_uc": baseline.cost_uc,
        "baseline_import_wh": baseline.import_wh,
        "baseline_export_wh": baseline.export_wh,
        "soc_start_wh": baseline.soc_start_permille * capacity_wh // 1000,
        "soc_end_wh": max(0, state.get("socPermille", 0)) * capacity_wh // 1000,
        "baseline_soc_end_wh": baseline.soc_end_permille * capacity_wh // 1000,
        "load_wh": home.load_wms(feeder.start_ms, end_ms) // 3_600_000,
        "generation_wh": home.pv_wms(feeder.start_ms, end_ms) // 3_600_000,
    }


def without_market(home: Home, feeder: Feeder, read_ms: int) -> Baseline:
    """
    The day of a home with its supplier alone.

    It warms up as long as the real home did, and its state of charge is read when the real one's
    was, so that the two differ by the market and by nothing else.
    """
    return day_without_market(
        home, TARIFF, SLOT_S, feeder.start_ms, feeder.slots, WARM_UP_SLOTS * SLOT_S * 1000, read_ms
    )


def _balances(feeder: Feeder) -> dict[str, dict[str, int]]:
    """Final balances of all homes, from the first validator's executed state."""
    store = LedgerStore.in_folder(feeder.ledger_folder(0), read_only=True)
    try:
        rows = dict(store.state_rows())
    finally:
        store.close()
    found = {}
    for home in feeder.homes:
        address = json.loads((feeder.home_folder(home) / "data" / "identity.json").read_text())[
            "address"
        ]
        # a chain that stopped early is the audit's finding; the report is written all the same
        row = rows.get(account_key(address), {"balanceUc": 0, "lockedUc": 0})
        found[address] = {
            "balanceUc": row["balanceUc"],
            "lockedUc": row["lockedUc"],
            "depositedUc": DEPOSIT_UC,
        }
    return found
