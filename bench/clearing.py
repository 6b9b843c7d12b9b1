"""
How fast a double auction clears, beside what sorting its orders alone costs.

    python -m bench.clearing [--json]

Sorting both sides is the floor for any implementation in plain Python; the ratio to it, taken in
one run, is the figure to compare between machines. Conservation is checked on every size.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable

from market.double_auction import clear
from market.orders import Order, cheapest_first, dearest_first

SIZES = (100, 1_000, 10_000, 100_000)
REPEATS = 3
SEED = 1


def make_orders(count: int, seed: int, low: int, high: int) -> list[Order]:
    """Random orders: 1…5,000 Wh at prices in [low, high) µ¤/kWh."""
    rng = random.Random(seed)
    return [
        Order(f"a{n}", rng.randint(1, 5_000), rng.randrange(low, high), (0, n))
        for n in range(count)
    ]


def best_of(work: Callable[[], object]) -> float:
    """CPU seconds of the fastest of three runs."""
    times = []
    for _ in range(REPEATS):
        started_s = time.process_time()
        work()
        times.append(time.process_time() - started_s)
    return min(times)


def measure(size: int) -> dict[str, float]:
    """Clear `size` orders, half of them bids."""
    bids = make_orders(size // 2, SEED, 100_000, 300_000)
    offers = make_orders(size // 2, SEED + 1, 80_000, 280_000)
    clearing = clear(bids, offers)
    bought = sum(award.energy_wh for award in clearing.bid_awards)
    sold = sum(award.energy_wh for award in clearing.offer_awards)
    assert bought == sold == clearing.traded_wh > 0
    clear_s = best_of(lambda: clear(bids, offers))
    sort_s = best_of(lambda: (cheapest_first(offers), dearest_first(bids)))
    return {
        "orders": size,
        "clear_s": round(clear_s, 6),
        "orders_per_s": round(size / clear_s),
        "sort_s": round(sort_s, 6),
        "ratio_to_sort": round(clear_s / sort_s, 2),
    }


def main() -> None:
    """Print one line per size."""
    rows = [measure(size) for size in SIZES]
    if "--json" in sys.argv[1:]:
        print(json.dumps(rows))
        return
    for row in rows:
        print("  ".join(f"{name} {value:g}" for name, value in row.items()))


if __name__ == "__main__":
    main()
