"""
The report of a run: what was traded, what it saved whom and why, and how the ledger behaved.

`build_report` folds the analytics database once more, from its beginning, and adds what only the
caller knows (the day without a market, final balances, the audit). `write_report` puts
`report.html`, `report.json` and plotly.js side by side: they open from a file, without a network.
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analytics.billing import Paid, SettledSlot, bill, read_home, traded_by_kind
from analytics.core import EnergyBalance, energy_balance, percentile
from analytics.facts import MarketFacts, facts_of
from analytics.rollups import Rollup, Row
from analytics.store import AnalyticsStore
from analytics.trades import MARKETS, by_kind
from ledger.genesis import Genesis
from wire.errors import ConfigError

DATABASE = "analytics.sqlite"
HISTOGRAM_BINS = 30

FORMULAE = {
    "Self-sufficiency": "(L − I) / L: L load of all homes, I = Σ over slots of max(0, Σ homes' net)"
    " drawn from outside the feeder",
    "Self-consumption": "(G − X) / G: G generation, X = Σ over slots of max(0, −Σ homes' net) sent "
    "outside the feeder",
    "From neighbours": "Σ over slots and homes of max(0, net) − I: left one meter and entered "
    "another in the same slot",
    "Traded locally": "Σ over slots and markets of the energy that homes contracted with each "
    "other, without what the grid supervisor took or gave; contracts, which meters then confirmed "
    "or residuals made good",
}


def build_report(
    database: Path,
    market: Genesis | MarketFacts,
    *,
    homes: Sequence[Mapping[str, Any]] = (),
    final_balances: Mapping[str, Mapping[str, Any]] | None = None,
    audit: Mapping[str, Any] | None = None,
    currency: str = "¤",
) -> dict[str, Any]:
    """
    Make the report of everything in an analytics database.

    Args:
        database: `analytics.sqlite`, or the folder that holds it; may be in use
        market: the genesis (or its facts)
        homes: per home `name, address (or addresses), participant, kind, baseline_cost_uc,
            baseline_import_wh, baseline_export_wh, soc_start_wh, soc_end_wh, baseline_soc_end_wh`
            and, if known, `load_wh`, `generation_wh`; without them there are no bills
        final_balances: per address `balanceUc`, `depositedUc` (and `lockedUc`, `escrowUc`); what it
            withdrew, the events tell
        audit: `passed` and `lines`, or any object of facts
        currency: sign for amounts

    Returns:
        A JSON object; `lines` holds its summary in sentences.

    Raises:
        ConfigError: there is no such database.
    """
    facts = facts_of(market) if isinstance(market, Genesis) else market
    rollup = _fold(database, facts)
    settled = sorted(rollup.settlements)
    balance = _energy(rollup, settled, homes)
    bills = _bills(rollup, homes, final_balances or {})
    slots = sorted(rollup.slots.values(), key=lambda row: int(row["slot"]))
    tariffs = _tariffs(rollup, [row["slot"] for row in slots])
    report: dict[str, Any] = {
        "market": facts.market,
        "chainId": facts.chain_id,
        "currency": currency,
        "slotS": facts.grid.length_s,
        "startMs": min((row["startMs"] for row in slots), default=facts.first_day_ms),
        "endMs": max((facts.grid.end_ms(row["slot"]) for row in slots), default=facts.first_day_ms),
        "tariff": tariffs[-1],
        "tariffs": tariffs,
        "energy": {
            "tradedWh": sum(row.get("tradedWh", 0) for row in slots),
            "flexWh": sum(row.get("flexWh", 0) for row in slots),
            "loadWh": balance.load_wh,
            "generationWh": balance.generation_wh,
            "importWh": balance.import_wh,
            "exportWh": balance.export_wh,
            "sharedWh": balance.shared_wh,
            "ownWh": max(0, balance.load_wh - balance.home_import_wh),
            "selfSufficiencyPermille": balance.self_sufficiency_permille,
            "selfConsumptionPermille": balance.self_consumption_permille,
            "settledSlots": len(settled),
            "missingReceipts": sum(row.get("missing", 0) for row in slots),
        },
        "markets": [
            {"kind": kind, "name": MARKETS[kind], **sums}
            for kind, sums in by_kind(rollup.volumes()).items()
        ],
        "marketNames": MARKETS,
        "supervisor": {
            "address": facts.supervisor,
            "paidUc": rollup.money.paid_uc(facts.supervisor),
            "byReason": rollup.money.of(facts.supervisor),
        },
        "formulae": FORMULAE,
        "bills": bills,
        "slots": slots,
        "auctions": sorted(rollup.auctions.values(), key=lambda row: int(row["slot"])),
        "blocks": _blocks(rollup),
        "refusals": [
            {"component": component, "reason": reason, "count": count}
            for (component, reason), count in sorted(
                rollup.refusals.items(), key=lambda item: -item[1]
            )
            if count
        ],
        "audit": read_audit(audit),
    }
    report["lines"] = summary_lines(report)
    report["summary"] = report["lines"][0]
    return report


def write_report(report: Mapping[str, Any], folder: Path) -> Path:
    """Write `report.html`, `report.json` and `plotly.min.js`; return the path of the page."""
    from analytics.report_page import PLOTLY_JS, render_html  # noqa: PLC0415 templates only here

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(
        json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    shutil.copyfile(PLOTLY_JS, folder / PLOTLY_JS.name)
    page = folder / "report.html"
    page.write_text(render_html(report), encoding="utf-8")
    return page


def summary_lines(report: Mapping[str, Any]) -> list[str]:
    """The report in sentences, the most important first."""
    energy, blocks, bills = report["energy"], report["blocks"], report["bills"]
    kwh = energy["tradedWh"] / 1000
    first = f"The homes traded {kwh:.1f} kWh among themselves"
    if energy["flexWh"]:
        first += f" and sold {energy['flexWh'] / 1000:.1f} kWh of flexibility"
    share = energy["selfSufficiencyPermille"]
    if share is not None:
        first += f"; {share / 10:.0f} % of their load was met on the feeder"
    lines = [first + "."]
    if bills:
        saved = sum(row["savedUc"] for row in bills) / 1e6
        alone = sum(row["baselineUc"] for row in bills) / 1e6
        worse = [row for row in bills if row["worseOff"]]
        verdict = "nobody is worse off" if not worse else f"worse off: {len(worse)}"
        lines.append(
            f"Together the {len(bills)} homes pay {abs(saved):.2f} {report['currency']}"
            f" {'less' if saved >= 0 else 'more'} than without a market"
            f" ({alone:.2f} {report['currency']}); {verdict}."
        )
        lines += [
            f"{row['home']} pays {-row['savedUc'] / 1e6:.3f} {report['currency']} more:"
            f" {row['why']}."
            for row in worse
        ]
        lines += [row["warning"] for row in bills if row.get("warning")]
    if len(report["markets"]) > 1:
        lines.append(_by_market(report["markets"], report["currency"]))
    finality = blocks["finality"]
    if finality["p50"] is not None:
        lines.append(
            f"{blocks['count']} blocks, {blocks['txs']} transactions; finality p50"
            f" {finality['p50']} ms, p95 {finality['p95']} ms, p99 {finality['p99']} ms."
        )
    return lines


def _by_market(markets: Sequence[Mapping[str, Any]], currency: str) -> str:
    """Energy and money of each market, in one sentence."""
    said = [
        f"{row['name']} {row['energyWh'] / 1000:.1f} kWh for {row['moneyUc'] / 1e6:.2f} {currency}"
        for row in markets
    ]
    return f"By market: {'; '.join(said)}."


def read_audit(audit: Mapping[str, Any] | None) -> dict[str, Any]:
    """An audit's result as `passed` (absent when it was not run) and `lines`."""
    if not audit:
        return {"lines": []}
    lines = [str(line) for line in audit.get("lines", ())]
    for name, value in audit.items():
        if name not in ("passed", "lines"):
            lines.append(f"{name}: {value}")
    found: dict[str, Any] = {"lines": lines}
    if "passed" in audit:
        found["passed"] = bool(audit["passed"])
    return found


