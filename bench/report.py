"""The ledger benchmark's figures for people: a bar while it runs, tables when it has run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from bench.ledger import Phase, Result

WIDTH = 132
"""Of the tables where the output is no terminal."""

AIMS = (
    ("1,000 tx/s: throughput, tx/s", 1_000.0, True),
    ("1,000 tx/s: p95 finality, ms", 150.0, False),
    ("saturation, tx/s", 3_000.0, True),
    ("bundles of 64, operations/s", 15_000.0, True),
    ("leader killed: p99 finality, ms", 500.0, False),
    ("lost", 0.0, False),
    ("light proof, bytes", 1_024.0, False),
    ("light proof, checking, ms", 1.0, False),
)
"""What is measured against what is aimed at; True: more is better."""


@contextmanager
def progress(quiet: bool) -> Iterator[Callable[[str], None]]:
    """A bar on standard error that says what is being measured."""
    if quiet:
        yield lambda _: None
        return
    columns = (BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda text: bar.update(task, description=text)


def show(result: Result) -> None:
    """Print the tables."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    console.print(
        f"Four validators, {result.broker}, {result.cores} cores, Python {result.python}, "
        f"fdatasync {result.flush_ms:.2f} ms. Ed25519: {result.verify_per_s_one_core:,.0f} "
        f"verifications/s on one core, {result.verify_per_s_two_cores:,.0f} on two; "
        f"limit {result.limit_tx_per_s:,.0f} tx/s."
    )
    console.print(_throughput(result))
    console.print(_costs(result))
    if result.profiles:
        console.print(_profiles(result))
    crash, audit = result.crash, result.audit
    console.print(
        f"Leader killed: {crash['transactions']:.0f} transactions sent while it was away, final "
        f"after p50 {crash['p50_ms']:.0f}, p99 {crash['p99_ms']:.0f}, "
        f"at most {crash['max_ms']:.0f} ms; started again, it had caught up in "
        f"{crash['caught_up_s']:.1f} s."
    )
    refused = ", ".join(f"{count} {code}" for code, count in audit["refused"].items())
    console.print(
        f"Audit: {audit['executed']:,} transactions executed, {audit['lost']} lost, "
        f"{audit['waiting']:,} still waiting at the end, refused: "
        f"{refused or 'none'}; the validators agree: {'yes' if audit['same'] else 'NO'}."
    )
    console.print(_aims(result))


def _throughput(result: Result) -> Table:
    table = Table(title="Finality, from the moment a transaction is due to f + 1 executions")
    table.add_column("scenario", no_wrap=True)
    for name in (
        "sent", "late", "tx/s", "ops/s", "of limit", "p50 ms", "p95 ms", "p99 ms", "max ms",
        "node p50", "node p95", "blocks/s",
    ):  # fmt: skip
        table.add_column(name, justify="right")
    for one in result.phases:
        table.add_row(
            one.name, f"{one.sent:,}", f"{one.late:,}", f"{one.tx_per_s:,.0f}",
            f"{one.ops_per_s:,.0f}", f"{one.tx_per_s / result.limit_tx_per_s:.1%}",
            *(f"{ms:,.0f}" for ms in (
                one.p50_ms, one.p95_ms, one.p99_ms, one.max_ms, one.node_p50_ms, one.node_p95_ms,
            )),
            f"{one.blocks / max(one.seconds, 1e-9):.1f}",
        )  # fmt: skip
    return table


def _costs(result: Result) -> Table:
    table = Table(title="What it costs")
    table.add_column("scenario", no_wrap=True)
    for name in (
        "validator µs/tx", "in verifi- cations", "broker µs/tx", "load µs/tx", "bytes /tx",
        "tx /block", "bytes /proposal", "votes /block", "bytes /vote", "bytes /certifi- cate",
        "consensus bytes/block",
    ):  # fmt: skip
        table.add_column(name, justify="right")
    for one in result.phases:
        table.add_row(
            one.name, f"{one.validator_us_per_tx:,.0f}",
            f"{one.validator_us_per_tx * result.verify_per_s_one_core / 1e6:.1f}",
            f"{one.broker_us_per_tx:,.0f}", f"{one.load_us_per_tx:,.0f}", f"{one.tx_bytes:,.0f}",
            f"{one.final / max(one.blocks, 1):,.0f}", f"{one.proposal_bytes_per_block:,.0f}",
            f"{one.votes_per_block:.1f}", f"{one.bytes_per_vote:.0f}",
            f"{one.bytes_per_certificate:.0f}", f"{one.consensus_bytes_per_block:,.0f}",
        )  # fmt: skip
    return table


def _profiles(result: Result) -> Table:
    """Where a validator's time went, as shares and in µs per transaction."""
    phases = {phase.name: phase for phase in result.phases}
    table = Table(title="Where a validator's processor time goes: share, µs per transaction")
    table.add_column("area", no_wrap=True)
    for name in result.profiles:
        table.add_column(name, justify="right")
    areas = dict.fromkeys(area for one in result.profiles.values() for area in one)
    for area in areas:
        cells = [
            (one.get(area, 0.0), phases[name].validator_us_per_tx)
            for name, one in result.profiles.items()
        ]
        table.add_row(area, *(f"{share:.0%}  {share * us:,.0f}" for share, us in cells))
    return table


def _aims(result: Result) -> Table:
    table = Table(title="Aims")
    table.add_column("figure")
    for name in ("measured", "aim", "met"):
        table.add_column(name, justify="right")
    measured = measurements(result)
    for name, aim, more in AIMS:
        value = measured.get(name)
        if value is None:
            continue
        met = value >= aim if more else value <= aim
        shown = f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.2f}"
        table.add_row(name, shown, f"{'≥' if more else '≤'} {aim:,.0f}", "yes" if met else "no")
    return table


def measurements(result: Result) -> dict[str, float]:
    """The figure of each aim that this run measured."""
    named = {phase.name: phase for phase in result.phases}
    found: dict[str, float] = {
        "leader killed: p99 finality, ms": result.crash["p99_ms"],
        "lost": result.crash["lost"] + result.audit["lost"],
    }
    if result.proof:
        found["light proof, bytes"] = result.proof["bytes"]
        found["light proof, checking, ms"] = result.proof["check_ms"]
    if (steady := named.get("1,000 tx/s")) is not None:
        # what is sent at 1,000/s arrives at 1,000/s but for the last transaction's latency
        found["1,000 tx/s: throughput, tx/s"] = float(round(steady.tx_per_s, -1))
        found["1,000 tx/s: p95 finality, ms"] = steady.p95_ms
    if (bundles := named.get("bundles of 64")) is not None:
        found["bundles of 64, operations/s"] = bundles.ops_per_s
    if saturated := [one for one in result.phases if one.name.endswith("outstanding")]:
        found["saturation, tx/s"] = _best(saturated).tx_per_s
    return found


def _best(phases: list[Phase]) -> Phase:
    return max(phases, key=lambda one: one.tx_per_s)
