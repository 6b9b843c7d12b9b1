"""
How fast each auction clears, from a hundred to a million random orders.

    python -m bench.market [--json] [--short] [--no-peers] [--cache DIR]

CPU seconds on one core, the best of up to seven runs. Beside them, in the same run:

- **numpy sort-and-cross**: both sides sorted and accumulated as arrays, and where they cross. It
  gives the volume and no awards; what compares with it is the line "crossing". It is the practical
  limit;
- **pymarket**, from PyPI, in a virtual environment of its own, on the sizes that it can bear.

Every clearing is compared with the optimum before it is timed; trading more is an error. "Exponent"
is the slope of log(seconds) over log(orders) on the larger sizes: 1 is linear, n log n shows as
about 1.1.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bench import peers
from bench.clearing import SEED, make_orders
from market.aggregator_auction import forward, reverse
from market.clearing_check import check_clearing
from market.curve_auction import Curve, PriceGrid, clear_curves
from market.double_auction import clear, crossing
from market.efficiency import optimum
from market.orders import Order

SIZES = (100, 1_000, 10_000, 100_000, 1_000_000)
SHORT = (100, 1_000)
REPEATS = 7
"""What else runs on the machine shows least in the fastest of several runs."""
ENOUGH_S = 8.0
"""A line stops growing once ten times more orders would take longer than ten times this."""
LIMIT_S = 3.0
"""For a million orders of a double auction, with all awards."""
NEAR = 2.0
"""Times numpy, at 10⁴ and 10⁵ orders."""
NUMPY = "numpy sort-and-cross"
CROSSING = "double auction: crossing"
UNIFORM = "double auction, uniform price"
GRID = PriceGrid(51, 0, 500_000)


@dataclass(frozen=True)
class Figure:
    """One measurement."""

    what: str
    orders: int
    seconds: float

    @property
    def orders_per_s(self) -> float:
        """Orders cleared in a second."""
        return self.orders / self.seconds if self.seconds else math.inf


class Book:
    """Random orders, half of them bids."""

    def __init__(self, size: int) -> None:
        self.bids = make_orders(size // 2, SEED, 100_000, 300_000)
        self.offers = make_orders(size // 2, SEED + 1, 80_000, 280_000)
        self.half_wh = sum(one.energy_wh for one in self.offers) // 2


Work = Callable[[], object]


def rules(book: Book) -> dict[str, Work]:
    """Each auction over a book."""
    bids, offers, half_wh = book.bids, book.offers, book.half_wh
    result = clear(bids, offers)
    best_wh, best_welfare = optimum(bids, offers)
    assert (result.traded_wh, result.welfare_milli_uc) == (best_wh, best_welfare)
    assert crossing(bids, offers).traded_wh == best_wh == numpy_volume(columns(book))
    assert clear(bids, offers, "as-bid").traded_wh == best_wh
    assert reverse(half_wh, 200_000, offers, "uniform").awarded_wh <= half_wh
    size = len(bids) + len(offers)
    arrays, curves = columns(book), make_curves(size)
    return {
        NUMPY: lambda: numpy_volume(arrays),
        CROSSING: lambda: crossing(bids, offers),
        UNIFORM: lambda: clear(bids, offers),
        "double auction, pay-as-bid": lambda: clear(bids, offers, "as-bid"),
        "reverse auction": lambda: reverse(half_wh, 300_000, [*bids, *offers], "as-bid"),
        "forward auction": lambda: forward(half_wh, 80_000, [*bids, *offers], "uniform"),
        "checking a clearing": lambda: check_clearing(bids, offers, result),
        "curves of 51 steps (one each)": lambda: clear_curves(GRID, curves),
    }


def columns(book: Book) -> tuple[Any, Any, Any, Any]:
    """Prices and energies of both sides as arrays."""
    return (
        np.array([one.price_uc_per_kwh for one in book.bids]),
        np.array([one.energy_wh for one in book.bids]),
        np.array([one.price_uc_per_kwh for one in book.offers]),
        np.array([one.energy_wh for one in book.offers]),
    )


def numpy_volume(arrays: tuple[Any, Any, Any, Any]) -> int:
    """The volume where the sorted sides cross [Wh]."""
    bid_price, bid_wh, offer_price, offer_wh = arrays
    dearest, cheapest = (
        np.argsort(-bid_price, kind="stable"),
        np.argsort(offer_price, kind="stable"),
    )
    demand, supply = np.cumsum(bid_wh[dearest]), np.cumsum(offer_wh[cheapest])
    edges = np.sort(np.concatenate((demand, supply)))
    edges = edges[: np.searchsorted(edges, min(demand[-1], supply[-1]), side="right")]
    wanted = bid_price[dearest][np.searchsorted(demand, edges)]
    asked = offer_price[cheapest][np.searchsorted(supply, edges)]
    count = int(np.count_nonzero(wanted >= asked))
    return int(edges[count - 1]) if count else 0


def make_curves(size: int) -> list[Curve]:
    """Half buyers, half sellers, each with one step; at most 10⁵ of them, for their memory."""
    made = []
    for n, one in enumerate(make_orders(min(size, 100_000), SEED, 100_000, 300_000)):
        step = one.price_uc_per_kwh * (GRID.steps - 1) // GRID.high_uc_per_kwh
        before, after = (one.energy_wh, 0) if n % 2 else (0, -one.energy_wh)
        demand = (before,) * (step + 1) + (after,) * (GRID.steps - step - 1)
        made.append(Curve(one.address, demand, one.seq))
    return made


def order_book(size: int) -> Work | None:
    """Half the orders are posted, half accept the best that stands; None without an order book."""
    try:
        assets = importlib.import_module("market.assets")
        book = importlib.import_module("market.order_book")
        wallets = importlib.import_module("market.wallets")
    except ModuleNotFoundError:
        return None
    offers = make_orders(size // 2, SEED, 80_000, 280_000)
    calendar = book.Calendar(
        now_ms=0, first_slot=0, last_slot=100, price_max_uc_per_kwh=1_000_000_000
    )

    def prepare() -> tuple[Any, list[tuple[Order, Any]]]:
        books, given = wallets.Wallets(), []
        for one in offers:
            asset = assets.EnergyAsset(
                kind=assets.Kind.PRODUCTION, energy_wh=one.energy_wh, start_slot=1, end_slot=4
            )
            books.deposit(one.address, 0, [asset])
            given.append((one, asset))
        for n in range(len(offers)):
            wanted = assets.EnergyAsset(
                kind=assets.Kind.CONSUMPTION, energy_wh=5_000, start_slot=1, end_slot=4
            )
            books.deposit(f"b{n}", 10**10, [wanted])
        return books, given

    prepared: list[tuple[Any, list[tuple[Order, Any]]]] = []

    def work() -> None:
        books, given = prepared.pop()
        for one, asset in given:
            offer = book.Offer(
                name=one.address, address=one.address, asset=asset,
                price_uc_per_kwh=one.price_uc_per_kwh, until_ms=1,
            )  # fmt: skip
            assert book.post_offer(books, offer, calendar) is None
        for n in range(len(given)):
            best = books.best(assets.Kind.PRODUCTION)
            wish = best.asset.turned()
            accepted = book.accept_offer(books, best.name, f"b{n}", [wish], calendar)
            assert isinstance(accepted, book.Trade), accepted

    prepared.append(prepare())
    return work


def repeats(size: int) -> int:
    """How often a size is timed."""
    return REPEATS if size <= 100_000 else 1


def best_s(work: Work, times: int) -> float:
    """CPU seconds of the fastest run."""
    taken = []
    for _ in range(times):
        started_s = time.process_time()
        work()
        taken.append(time.process_time() - started_s)
    return min(taken)


def measure(sizes: tuple[int, ...], say: Callable[[str], None]) -> list[Figure]:
    """All auctions on all sizes."""
    figures = []
    for size in sizes:
        say(f"{size:,} orders")
        for what, work in rules(Book(size)).items():
            if what.startswith("curves") and size > 100_000:
                continue
            figures.append(Figure(what, size, best_s(work, repeats(size))))
        before = [one for one in figures if one.what == "order book"]
        if not before or before[-1].seconds < ENOUGH_S:
            trading = order_book(size)
            if trading is None:
                say("order book: not in this version")
            else:
                figures.append(Figure("order book", size, best_s(trading, 1)))
    return figures


def measure_peers(sizes: tuple[int, ...], folder: Path, say: Callable[[str], None]) -> list[Figure]:
    """pymarket, as far as it gets."""
    say("installing pymarket")
    python, why = peers.install(folder)
    if python is None:
        say(f"pymarket could not be installed and is left out: {why}")
        return []
    figures = []
    for mechanism in peers.MECHANISMS:
        for size in sizes:
            say(f"pymarket {mechanism}, {size:,} orders")
            seconds = peers.time_pymarket(python, mechanism, size, SEED)
            if seconds is None:
                say(f"pymarket {mechanism} gave up on {size:,} orders")
                break
            figures.append(Figure(f"pymarket {mechanism}", size, seconds))
            if seconds > ENOUGH_S / 2:
                break
    return figures


def exponent(figures: list[Figure]) -> float | None:
    """Slope of log seconds over log orders between 10⁴ orders and the largest size."""
    large = [one for one in figures if one.orders >= 10_000 and one.seconds > 0]
    if len(large) < 2:
        return None
    first, last = large[0], large[-1]
    return math.log(last.seconds / first.seconds) / math.log(last.orders / first.orders)


def aims(figures: list[Figure]) -> list[tuple[str, float, float]]:
    """What was aimed at: (figure, measured, at most)."""
    at = {(one.what, one.orders): one.seconds for one in figures}
    found = []
    for size in (10_000, 100_000):
        if at.get((NUMPY, size)):
            ratio = at[CROSSING, size] / at[NUMPY, size]
            found.append((f"crossing over numpy, {size:,} orders", ratio, NEAR))
    if (UNIFORM, 1_000_000) in at:
        found.append(("double auction of 1,000,000 orders, s", at[UNIFORM, 1_000_000], LIMIT_S))
    slope = exponent([one for one in figures if one.what == UNIFORM])
    if slope is not None:
        # The caches end between 10⁴ and 10⁶ orders, for a sort in C as for us.
        reference = exponent([one for one in figures if one.what == NUMPY]) or 0.0
        found.append(("double auction, exponent", slope, max(1.1, reference) + 0.15))
    return found


def show(figures: list[Figure]) -> None:
    """Print the tables."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    sizes = sorted({one.orders for one in figures})
    table = Table(title="CPU seconds to clear, one core; below it orders a second")
    table.add_column("auction", no_wrap=True)
    for size in sizes:
        table.add_column(f"{size:,}", justify="right")
    table.add_column("exponent", justify="right")
    for what in dict.fromkeys(one.what for one in figures):
        line = [one for one in figures if one.what == what]
        by_size = {one.orders: one for one in line}
        slope = exponent(line)
        cells = [
            f"{by_size[size].seconds:.6f}\n{by_size[size].orders_per_s:,.0f}/s"
            if size in by_size
            else "–"
            for size in sizes
        ]
        table.add_row(what, *cells, "–" if slope is None else f"{slope:.2f}")
    console.print(table)
    aimed = Table(title="Aims")
    for name in ("figure", "measured", "at most", "met"):
        aimed.add_column(name, justify="left" if name == "figure" else "right")
    for name, value, limit in aims(figures):
        aimed.add_row(name, f"{value:.2f}", f"{limit:.2f}", "yes" if value <= limit else "no")
    console.print(aimed)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(prog="bench.market", description="How fast auctions clear.")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--short", action="store_true", help="small sizes only")
    parser.add_argument("--no-peers", action="store_true", help="without pymarket")
    parser.add_argument("--cache", type=Path, default=peers.cache_folder(), metavar="DIR")
    chosen = parser.parse_args()
    sizes = SHORT if chosen.short else SIZES

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    figures = measure(sizes, say)
    if not chosen.no_peers:
        figures += measure_peers(sizes, chosen.cache, say)
    if chosen.json:
        rows = [{**asdict(one), "orders_per_s": round(one.orders_per_s)} for one in figures]
        print(json.dumps({"figures": rows, "aims": aims(figures)}))
    else:
        show(figures)


if __name__ == "__main__":
    main()