def _fold(database: Path, facts: MarketFacts) -> Rollup:
    path = database / DATABASE if database.is_dir() else database
    if not path.is_file():
        raise ConfigError(f"{path}: no such database; has `analytics run` been here?")
    rollup = Rollup(facts, keep_days=0)
    store = AnalyticsStore(path)
    try:
        store.replay(rollup)
    finally:
        store.close()
    return rollup


def _energy(
    rollup: Rollup, settled: Sequence[int], homes: Sequence[Mapping[str, Any]]
) -> EnergyBalance:
    """Load and generation as handed in when known of every home, else from the homes' states."""
    nets = (rollup.metered_nets(slot) for slot in settled)
    if homes and all("load_wh" in home and "generation_wh" in home for home in homes):
        load_wh = sum(int(home["load_wh"]) for home in homes)
        generation_wh = sum(int(home["generation_wh"]) for home in homes)
    else:
        load_wh = rollup.energy_wh("load", settled)
        generation_wh = rollup.energy_wh("pv", settled)
    return energy_balance(nets, load_wh, generation_wh)


def _bills(
    rollup: Rollup,
    homes: Sequence[Mapping[str, Any]],
    balances: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    awards: dict[tuple[int, str], list[Row]] = defaultdict(list)
    for trade in rollup.trades.values():
        awards[trade["slot"], trade["address"]].append(trade)
    latest = rollup.rules.tariff(max((row["slot"] for row in rollup.slots.values()), default=0))
    lines = []
    for value in homes:
        home = read_home(value)
        settled = [
            SettledSlot(
                row=rows[address],
                trades=awards[slot, address],
                tariff=rollup.rules.tariff(slot),
                scheduled=(slot, address) in rollup.scheduled,
            )
            for slot, rows in sorted(rollup.settlements.items())
            for address in home.addresses
            if address in rows
        ]
        line = bill(home, settled, balances, latest, _paid_beside(rollup, home.addresses))
        own = [t for t in rollup.trades.values() if t["address"] in home.addresses]
        lines.append({**line, "markets": traded_by_kind(own)})
    return lines


def _paid_beside(rollup: Rollup, addresses: Sequence[str]) -> Paid:
    """What a home paid beside trades and settlements."""
    paid = [rollup.money.of(address) for address in addresses]
    return Paid(
        fees_uc=sum(one["fees"] for one in paid),
        lost_uc=sum(one["lost"] for one in paid),
        rewards_uc=sum(one["rewards"] for one in paid),
        withdrawn_uc=sum(rollup.money.withdrawn_uc.get(address, 0) for address in addresses),
    )


def _tariffs(rollup: Rollup, slots: Sequence[int]) -> list[dict[str, int]]:
    """The supervisor's prices in the order of slots, one row for each time they changed."""
    rows: list[dict[str, int]] = []
    for slot in slots or [0]:
        tariff = rollup.rules.tariff(slot)
        row = {
            "retailUc": tariff.retail_uc_per_kwh,
            "feedInUc": tariff.feed_in_uc_per_kwh,
            "imbalanceUc": tariff.imbalance_uc_per_kwh,
        }
        if not rows or any(rows[-1][name] != price for name, price in row.items()):
            rows.append({"startMs": rollup.facts.grid.start_ms(slot), **row})
    return rows


def _blocks(rollup: Rollup) -> dict[str, Any]:
    finality = [row["finalityMs"] for row in rollup.blocks.values()]
    turns = sum(row["turns"] for row in rollup.validators.values()) or 1
    return {
        "count": len(rollup.blocks),
        "height": rollup.height,
        "txs": rollup.txs,
        "finality": {
            "p50": percentile(finality, 0.50),
            "p95": percentile(finality, 0.95),
            "p99": percentile(finality, 0.99),
            "max": max(finality, default=None),
            "histogram": histogram(finality, HISTOGRAM_BINS),
        },
        "leaders": [
            {
                **{k: row[k] for k in ("id", "controller", "turns", "txs")},
                "sharePermille": row["turns"] * 1000 // turns,
                "meanCpfQ16": row["cpfSum"] // row["cpfCount"] if row.get("cpfCount") else None,
                "attestations": row.get("cpfCount", 0),
                "eligible": row.get("eligibleCount", 0),
            }
            for row in sorted(
                rollup.validators.values(), key=lambda row: (row["controller"], row["id"])
            )
        ],
    }


def histogram(values: Sequence[int], bins: int) -> list[dict[str, int]]:
    """
    Counts in equal steps up to the 99th percentile; what lies beyond is in the last one.

    The long tail of a busy machine would otherwise press everything into the first step.
    """
    top = percentile(values, 0.99)
    if top is None:
        return []
    step = max(1, -(-(top + 1) // bins))
    counts = [0] * bins
    for value in values:
        counts[min(value // step, bins - 1)] += 1
    return [
        {"fromMs": i * step, "toMs": (i + 1) * step, "count": count}
        for i, count in enumerate(counts)
    ]
