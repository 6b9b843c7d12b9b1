"""
How much a ledger carries, and how fast: four validators as processes, a real broker, real trade.

    python -m bench.ledger [--broker mosquitto|embedded] [--json] [--short]

One run on one machine, everything sharing its cores: validators (fdatasync before every vote, full
execution, state root), broker (TLS and access list as rendered for production), load and observer.
Every figure stands beside the machine's own limit, which is how often it can verify an Ed25519
signature: each transaction must be verified once by each validator.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop

from bench import light, limits, profile, report
from bench.cluster import MOSQUITTO, Audit, Cluster
from bench.limits import cpu_s
from bench.load import Publisher, text
from bench.watch import CERTIFICATE, PROPOSAL, VOTE, Tally, Watch
from bench.workload import (
    MARKET,
    Market,
    Signed,
    capacity,
    funding,
    new_key,
    registrations,
    sign_all,
)
from ledger.genesis import Genesis
from runtime.clock import SystemClock
from wire import topics
from wire.errors import ConfigError
from wire.keys import SigningKey
from wire.transactions import MAX_OPERATIONS

TICK_S = 0.002
SETTLE_S = 30.0
"""Real time given to what was sent to become final, after which it counts as late."""
WARM_S = 1.0
"""Left out at the beginning of a saturated step."""
GROWTH = 1.05
"""Saturation ends when a doubled window brings less than this."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how hard."""

    steady: tuple[tuple[int, float], ...] = ((200, 8.0), (1_000, 10.0))
    """Transactions a second, for how long [s]; the last comes after everything else, because it
    may be more than the machine carries."""
    windows: tuple[int, ...] = (64, 128, 256, 512, 1_024, 2_048)
    """Transactions outstanding at a time, doubled until it does not help."""
    step_s: float = 5.0
    bundle_windows: tuple[tuple[int, int], ...] = ((10, 128), (MAX_OPERATIONS, 32))
    """Operations per transaction, and transactions outstanding."""
    crash_rate: int = 200
    crash_s: tuple[float, float, float] = (2.0, 4.0, 4.0)
    """Before the leader is killed, until it is started again, after that [s]."""
    most_tx_per_s: int = 3_500
    """No step signs more in advance than this rate needs."""
    limit_s: float = 1.0
    profile: bool = False
    """Sample a validator while it is saturated."""

    def singles(self) -> int:
        """Transactions of one operation that may be needed."""
        steady = sum(rate * seconds for rate, seconds in self.steady)
        saturated = min(1_500 * len(self.windows), self.most_tx_per_s * 4) * self.step_s
        return int(steady + saturated + self.crash_rate * sum(self.crash_s)) + len(self.windows)

    def bundles(self, operations: int) -> int:
        """Transactions of so many operations that may be needed."""
        return int(15_000 * self.step_s / operations)


SHORT = Plan(
    steady=((50, 1.0), (100, 1.0)), windows=(16, 64), step_s=1.5,
    bundle_windows=((MAX_OPERATIONS, 4),),
    crash_rate=50, crash_s=(0.5, 1.5, 1.0), most_tx_per_s=300, limit_s=0.1,
)  # fmt: skip
"""For tests: every part, nothing measured well."""


@dataclass(slots=True)
class Phase:
    """What a scenario brought."""

    name: str
    operations: int
    """Per transaction."""
    sent: int = 0
    final: int = 0
    late: int = 0
    """Not final when the scenario's patience ended."""
    seconds: float = 0.0
    tx_per_s: float = 0.0
    ops_per_s: float = 0.0
    p50_ms: float = 0.0
    p95_ms: float = 0.0
    p99_ms: float = 0.0
    max_ms: float = 0.0
    node_p50_ms: float = 0.0
    """A node's own time from a proposal to its execution."""
    node_p95_ms: float = 0.0
    validator_us_per_tx: float = 0.0
    """Processor time of one validator."""
    broker_us_per_tx: float = 0.0
    load_us_per_tx: float = 0.0
    """Processor time of clients and observer."""
    blocks: int = 0
    proposal_bytes_per_block: float = 0.0
    votes_per_block: float = 0.0
    bytes_per_vote: float = 0.0
    bytes_per_certificate: float = 0.0
    consensus_bytes_per_block: float = 0.0
    """Proposal, votes and certificates as published."""
    tx_bytes: float = 0.0


