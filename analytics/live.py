"""
The console's view: what changed since a cursor, as one JSON object. Pure.

Cheap by design: rows come from `Rollup` tables that know what is new; the tiles are made again only
when the revision has moved.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from analytics.core import energy_balance, percentile
from analytics.facts import DAY_MS, MarketFacts
from analytics.rollups import Rollup
from analytics.trades import MARKETS, by_kind

MAX_TRADES = 60
STALE_SLOTS = 3
"""A ledger that gave no block for so many slots is reported."""


@dataclass(frozen=True, slots=True)
class Situation:
    """What the shell knows of the moment."""

    now_ms: int
    speed: float
    """Market seconds per real second."""
    connected: bool
    uptime_s: float


@dataclass(slots=True)
class LiveView:
    """Answers the page's polls from a rollup."""

    facts: MarketFacts
    rollup: Rollup
    boot: str
    """Differs after every restart, so that a page notices and asks for everything."""
    currency: str = "¤"
    _tiles: tuple[tuple[int, int], dict[str, Any]] | None = field(default=None)

    def answer(self, cursor: str, situation: Situation) -> dict[str, Any]:
        """What changed since `cursor` ("" for everything)."""
        boot, _, text = cursor.rpartition(".")
        known = int(text) if boot == self.boot and text.isdigit() and len(text) < 16 else -1
        rollup = self.rollup
        day_start_ms = self.facts.day_start_ms(situation.now_ms)
        reply: dict[str, Any] = {
            "cursor": f"{self.boot}.{rollup.revision}",
            "full": known < 0,
            "nowMs": situation.now_ms,
            "speed": round(situation.speed, 2),
            "day": {
                "startMs": day_start_ms,
                "endMs": day_start_ms + DAY_MS,
                "number": (day_start_ms - self.facts.first_day_ms) // DAY_MS + 1,
            },
            "health": health(rollup, situation),
            "tariff": self._tariff(situation.now_ms),
            "tiles": self._measure(situation.now_ms),
            "slots": rollup.slots.since(known),
            "trades": rollup.trades.since(known)[-MAX_TRADES:],
            "auctions": rollup.auctions.since(known),
            "blocks": rollup.blocks.since(known),
            "validators": rollup.validators.since(known),
            "homes": rollup.homes.since(known),
        }
        if known < 0:
            reply["market"] = {
                "name": self.facts.market,
                "chainId": self.facts.chain_id,
                "slotS": self.facts.grid.length_s,
                "markets": MARKETS,
                "currency": self.currency,
            }
        return reply

    def summary(self, situation: Situation) -> dict[str, Any]:
        """The day in one flat object, for progress displays and scripts."""
        tiles = self._measure(situation.now_ms)
        supervisor = self.facts.supervisor
        return {
            "timeMs": situation.now_ms,
            "height": tiles["height"],
            "txs": tiles["txs"],
            "tradedWh": tiles["tradedWh"],
            "flexWh": tiles["flexWh"],
            "markets": tiles["markets"],
            "finalityP50Ms": tiles["finality"]["p50"] or 0,
            "finalityP95Ms": tiles["finality"]["p95"] or 0,
            "homes": tiles["homes"],
            "homesOnline": tiles["homesOnline"],
            "funded": sum(
                1 for a, uc in self.rollup.balances.items() if uc > 0 and a != supervisor
            ),
            "refused": tiles["refused"]["total"],
            "health": health(self.rollup, situation)["state"],
        }

    def answer_health(self, situation: Situation) -> dict[str, Any]:
        """State and reasons, for `/healthz`."""
        return health(self.rollup, situation)

    def _tariff(self, now_ms: int) -> dict[str, int]:
        """The supervisor's prices of the running slot."""
        tariff = self.rollup.rules.tariff(self.facts.grid.slot_at(now_ms))
        return {"retailUc": tariff.retail_uc_per_kwh, "feedInUc": tariff.feed_in_uc_per_kwh}

    def _measure(self, now_ms: int) -> dict[str, Any]:
        key = (self.rollup.revision, self.facts.grid.slot_at(now_ms))
        if self._tiles is None or self._tiles[0] != key:
            self._tiles = (key, measures(self.facts, self.rollup, now_ms))
        return self._tiles[1]


def measures(facts: MarketFacts, rollup: Rollup, now_ms: int) -> dict[str, Any]:
    """The tiles: the market's day so far, in one row of numbers."""
    start = facts.grid.slot_at(facts.day_start_ms(now_ms))
    end = start + facts.slots_per_day
    current = facts.grid.slot_at(now_ms)
    day = [row for row in rollup.slots.values() if start <= row["slot"] < end]
    settled = [row["slot"] for row in day if "netWh" in row]
    balance = energy_balance(
        (rollup.metered_nets(slot) for slot in settled),
        rollup.energy_wh("load", settled),
        rollup.energy_wh("pv", settled),
    )
    in_day = (v for v in rollup.volumes() if start <= v.slot < end)
    priced = [row for row in day if "priceUc" in row and row["slot"] <= current + 1]
    finality = [row["finalityMs"] for row in rollup.blocks.values()]
    homes = list(rollup.homes.values())
    reasons: dict[str, int] = {}
    for (_, reason), count in rollup.refusals.items():
        reasons[reason] = reasons.get(reason, 0) + count
    return {
        "tradedWh": sum(row.get("tradedWh", 0) for row in day),
        "flexWh": sum(row.get("flexWh", 0) for row in day),
        "markets": by_kind(in_day),
        "sharedWh": balance.shared_wh,
        "selfSufficiency": balance.self_sufficiency_permille,
        "selfConsumption": balance.self_consumption_permille,
        "price": max(priced, key=lambda row: int(row["slot"]), default=None),
        "height": rollup.height,
        "txs": rollup.txs,
        "finality": {
            "p50": percentile(finality, 0.50),
            "p95": percentile(finality, 0.95),
            "n": len(finality),
        },
        "refused": {
            "total": sum(reasons.values()),
            "reasons": sorted(reasons.items(), key=lambda item: (-item[1], item[0])),
        },
        "homes": len(homes),
        "homesOnline": sum(1 for row in homes if row["online"]),
    }


def health(rollup: Rollup, situation: Situation) -> dict[str, Any]:
    """State `ok`, `starting`, `degraded` or `down`, and why in plain words."""
    reasons = []
    if not situation.connected:
        reasons.append("no connection to the broker")
    latest = rollup.blocks.last()
    slot_ms = rollup.facts.grid.length_s * 1000
    if latest is not None and situation.now_ms - latest["timeMs"] > STALE_SLOTS * slot_ms:
        reasons.append("no new block for three slots")
    absent = [row for row in rollup.homes.values() if not row["online"]]
    if absent:
        reasons.append(f"{len(absent)} of {len(rollup.homes)} homes offline")
    faulty = sum(1 for row in rollup.homes.values() if row["online"] and row.get("lost"))
    if faulty:
        reasons.append(f"devices lost in {faulty} homes" if faulty > 1 else "a device is lost")
    if not situation.connected:
        state = "down"
    elif reasons:
        state = "degraded"
    else:
        state = "ok" if latest is not None else "starting"
    if state == "starting":
        reasons.append("waiting for the first block")
    return {"state": state, "reasons": reasons}
