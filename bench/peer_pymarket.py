"""
Times pymarket's auctions; runs in the virtual environment that `bench.peers` makes for it.

    python peer_pymarket.py MECHANISM ORDERS SEED

It imports nothing of ours. Prints one JSON object: CPU seconds of one clearing, without building
the market, and the energy traded.
"""

import importlib
import json
import random
import sys
import time
from typing import Any


def main() -> None:
    """Clear one random market."""
    mechanism, count, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    pymarket: Any = importlib.import_module("pymarket")
    numpy: Any = importlib.import_module("numpy")
    rng = random.Random(seed)
    market = pymarket.Market()
    for n in range(count):
        buying = n % 2 == 0
        price = rng.uniform(100_000, 300_000) if buying else rng.uniform(80_000, 280_000)
        market.accept_bid(rng.randint(1, 5_000), price, n, buying)
    extra = {} if mechanism == "huang" else {"r": numpy.random.RandomState(seed)}
    started_s = time.process_time()
    transactions, _ = market.run(mechanism, **extra)
    taken_s = time.process_time() - started_s
    traded = float(transactions.get_df().quantity.sum()) / 2
    print(json.dumps({"seconds": taken_s, "traded": traded}))


if __name__ == "__main__":
    main()