@dataclass(slots=True)
class Result:
    """A whole run."""

    broker: str
    cores: int
    python: str
    verify_per_s_one_core: float
    verify_per_s_two_cores: float
    limit_tx_per_s: float
    """What verification alone allows: four validators verify each transaction on shared cores."""
    flush_ms: float
    phases: list[Phase] = field(default_factory=list)
    crash: dict[str, float] = field(default_factory=dict)
    proof: dict[str, float] = field(default_factory=dict)
    """The largest and the slowest of a light client's proofs, on a chain of its own with as many
    validators."""
    audit: dict[str, Any] = field(default_factory=dict)
    profiles: dict[str, dict[str, float]] = field(default_factory=dict)
    """Of a scenario: the share of each area in a validator's processor time."""
    seconds: float = 0.0


class Bench:
    """The scenarios on a running cluster."""

    def __init__(
        self, plan: Plan, cluster: Cluster, watch: Watch, publishers: dict[str, Publisher]
    ) -> None:
        self._plan = plan
        self._cluster = cluster
        self._watch = watch
        self._publishers = publishers
        self._topics = {
            address: text(topics.build(MARKET, topics.TX, address)) for address in publishers
        }
        self.sent: set[bytes] = set()

    async def steady(self, name: str, source: Iterator[Signed], rate: int, seconds: float) -> Phase:
        """Send at a fixed rate, whatever the system does."""
        with self._measured(name, 1) as meter:
            sent = await self._send_at(source, rate, seconds)
            meter.late = await self._watch.until_final(SETTLE_S)
        phase = meter.phase(sent)
        phase.seconds = seconds
        phase.tx_per_s = _rate(meter.tally.final_at_s, meter.started_s)
        phase.ops_per_s = phase.tx_per_s
        return phase

    async def saturate(self, name: str, source: Iterator[Signed], window: int, ops: int) -> Phase:
        """Keep `window` transactions outstanding; what comes out is what the system carries."""
        with self._measured(name, ops) as meter:
            until_s = time.monotonic() + self._plan.step_s
            sent = await self._send_window(source, window, until_s)
            ended_s = time.monotonic()
            meter.late = await self._watch.until_final(SETTLE_S)
        phase = meter.phase(sent)
        warm_s = meter.started_s + min(WARM_S, self._plan.step_s / 4)
        phase.seconds = ended_s - warm_s
        done = sum(warm_s <= at_s <= ended_s for at_s in meter.tally.final_at_s)
        phase.tx_per_s = done / phase.seconds
        phase.ops_per_s = phase.tx_per_s * ops
        return phase

    async def crash(self, source: Iterator[Signed]) -> tuple[Phase, dict[str, float]]:
        """Kill the leader of the newest block in the moment it proposes; start it again later."""
        plan, watch = self._plan, self._watch
        before_s, dead_s, after_s = plan.crash_s
        killed: list[tuple[str, float]] = []

        def kill(proposer: str) -> None:
            self._cluster.kill(proposer)
            killed.append((proposer, time.monotonic()))
            watch.on_proposal = None

        loop = asyncio.get_running_loop()
        with self._measured("leader killed", 1) as meter:
            loop.call_later(before_s, lambda: setattr(watch, "on_proposal", kill))
            sent = await self._send_at(source, plan.crash_rate, before_s + dead_s)
            if not killed:
                raise ConfigError("no block was proposed; see the logs of the validators (--keep)")
            victim, killed_s = killed[0]
            name = self._cluster.names[victim]
            await asyncio.to_thread(self._cluster.processes.kill, name)  # reap it
            self._cluster.processes.restart(name)
            restarted_s = time.monotonic()
            sent += await self._send_at(source, plan.crash_rate, after_s)
            meter.late = await watch.until_final(SETTLE_S)
            caught_up_s = await self._until_caught_up(victim) - restarted_s
        phase = meter.phase(sent)
        phase.seconds = before_s + dead_s + after_s
        phase.tx_per_s = phase.ops_per_s = _rate(meter.tally.final_at_s, meter.started_s)
        dead = [
            latency_s
            for at_s, latency_s in zip(
                meter.tally.published_at_s, meter.tally.latencies_s, strict=True
            )
            if killed_s - 0.2 <= at_s <= restarted_s
        ]
        return phase, {
            "p50_ms": _percentile_ms(dead, 50),
            "p99_ms": _percentile_ms(dead, 99),
            "max_ms": _percentile_ms(dead, 100),
            "transactions": len(dead),
            "lost": meter.late,
            "caught_up_s": caught_up_s,
        }

    async def prepare(self, transactions: list[Signed], window: int) -> None:
        """
        Send what must be final before a scenario.

        Raises:
            ConfigError: it did not become final.
        """
        await self._send_window(iter(transactions), window, time.monotonic() + 60.0)
        if await self._watch.until_final(SETTLE_S):
            raise ConfigError("the ledger does not take the set-up's transactions; see its logs")

    async def _until_caught_up(self, validator: str) -> float:
        """When a validator had executed what the others have (or now, after a while)."""
        deadline_s = time.monotonic() + SETTLE_S
        heights = self._watch.heights
        goal = max(heights.values())
        while heights[validator] < goal and time.monotonic() < deadline_s:
            await asyncio.sleep(0.02)
        return time.monotonic()

    async def _send_at(self, source: Iterator[Signed], rate: int, seconds: float) -> int:
        started_s = time.monotonic()
        total = int(rate * seconds)
        sent = 0
        while sent < total:
            due = min(total, int((time.monotonic() - started_s) * rate) + 1)
            while sent < due:
                tx = next(source, None)
                if tx is None:
                    return sent
                self._publish(tx, started_s + sent / rate)
                sent += 1
            await asyncio.sleep(TICK_S)
        await asyncio.sleep(max(0.0, started_s + seconds - time.monotonic()))
        return sent

    async def _send_window(self, source: Iterator[Signed], window: int, until_s: float) -> int:
        sent = 0
        watch = self._watch
        while time.monotonic() < until_s:
            while len(watch.due_s) < window:
                tx = next(source, None)
                if tx is None:
                    return sent
                self._publish(tx, time.monotonic())
                sent += 1
            watch.progress.clear()
            try:
                async with asyncio.timeout(0.5):
                    await watch.progress.wait()
            except TimeoutError:
                continue
        return sent

    def _publish(self, tx: Signed, due_s: float) -> None:
        self.sent.add(tx.txid)
        self._watch.due_s[tx.txid] = due_s
        self._publishers[tx.address].publish(self._topics[tx.address], tx.raw)

    def _measured(self, name: str, ops: int) -> _Meter:
        return _Meter(name, ops, self._cluster, self._watch)


