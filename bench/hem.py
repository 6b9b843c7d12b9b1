"""
What a home's computer pays for the whole HEM: memory, idle processor time, disk writes, start.

    python -m bench.hem [--json] [--short] [--seconds 180]

Gateway and HEM, which has a light client of the ledger in it, run as two processes, as on a
Raspberry Pi, before five simulated Modbus devices; broker, CSM-DB, four validators and the
aggregator are processes too and are not counted. Two markets, one after the other:

    slots of 4 s      start to the first accepted bid, new and restarted; what a slot costs; what
                      the imports of each process cost, in a run of their own
    slots of 900 s    real time, between two bids: memory, processor time and writes while nothing
                      happens but that the devices are read each second, the battery is steered and
                      the balance is proved; and the gateway alone, before the home has a HEM

A day's writes are a day of the idle rate and 96 times what a slot costs. The devices are read by us
through the gateway's socket, as the page will; what asking costs us is shown, and counted as idle
time.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from compileall import compile_dir
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

import hem
import ledger
import market
import runtime
import wire
from bench.hem_market import DEVICES, GATEWAY, HEM, OURS, HomeMarket
from bench.hem_proc import MB, Memory, memory, together_mb, written_bytes
from bench.hem_report import show
from bench.limits import cpu_s
from bench.report import progress
from hem.gateway.client import GatewayClient
from runtime.clock import SystemClock
from sim.processes import Child, ProcessDiedError
from wire.errors import ConfigError, HearthgridError
from wire.slots import SlotGrid

FAST_SLOT_S, SLOT_S = 4, 900
DAY_S = 86_400
SETTLE_S = 3.0
QUIET_AFTER_S = 130
"""A slot's own work is done so long after it began: closed, funded, bid for the next."""
IDLE_S_MAX = 600

AIMS = (
    ("memory together, MB", 100.0),
    ("idle, % of one core", 2.0),
    ("written a day, MB", 50.0),
    ("new home: start to first bid, s", 20.0),
    ("started again: start to first bid, s", 20.0),
)

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """How long to measure."""

    idle_s: float = 180.0
    """One round of steering."""
    alone_s: float = 60.0
    slots: int = 10
    restarts: int = 3
    wait: bool = True
    """For a time without the work of a slot's beginning."""


SHORT = Plan(idle_s=2.0, alone_s=2.0, slots=1, restarts=1, wait=False)


@dataclass(frozen=True, slots=True)
class Start:
    """From the moment at which gateway and HEM were started together [s]."""

    gateway_s: float
    """Until the gateway answers."""
    trading_s: float
    """Until the HEM is connected, with certificate and grant."""
    bid_s: float
    """Until its first bid is final on the ledger."""
    cpu_s: dict[str, float]
    """Processor time of each process until then."""


@dataclass(frozen=True, slots=True)
class Spent:
    """Of one process in some time."""

    cpu_s: float
    written_bytes: int


@dataclass(frozen=True, slots=True)
class Idle:
    """Nothing but reading devices and steering."""

    seconds: float
    polls: int
    """Times that all devices were read."""
    spent: dict[str, Spent]
    asking_cpu_s: float
    """Ours, for asking."""
    memory: dict[str, Memory]
    together_mb: float


@dataclass(frozen=True, slots=True)
class Result:
    """A whole run."""

    cores: int
    python: str
    devices: int
    page: bool
    """Was there a page to be counted, beside health and metrics?"""
    light: str
    """What the light client said of the balance when all was measured."""
    new_home: Start
    restarts: list[Start]
    slots: int
    slots_s: float
    """How long those slots took, with what is idle in it."""
    slots_spent: dict[str, Spent]
    idle: Idle
    alone: Idle
    """The gateway without a HEM; asked by us all the same."""
    imports: dict[str, Any]
    """`bench.hem_imports.Profile.facts` by process."""

    def cpu_percent(self, name: str) -> float:
        """Idle, of one core."""
        return 100 * self.idle.spent[name].cpu_s / self.idle.seconds

    def day_mb(self, name: str) -> float:
        """Bytes written in a day [MB]."""
        idle_per_s = self.idle.spent[name].written_bytes / self.idle.seconds
        slot = self.slots_spent[name].written_bytes - idle_per_s * self.slots_s
        per_slot = max(0.0, slot) / self.slots
        return (idle_per_s * DAY_S + per_slot * DAY_S / SLOT_S) / MB

    @property
    def idle_percent(self) -> float:
        """All processes and the asking [% of one core]."""
        asking = 100 * self.idle.asking_cpu_s / self.idle.seconds
        return asking + sum(self.cpu_percent(name) for name in OURS)

    def aims(self) -> list[tuple[str, float, float, bool]]:
        """(figure, measured, aim, met)."""
        measured = (
            self.idle.together_mb,
            self.idle_percent,
            sum(self.day_mb(name) for name in OURS),
            self.new_home.bid_s,
            max(start.bid_s for start in self.restarts),
        )
        return [
            (name, value, aim, value < aim)
            for (name, aim), value in zip(AIMS, measured, strict=True)
        ]


