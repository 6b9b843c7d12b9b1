"""
Writes scripted_day.json: state roots of a market day that is wholly determined by this script.

Run it (`python tests/vectors/ledger/make_scripted_day.py`) only when the rules of execution change
on purpose; the changelog then says so, because an old chain can no longer be audited with new code.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FILE = HERE / "scripted_day.json"
sys.path.insert(0, str(HERE.parents[1]))

from support.chain_builder import (  # noqa: E402
    FIRST_SLOT,
    SUPERVISOR,
    VALIDATORS,
    Chain,
    auction,
    auction_bid,
    bid,
    cpf,
    key,
    receipt,
    slot_ms,
)

SLOTS = 96
HOMES = [key(f"day home {i}") for i in range(6)]


def run_day(chain: Chain) -> dict[str, Any]:
    """A day of six homes: orders, an auction every twelfth slot, receipts, some of them late."""
    chain.settle_in(*HOMES)
    roots = {}
    for slot in range(FIRST_SLOT + 1, FIRST_SLOT + 1 + SLOTS):
        hour = slot - FIRST_SLOT
        flexible = hour % 12 == 5
        if flexible:
            op = auction(f"flex-{hour}", "reverse" if hour % 24 == 5 else "forward", slot, 400,
                         200_000 if hour % 24 == 5 else 50_000, "as-bid")  # fmt: skip
            chain.block(slot_ms(slot - 1, 60), chain.tx(SUPERVISOR, op))
        chain.block(slot_ms(slot - 1, 120), *(_orders(chain, i, slot, flexible) for i in range(6)))
        receipts = [
            chain.tx(home, receipt(home, slot - 2, _net_wh(i, slot - 2), chain.chain_id))
            for i, home in enumerate(HOMES)
            if hour > 2 and (i + slot) % 7
        ]
        result = chain.block(slot_ms(slot - 1, 200), *receipts)
        assert all(r.codes == ("OK",) for r in result.receipts), result.receipts
        late = (2 - slot) % 7  # the home that was left out two slots ago
        if hour > 4 and late < 6 and hour % 2:
            said = receipt(HOMES[late], slot - 4, _net_wh(late, slot - 4), chain.chain_id)
            assert chain.codes(slot_ms(slot - 1, 220), HOMES[late], said) == ["OK"]
        if hour % 8 == 1 and hour > 8:
            said = cpf(VALIDATORS[hour // 8 % 4], slot - 2, 1000 * hour, chain.chain_id)
            chain.block(slot_ms(slot - 1, 240), chain.tx(HOMES[0], said))
        result = chain.block(slot_ms(slot, -300))
        if hour % 8 == 0:
            roots[str(hour)] = result.state_root.hex()
    end = chain.block(slot_ms(FIRST_SLOT + SLOTS + 4))
    return {
        "chainId": chain.chain_id,
        "height": end.height,
        "rootsByHour": roots,
        "stateRoot": end.state_root.hex(),
        "totals": chain.ledger.query("totals"),
        "balancesUc": {f"home {i}": sum(chain.account(h)) for i, h in enumerate(HOMES)},
    }


def _orders(chain: Chain, home: int, slot: int, flexible: bool) -> Any:
    wanted = 100 + (slot * 37 + home * 101) % 900
    price = 100_000 + (slot * 7919 + home * 104_729) % 150_000
    side = "buy" if (slot + home) % 3 else "sell"
    operations = [bid(side, slot, wanted, price)]
    if flexible:
        operations.append(auction_bid(f"flex-{slot - FIRST_SLOT}", 50 + home, price))
    return chain.tx(HOMES[home], *operations)


def _net_wh(home: int, slot: int) -> int:
    return (slot * 53 + home * 211) % 1_600 - 700


if __name__ == "__main__":
    FILE.write_text(json.dumps(run_day(Chain()), indent=1, sort_keys=True) + "\n")