class _Meter:
    """Measures a scenario: from `with` to its end, then `phase`."""

    def __init__(self, name: str, ops: int, cluster: Cluster, watch: Watch) -> None:
        self._name, self._ops = name, ops
        self._cluster, self._watch = cluster, watch
        self.late = 0
        self.waited_s: list[float] = []
        self.started_s = 0.0
        self.tally: Tally = watch.tally
        self._before = (0.0, 0.0, 0.0)
        self._used = (0.0, 0.0, 0.0)

    def __enter__(self) -> _Meter:
        self.tally = self._watch.begin()
        self._before = self._cpu()
        self.started_s = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        now_s = time.monotonic()
        # what is not final yet took at least so long
        self.waited_s = [now_s - due_s for due_s in self._watch.due_s.values()]
        self._used = tuple(  # type: ignore[assignment]
            now - before for now, before in zip(self._cpu(), self._before, strict=True)
        )

    def _cpu(self) -> tuple[float, float, float]:
        return (*self._cluster.cpu_s(), cpu_s(os.getpid()))

    def phase(self, sent: int) -> Phase:
        """Everything but the rates."""
        tally = self.tally
        latencies_s = tally.latencies_s + self.waited_s
        final, blocks = max(1, len(tally.latencies_s)), max(1, tally.blocks)
        counts, octets = tally.messages, tally.octets
        consensus = sum(octets[kind] for kind in (PROPOSAL, VOTE, CERTIFICATE))
        validators, broker, load = (s * 1e6 / final for s in self._used)
        nodes_s = [ms / 1000 for ms in tally.node_finality_ms]
        return Phase(
            name=self._name,
            operations=self._ops,
            sent=sent,
            final=len(tally.latencies_s),
            late=self.late,
            p50_ms=_percentile_ms(latencies_s, 50),
            p95_ms=_percentile_ms(latencies_s, 95),
            p99_ms=_percentile_ms(latencies_s, 99),
            max_ms=_percentile_ms(latencies_s, 100),
            node_p50_ms=_percentile_ms(nodes_s, 50),
            node_p95_ms=_percentile_ms(nodes_s, 95),
            validator_us_per_tx=validators / len(self._cluster.names),
            broker_us_per_tx=broker,
            load_us_per_tx=load,
            blocks=tally.blocks,
            proposal_bytes_per_block=octets[PROPOSAL] / blocks,
            votes_per_block=counts[VOTE] / blocks,
            bytes_per_vote=octets[VOTE] / max(1, counts[VOTE]),
            bytes_per_certificate=octets[CERTIFICATE] / max(1, counts[CERTIFICATE]),
            consensus_bytes_per_block=consensus / blocks,
        )