def run(plan: Plan, folder: Path, tell: Tell) -> Result:
    """
    Measure.

    Raises:
        ConfigError, ProcessDiedError: a process did not come up, or ended.
    """
    for package in (hem, ledger, market, runtime, wire):
        compile_dir(Path(str(package.__file__)).parent, quiet=2)
    fast = HomeMarket(folder / "fast", FAST_SLOT_S)
    try:
        tell("slots of 4 s: broker, CSM-DB, four validators, aggregator, devices")
        fast.start()
        tell("a new home's first bid")
        new_home, _ = _start(fast)
        restarts = []
        for number in range(plan.restarts):
            tell(f"the first bid after start {number + 2}")
            fast.stop_home()
            start, children = _start(fast)
            restarts.append(start)
        tell(f"what {plan.slots} slots cost")
        slots_s, slots_spent = _slots(fast, children, plan.slots)
        tell("imports")
        fast.stop_home()
        imports = _imports(fast, folder)
    finally:
        fast.stop()
    real = HomeMarket(folder / "real", SLOT_S)
    try:
        tell("slots of 900 s: the same again")
        real.start()
        alone = _alone(real, plan, tell)
        idle = _idle(real, plan, tell)
        page, light = real.page(), real.light()
    finally:
        real.stop()
    return Result(
        cores=os.cpu_count() or 1,
        python=platform.python_version(),
        devices=DEVICES,
        page=page,
        light=light,
        new_home=new_home,
        restarts=restarts,
        slots=plan.slots,
        slots_s=slots_s,
        slots_spent=slots_spent,
        idle=idle,
        alone=alone,
        imports=imports,
    )


def _start(home: HomeMarket) -> tuple[Start, dict[str, Child]]:
    bids = home.accepted_bids()
    heard = {name: home.log_size(name) for name in OURS}
    began_s = time.monotonic()
    children = home.start_home()
    ready_s = home.until("the gateway", lambda: home.says(GATEWAY, "gateway ready", heard[GATEWAY]))
    trading_s = home.until("the HEM", lambda: home.says(HEM, "trading", heard[HEM]))
    bid_s = home.until("a bid", lambda: home.accepted_bids() > bids)
    used = {name: cpu_s(child.pid) for name, child in children.items()}
    return Start(ready_s - began_s, trading_s - began_s, bid_s - began_s, used), children


def _slots(
    home: HomeMarket, children: dict[str, Child], slots: int
) -> tuple[float, dict[str, Spent]]:
    """What closing slots and bidding for the next costs, from a closed slot to another."""
    closed = home.closed_slots() + 1
    began_s = home.until("a closed slot", lambda: home.closed_slots() >= closed)
    before = _spent(children)
    timeout_s = 4.0 * FAST_SLOT_S * slots + 30
    ended_s = home.until("closed slots", lambda: home.closed_slots() >= closed + slots, timeout_s)
    return ended_s - began_s, _difference(before, _spent(children))


def _imports(home: HomeMarket, folder: Path) -> dict[str, Any]:
    profiles = folder / "imports"
    profiles.mkdir()
    bids, heard = home.accepted_bids(), home.log_size(HEM)
    home.start_home(profiles)
    home.until("a bid", lambda: home.accepted_bids() > bids)
    home.until("a proof", lambda: home.says(HEM, "balance proved", heard))
    home.stop_home()
    return {name: json.loads((profiles / f"{name}.json").read_text()) for name in OURS}


def _alone(home: HomeMarket, plan: Plan, tell: Tell) -> Idle:
    """The gateway before there is a HEM."""
    children = home.start_home(names=[GATEWAY])
    home.until("the gateway", lambda: home.says(GATEWAY, "gateway ready"))
    time.sleep(SETTLE_S)
    tell(f"the gateway alone for {plan.alone_s:.0f} s")
    found = _measure(home, children, plan.alone_s)
    home.stop_home([GATEWAY])
    return found


