"""The demo as a person sees it: progress bar, live figures, summary, one-line errors."""

from __future__ import annotations

import json
import signal
import sys
import time
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from sim.demo import Demo, DemoOptions
from sim.demo import Progress as Step
from sim.finish import finish
from sim.processes import NotReadyError, ProcessDiedError
from wire.envelope import date_text

PLAIN_STEP = 0.1
"""Without a terminal: one line per tenth of the day."""


def run_and_show(options: DemoOptions, *, as_json: bool) -> int:
    """
    Run the demo with a progress display.

    Returns:
        The exit code: 0 audit passed, 1 audit failed or a process died, 130 interrupted.
    """
    console = Console(stderr=as_json)
    started_s = time.monotonic()
    demo = Demo(options)

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        # not raised from here: an exception out of a signal handler may surface where it is lost
        demo.processes.interrupted = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    try:
        _watch(demo, console)
        console.print("Stopping the processes, auditing the chain …")
        demo.settle_down()
        summary = finish(demo.feeder, demo.home_states)
    except KeyboardInterrupt:
        console.print("\nInterrupted; stopping every process.")
        return 130
    except (ProcessDiedError, NotReadyError) as error:
        print(f"hearthgrid: {error}", file=sys.stderr)
        print(f"hearthgrid: the logs are in {options.out / 'logs'}", file=sys.stderr)
        return 1
    finally:
        demo.stop()
    summary["wallSeconds"] = round(time.monotonic() - started_s, 1)
    if as_json:
        print(json.dumps(summary))
    else:
        _print_summary(console, demo, summary)
    return 0 if summary["audit"]["passed"] else 1


def _watch(demo: Demo, console: Console) -> None:
    with Progress(
        TextColumn("{task.description}", table_column=None),
        BarColumn(bar_width=32),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[live]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task("starting", total=1.0, live="")
        for step in demo.start():
            bar.update(task, description=step.stage, completed=step.done)
        demo.go()
        console.print(f"Live page: {demo.page_url}")
        bar.reset(task, description="one day", total=1.0, live="")
        printed = 0.0
        for step in demo.run():
            bar.update(task, completed=step.done, live=_live_line(step))
            if not console.is_terminal and step.done >= printed + PLAIN_STEP:
                printed = step.done
                console.print(f"{step.done:>4.0%}  {_live_line(step)}")


def _live_line(step: Step) -> str:
    live = step.live
    if not live.get("timeMs"):
        return ""
    return (
        f"{date_text(live['timeMs'])[11:16]}  block {live.get('height', 0)}"
        f"  traded {live.get('tradedWh', 0) / 1000:.1f} kWh"
        f"  finality p50 {live.get('finalityP50Ms', 0)} ms"
    )


def _print_summary(console: Console, demo: Demo, summary: dict[str, Any]) -> None:
    for line in summary["lines"]:
        console.print(line)
    table = Table(title="Bills of the day [¤]", title_justify="left")
    for column in ("home", "kind", "with market", "without", "saved"):
        table.add_column(column, justify="left" if column in ("home", "kind") else "right")
    for row in summary["bills"]:
        table.add_row(
            row["home"], row["kind"], _money(row["marketUc"]), _money(row["baselineUc"]),
            _money(row["savedUc"]),
        )  # fmt: skip
    console.print(table)
    for line in summary["audit"]["lines"]:
        console.print(line)
    failed = ", ".join(summary["audit"]["failed"])
    verdict = f"[red]AUDIT FAILED[/] ({failed})" if failed else "[green]Audit passed[/]"
    console.print(f"{verdict} in {summary['wallSeconds']:.0f} s. Report: {summary['report']}")


def _money(amount_uc: int) -> str:
    return f"{amount_uc / 1e6:.2f}"