def run(plan: Plan, broker: str, folder: Path, tell: Callable[[str], None]) -> Result:
    """
    Everything, in one run.

    Raises:
        ConfigError: the broker is not there, or the set-up fails.
    """
    started_s = time.monotonic()
    cores = os.cpu_count() or 1
    tell("limits of this machine")
    one = limits.verifications_per_s(1, plan.limit_s)
    both = limits.verifications_per_s(2, plan.limit_s) if cores > 1 else one
    market = Market(SystemClock().now_ms())
    genesis = market.genesis()
    result = Result(
        broker=broker,
        cores=cores,
        python=sys.version.split()[0],
        verify_per_s_one_core=one,
        verify_per_s_two_cores=both,
        limit_tx_per_s=both / len(market.validators),
        flush_ms=limits.flush_ms(folder),
        proof=_light_proof(len(market.validators)),
    )
    tell("signing transactions")
    groups = {
        ops: _group(genesis, market, ops, count)
        for ops, count in (
            (1, plan.singles()),
            *((ops, plan.bundles(ops)) for ops, _ in plan.bundle_windows),
        )
    }
    tell("starting the broker and four validators")
    cluster = Cluster(folder, market, genesis, broker)
    try:
        sent, waiting = uvloop.run(_scenarios(plan, cluster, market, groups, result, tell))
    finally:
        cluster.processes.stop()
    tell("auditing what the validators kept")
    # again, because others may have used the machine meanwhile: a limit is the most it can do
    result.verify_per_s_one_core = max(one, limits.verifications_per_s(1, plan.limit_s))
    if cores > 1:
        both = max(both, limits.verifications_per_s(2, plan.limit_s))
    result.verify_per_s_two_cores = max(both, result.verify_per_s_one_core)
    result.limit_tx_per_s = result.verify_per_s_two_cores / len(market.validators)
    result.audit = _facts(cluster.audit(sent, waiting))
    result.seconds = time.monotonic() - started_s
    return result


