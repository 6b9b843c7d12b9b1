"""The end of a run: audit, final balances, the day without a market, the report."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from analytics.report import build_report, write_report
from ledger.contracts.keys import ACCOUNT, SLOT
from ledger.genesis import load_genesis
from ledger.store import LedgerStore
from market.settlement import Tariff
from sim.audit import Audit, audit
from sim.audit_history import deposits_of, read_history
from sim.audit_trail import read_homes
from sim.baseline import Baseline, day_without_market
from sim.feeder import PRICES, SLOT_S, WARM_UP_SLOTS, Feeder
from sim.homes import Home

TARIFF = Tariff(PRICES.retail_uc_per_kwh, PRICES.feed_in_uc_per_kwh, PRICES.imbalance_uc_per_kwh)


def finish(feeder: Feeder, states: dict[str, Any]) -> dict[str, Any]:
    """
    Audit a stopped run and write its report.

    Args:
        states: per home what its gateway said right after the last slot (`socPermille`, `timeMs`)

    Returns:
        The summary: the report's `lines`, `bills`, `energy`, `markets`, `blocks`, `auctions`; the
        audit; where the report is. When more than one market was used, a line tells the energy and
        the money of each.
    """
    result = audit(feeder)
    records, _ = read_homes(feeder)
    addresses = {record.name: sorted(record.addresses) for record in records}
    report = build_report(
        feeder.out / "analytics",
        load_genesis(feeder.out / "genesis.json"),
        homes=[
            _home_row(feeder, home, addresses[home.name], states.get(home.name, {}))
            for home in feeder.homes
        ],
        final_balances=_balances(feeder),
        audit={"passed": result.passed, "lines": result.lines},
    )
    page = write_report(report, feeder.out)
    summary = _summary(report, result, page)
    (feeder.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    return summary


def _summary(report: dict[str, Any], result: Audit, page: Path) -> dict[str, Any]:
    chosen = ("lines", "bills", "energy", "markets", "blocks", "auctions", "refusals")
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


def _home_row(
    feeder: Feeder, home: Home, addresses: list[str], state: dict[str, Any]
) -> dict[str, Any]:
    """What only the run's owner knows of a home: who it is, and its day without a market."""
    baseline = without_market(home, feeder, state.get("timeMs", 0))
    capacity_wh = home.battery.capacity_wh if home.battery else 0
    identity = feeder.identity(home)
    end_ms = feeder.end_ms
    return {
        "name": home.name,
        "kind": home.kind,
        "addresses": addresses or [identity["address"]],
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
    """Final balances and deposits of all accounts, from the first validator's chain."""
    store = LedgerStore.in_folder(feeder.ledger_folder(0), read_only=True)
    try:
        return balances_of(dict(store.state_rows()), deposits_of(read_history(store)))
    finally:
        store.close()


def balances_of(state: dict[str, Any], deposits: dict[str, int]) -> dict[str, dict[str, int]]:
    """
    What each account holds: free, locked, and waiting for the settlement of a slot [µ¤].

    Args:
        state: all rows
        deposits: what was credited to each address
    """
    waiting: dict[str, int] = defaultdict(int)
    for key, row in state.items():
        contract, _, place = key.partition("/")
        if contract == "position":
            slot, _, address = place.partition("/")
            if not state[SLOT + slot]["settled"]:
                waiting[address] += row["receivableUc"]
    accounts = {k.removeprefix(ACCOUNT): v for k, v in state.items() if k.startswith(ACCOUNT)}
    return {
        address: {
            "balanceUc": row["balanceUc"],
            "lockedUc": row["lockedUc"],
            "escrowUc": waiting[address],
            "depositedUc": deposits.get(address, 0),
        }
        for address, row in accounts.items()
    }
