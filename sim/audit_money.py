"""
The money's part of the audit: every balance follows from what the market announced.

From the events alone (awards, prices, settlements, late receipts) each home's bill is counted, and
its final balance must be its deposits less that bill. What the homes pay, the supervisor gets: the
bills of all add up to zero, except for what buyers paid into slots that are not settled yet.

A pair of buyer and seller is rounded once, in merit order, as `ledger.contracts.exchange` does it;
the pairs are made again here from the announced awards.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from ledger.contracts import keys
from sim.audit_trail import ChainRecord, Check, Trail, verdict
from wire.units import cost_uc


def check_money(trail: Trail) -> Check:
    """Balances are deposits less bills, and the bills of homes and supervisor sum to zero."""
    chain, supervisor = trail.chain, trail.genesis.supervisor
    bills, escrow_uc = _bills(chain)
    faults, homes_uc = [], 0
    for home in trail.homes:
        bill_uc = sum(bills.pop(address, 0) for address in home.addresses)
        expected_uc = sum(chain.deposits_uc.get(a, 0) for a in home.addresses) - bill_uc
        held_uc = sum(_held(chain, address) for address in home.addresses)
        homes_uc += bill_uc
        if held_uc != expected_uc:
            faults.append(f"{home.name} holds {held_uc} µ¤, deposits less bill are {expected_uc}")
    expected_uc = supervisor.balance_uc + homes_uc - escrow_uc
    held_uc = _held(chain, supervisor.address)
    if held_uc != expected_uc:
        faults.append(f"the supervisor holds {held_uc} µ¤, {expected_uc} follow from the bills")
    faults += [f"{address} has a bill and no home" for address in sorted(bills)]
    text = (
        f"every balance is deposits less bill; the homes' bills {homes_uc / 1e6:.6f} ¤ and the"
        f" supervisor's {-homes_uc / 1e6:.6f} ¤ add up to zero"
    )
    return verdict("money", faults, text)


def _bills(chain: ChainRecord) -> tuple[dict[str, int], int]:
    """
    What each address paid in the market [µ¤], and what waits in escrow for a settlement.

    The supervisor's side is not counted: it is what must follow from the homes'.
    """
    bills: dict[str, int] = defaultdict(int)
    escrow_uc = 0
    for slot, event in chain.cleared.items():
        paid, earned = _cleared(event)
        for address, amount_uc in paid.items():
            bills[address] += amount_uc
        if slot not in chain.settled:
            escrow_uc += sum(earned.values())
            continue
        for address, amount_uc in earned.items():
            bills[address] -= amount_uc
    for template, event in chain.auctions:
        escrow_uc += _flexibility(bills, template, event, event["slot"] in chain.settled)
    for events in chain.settled.values():
        for row in (row for event in events for row in event["rows"]):
            bills[row["address"]] -= row["amountUc"]
    for (_, address), rows in chain.trued_up.items():
        bills[address] -= sum(row["amountUc"] for row in rows)
    return bills, escrow_uc


def _cleared(event: dict[str, Any]) -> tuple[dict[str, int], dict[str, int]]:
    """Money paid and earned in an auction between homes, by address [µ¤]."""
    paid: dict[str, int] = defaultdict(int)
    earned: dict[str, int] = defaultdict(int)
    sells = [[a["address"], a["energyWh"]] for a in event["awards"] if a["side"] == "sell"]
    for award in event["awards"]:
        left_wh = award["energyWh"] if award["side"] == "buy" else 0
        while left_wh and sells:
            seller, offered_wh = sells[0]
            piece_wh = min(left_wh, offered_wh)
            amount_uc = cost_uc(piece_wh, event["priceUcPerKwh"])
            paid[award["address"]] += amount_uc
            earned[seller] += amount_uc
            left_wh -= piece_wh
            sells[0][1] -= piece_wh
            if not sells[0][1]:
                sells.pop(0)
    return paid, earned


def _flexibility(bills: dict[str, int], template: str, event: dict[str, Any], settled: bool) -> int:
    """
    Add an aggregator's auction to the homes' bills; what it left in escrow [µ¤].

    What the supervisor has paid a home before the settlement is not the home's yet, what a home
    paid the supervisor has not arrived.
    """
    amounts = [(a["address"], cost_uc(a["energyWh"], a["priceUcPerKwh"])) for a in event["awards"]]
    if template == "forward":
        for address, amount_uc in amounts:
            bills[address] += amount_uc
    elif settled:
        for address, amount_uc in amounts:
            bills[address] -= amount_uc
    return 0 if settled else sum(amount_uc for _, amount_uc in amounts)


def _held(chain: ChainRecord, address: str) -> int:
    row = chain.state.get(keys.account(address))
    return 0 if row is None else int(row["balanceUc"] + row["lockedUc"])