def _group(
    genesis: Genesis, market: Market, ops: int, count: int
) -> tuple[list[SigningKey], list[Signed]]:
    keys = [new_key() for _ in range(max(8, -(-count // capacity(ops))))]
    if ops == 1 and count > 1_000:  # as many homes as a feeder has, rather than as few as will do
        keys += [new_key() for _ in range(128 - len(keys))]
    cores = min(2, os.cpu_count() or 1) if count > 1_000 else 1
    return keys, sign_all(genesis, market.now_ms, keys, count, ops, cores)


async def _scenarios(
    plan: Plan,
    cluster: Cluster,
    market: Market,
    groups: dict[int, tuple[list[SigningKey], list[Signed]]],
    result: Result,
    tell: Callable[[str], None],
) -> tuple[set[bytes], set[bytes]]:
    """Run all scenarios; the txids that were sent, and those of them that never became final."""
    watch = cluster.watch()
    await watch.start()
    cluster.start_validators()
    keys = [key for group, _ in groups.values() for key in group]
    slot = cluster.genesis.grid.slot_at(market.now_ms)
    desk = (market.supervisor, cluster.certificate(market.supervisor, "aggregator", "dso"))
    homes = [(key, market.grant(key, slot)) for key in keys]
    owners = [market.supervisor.id, *(key.id for key in keys)]
    publishers = dict(zip(owners, await cluster.connect([desk, *homes]), strict=True))
    try:
        await watch.until_ready(SETTLE_S)
    except TimeoutError:
        raise ConfigError("not all validators answer; see their logs (--keep)") from None
    bench = Bench(plan, cluster, watch, publishers)
    tell(f"registering and funding {len(keys)} addresses")
    await bench.prepare(registrations(market, cluster.genesis, keys), 64)
    await bench.prepare(funding(market, cluster.genesis, [key.id for key in keys]), 8)
    singles = iter(groups[1][1])
    *gentle, hard = plan.steady
    for rate, seconds in gentle:
        tell(f"{rate} transactions a second")
        result.phases.append(await bench.steady(f"{rate:,} tx/s", singles, rate, seconds))
    tell("a leader is killed")
    phase, result.crash = await bench.crash(singles)
    result.phases.append(phase)
    for ops, window in plan.bundle_windows:
        tell(f"bundles of {ops} operations")
        source = iter(groups[ops][1])
        name = f"bundles of {ops}"
        with _profiled(plan, cluster, name, result):
            result.phases.append(await bench.saturate(name, source, window, ops))
    best = 0.0
    for window in plan.windows:
        tell(f"saturation, {window} outstanding")
        name = f"{window} outstanding"
        with _profiled(plan, cluster, name, result):
            phase = await bench.saturate(name, singles, window, 1)
        result.phases.append(phase)
        if phase.late or phase.tx_per_s < best * GROWTH:
            break
        best = phase.tx_per_s
    rate, seconds = hard
    tell(f"{rate} transactions a second")
    result.phases.append(await bench.steady(f"{rate:,} tx/s", singles, rate, seconds))
    for phase in result.phases:
        sizes = [len(tx.raw) for tx in groups[phase.operations][1][:200]]
        phase.tx_bytes = sum(sizes) / len(sizes)
    for publisher in publishers.values():
        publisher.close()
    await watch.stop()
    return bench.sent, set(watch.due_s)


@contextmanager
def _profiled(plan: Plan, cluster: Cluster, name: str, result: Result) -> Iterator[None]:
    """Sample the first validator during a scenario, if the plan says so."""
    if not plan.profile:
        yield
        return
    victim = next(iter(cluster.names))
    file = cluster.chain_folder(victim) / f"{name.replace(' ', '-')}.stacks"
    with profile.recording(cluster.validator(victim).pid, file):
        yield
    result.profiles[name] = profile.shares(file)


def _facts(audit: Audit) -> dict[str, Any]:
    return {**asdict(audit), "refused": dict(audit.refused)}


def _light_proof(n: int) -> dict[str, float]:
    """The largest and the slowest proof of `bench.light`."""
    rows = light.measure(n)
    return {
        "bytes": max(float(row["bytes"]) for row in rows),
        "check_ms": max(float(row["check_us"]) for row in rows) / 1000,
    }


def _rate(final_at_s: list[float], started_s: float) -> float:
    """What became final, over the time from the first sending to the last finality."""
    if not final_at_s:
        return 0.0
    return len(final_at_s) / max(1e-9, max(final_at_s) - started_s)


def _percentile_ms(values_s: list[float], percent: int) -> float:
    """Nearest-rank percentile [ms]; 0 without values."""
    if not values_s:
        return 0.0
    ordered = sorted(values_s)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)] * 1000


def main(
    broker: Annotated[str, typer.Option(help="mosquitto or embedded.")] = MOSQUITTO,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    short: Annotated[bool, typer.Option("--short", help="A few seconds; measures badly.")] = False,
    keep: Annotated[Path | None, typer.Option(help="Keep chains and logs here.")] = None,
    profiled: Annotated[
        bool, typer.Option("--profile", help="Sample a validator: where does its time go?")
    ] = False,
) -> None:
    """Measure four validators on this machine; about two minutes."""
    plan = replace(SHORT if short else Plan(), profile=profiled)
    try:
        with tempfile.TemporaryDirectory(prefix="hearthgrid-bench-") as temporary:
            folder = keep if keep is not None else Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            with report.progress(as_json) as tell:
                result = run(plan, broker, folder.resolve(), tell)
    except ConfigError as error:
        print(f"bench: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    if as_json:
        print(json.dumps(asdict(result)))
    else:
        report.show(result)
    if result.crash["lost"] or result.audit["lost"] or not result.audit["same"]:
        raise typer.Exit(1)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