def _idle(home: HomeMarket, plan: Plan, tell: Tell) -> Idle:
    home.start_home()
    home.until("the home's address", home.registered)
    home.until("a proof", lambda: home.light() == "same")
    # a new home closes its first slot some time later, which is not idle; one that starts again
    # does so at once
    home.stop_home()
    heard = home.log_size(HEM)
    children = home.start_home()
    home.until("the HEM", lambda: home.says(HEM, "trading", heard))
    home.until("a proof", lambda: home.says(HEM, "balance proved", heard))
    home.page()  # what it takes to show it stays in memory
    time.sleep(SETTLE_S)
    if plan.wait:
        pause_s = until_quiet_s(home.grid, SystemClock().now_ms(), plan.idle_s)
        tell(f"waiting {pause_s:.0f} s for a time without a slot's beginning")
        time.sleep(pause_s)
    tell(f"idle for {plan.idle_s:.0f} s")
    return _measure(home, children, plan.idle_s)


def _measure(home: HomeMarket, children: dict[str, Child], seconds: float) -> Idle:
    """What processes take while the devices are read each second, and no more is asked."""
    before, began_s = _spent(children), time.monotonic()
    polls, asking_cpu_s = asyncio.run(_ask(home.socket, seconds))
    seconds, spent = time.monotonic() - began_s, _difference(before, _spent(children))
    home.processes.check()
    return Idle(
        seconds=seconds,
        polls=polls,
        spent=spent,
        asking_cpu_s=asking_cpu_s,
        memory={name: memory(child.pid) for name, child in children.items()},
        together_mb=together_mb(child.pid for child in children.values()),
    )


def until_quiet_s(grid: SlotGrid, now_ms: int, idle_s: float) -> float:
    """How long to wait until no slot begins, and none has just begun, for `idle_s` [s]."""
    into_s = (now_ms - grid.start_ms(grid.slot_at(now_ms))) / 1000
    if into_s < QUIET_AFTER_S:
        return QUIET_AFTER_S - into_s
    left_s = grid.length_s - into_s
    return left_s + QUIET_AFTER_S if left_s < idle_s else 0.0


async def _ask(socket: Path, seconds: float) -> tuple[int, float]:
    """
    Ask the gateway for its state each second, as a page would.

    Returns:
        How often all devices answered; our own processor time for it [s].

    Raises:
        ConfigError: a device did not answer.
    """
    gateway = GatewayClient(socket)
    began_s, used_s, polls = time.monotonic(), time.process_time(), 0
    while (left_s := began_s + seconds - time.monotonic()) > 0:
        state = await gateway.state()
        answered = [name for name, status in state["devices"].items() if status == "ok"]
        if len(answered) != DEVICES:
            raise ConfigError(f"devices: only {answered} answer")
        polls += 1
        next_s = max(0.0, began_s + polls - time.monotonic())
        await asyncio.sleep(min(left_s, next_s))
    used_s = time.process_time() - used_s
    await gateway.close()
    return polls, used_s


def _spent(children: dict[str, Child]) -> dict[str, Spent]:
    return {
        name: Spent(cpu_s(child.pid), written_bytes(child.pid)) for name, child in children.items()
    }


def _difference(before: dict[str, Spent], after: dict[str, Spent]) -> dict[str, Spent]:
    return {
        name: Spent(spent.cpu_s - before[name].cpu_s,
                    spent.written_bytes - before[name].written_bytes)
        for name, spent in after.items()
    }  # fmt: skip


def facts(result: Result) -> dict[str, Any]:
    """A run as JSON."""
    return {
        **asdict(result),
        "idle_percent": {**{name: result.cpu_percent(name) for name in OURS},
                         "all": result.idle_percent},
        "day_mb": {name: result.day_mb(name) for name in OURS},
        "aims": [
            {"figure": name, "measured": value, "aim": aim, "met": met}
            for name, value, aim, met in result.aims()
        ],
    }  # fmt: skip


def main(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    short: Annotated[bool, typer.Option("--short", help="Under a minute; measures badly.")] = False,
    seconds: Annotated[
        int, typer.Option(min=10, max=IDLE_S_MAX, help="How long to measure idle time [s].")
    ] = int(Plan().idle_s),
    keep: Annotated[Path | None, typer.Option(help="Keep databases and logs here.")] = None,
) -> None:
    """Measure a whole HEM on this machine; six to fifteen minutes."""
    plan = SHORT if short else Plan(idle_s=float(seconds))
    try:
        with tempfile.TemporaryDirectory(prefix="hearthgrid-bench-") as temporary:
            folder = keep if keep is not None else Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            with progress(as_json) as tell:
                result = run(plan, folder.resolve(), tell)
    except (HearthgridError, ProcessDiedError) as error:
        print(f"bench: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    if as_json:
        print(json.dumps(facts(result)))
    else:
        show(result)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
