"""The HEM benchmark's figures for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from bench.hem_market import GATEWAY, OURS
from bench.report import WIDTH

if TYPE_CHECKING:
    from bench.hem import Result, Start

DEAREST = 10
KB = 1_000.0


def show(result: Result) -> None:
    """Print the tables."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    idle = result.idle
    page = "with its page" if result.page else "with health and metrics, but no page: there is none"
    alone = result.alone
    console.print(
        f"Gateway and HEM ({page}; light client inside: balance {result.light}); "
        f"{result.devices} devices; {result.cores} cores, "
        f"Python {result.python}. Idle for {idle.seconds:.0f} s in slots of 900 s: devices read "
        f"{idle.polls} times, asking cost {100 * idle.asking_cpu_s / idle.seconds:.2f} % of a core."
    )
    console.print(
        f"The gateway alone, {alone.seconds:.0f} s: {alone.together_mb:.1f} MB of memory, "
        f"{100 * alone.spent[GATEWAY].cpu_s / alone.seconds:.2f} % of a core, "
        f"{alone.spent[GATEWAY].written_bytes / alone.seconds * 60 / KB:.1f} kB written a minute."
    )
    console.print(_footprint(result))
    console.print(_starts(result))
    for name in OURS:
        console.print(_imports(name, result.imports[name], result.idle.memory[name].rss_mb))
    console.print(_aims(result))


def _footprint(result: Result) -> Table:
    table = Table(title="Memory [MB], idle processor time, disk writes")
    table.add_column("process", no_wrap=True)
    for name in (
        "RSS", "PSS here", "USS here", "heap", "idle CPU %", "CPU ms /slot", "written idle kB/min",
        "written kB/slot", "written MB/day",
    ):  # fmt: skip
        table.add_column(name, justify="right")
    for name in OURS:
        used, spent = result.idle.memory[name], result.idle.spent[name]
        slots = result.slots_spent[name]
        table.add_row(
            name, f"{used.rss_mb:.1f}", f"{used.pss_mb:.1f}", f"{used.uss_mb:.1f}",
            f"{used.anonymous_mb:.1f}", f"{result.cpu_percent(name):.2f}",
            f"{1000 * slots.cpu_s / result.slots:.0f}",
            f"{spent.written_bytes / result.idle.seconds * 60 / KB:.1f}",
            f"{slots.written_bytes / result.slots / KB:.0f}", f"{result.day_mb(name):.1f}",
        )  # fmt: skip
    table.add_row(
        "together, files once", f"{result.idle.together_mb:.1f}", "", "",
        f"{sum(one.anonymous_mb for one in result.idle.memory.values()):.1f}",
        f"{result.idle_percent:.2f}", "", "", "",
        f"{sum(result.day_mb(name) for name in OURS):.1f}",
    )  # fmt: skip
    return table


def _starts(result: Result) -> Table:
    table = Table(title="From the start of the processes, in slots of 4 s [s]")
    table.add_column("home", no_wrap=True)
    for name in (
        "gateway answers",
        "HEM connected",
        "first bid final",
        *(f"CPU {n}" for n in OURS),
    ):
        table.add_column(name, justify="right")
    rows: list[tuple[str, Start]] = [("new", result.new_home)]
    rows += [("started again", start) for start in result.restarts]
    for name, start in rows:
        table.add_row(
            name, f"{start.gateway_s:.2f}", f"{start.trading_s:.2f}", f"{start.bid_s:.2f}",
            *(f"{start.cpu_s[each]:.2f}" for each in OURS),
        )  # fmt: skip
    return table


def _imports(name: str, facts: dict[str, Any], rss_mb: float) -> Table:
    table = Table(
        title=f"{name}: Python {facts['python_mb']:.1f} MB, imports {facts['imports_mb']:.1f} MB "
        f"in {facts['imports_ms']:.0f} ms, running {rss_mb:.1f} MB"
    )
    table.add_column("package", no_wrap=True)
    for column in ("own MB", "own ms", "with what it brought MB", "ms"):
        table.add_column(column, justify="right")
    for row in facts["packages"][:DEAREST]:
        table.add_row(
            row["package"], f"{row['own_mb']:.1f}", f"{row['own_ms']:.0f}",
            f"{row['with_others_mb']:.1f}", f"{row['with_others_ms']:.0f}",
        )  # fmt: skip
    return table


def _aims(result: Result) -> Table:
    table = Table(title="Aims")
    table.add_column("figure")
    for name in ("measured", "aim", "met"):
        table.add_column(name, justify="right")
    for name, value, aim, met in result.aims():
        table.add_row(name, f"{value:.1f}", f"< {aim:.0f}", "met" if met else "MISSED")
    return table
