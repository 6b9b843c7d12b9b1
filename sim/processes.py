"""
Starting, watching and stopping the processes of a run.

Every child leads its own session and is told by the kernel to end when we die, so that neither
Ctrl-C, an error nor `kill -9` of the demo leaves a process behind.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from runtime.process import die_with_parent

STOP_WAIT_S = 8.0
POLL_S = 0.05


class ProcessDiedError(RuntimeError):
    """A process of the run ended on its own."""


class NotReadyError(RuntimeError):
    """Something did not come up in time."""


@dataclass(slots=True)
class Child:
    """One process of the run."""

    name: str
    command: list[str]
    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        """Process id."""
        return self.process.pid


@dataclass(slots=True)
class Processes:
    """All processes of a run; `stop` ends them in the reverse order of their start."""

    logs: Path
    environment: dict[str, str] = field(default_factory=dict)
    children: dict[str, Child] = field(default_factory=dict)
    interrupted: bool = False
    """Set by whoever wants the run to end; noticed at the next `check`."""

    def start(self, name: str, module: str, *args: str | Path | int) -> Child:
        """Start `python -m module args…`, its output going to `logs/<name>.log`."""
        return self.start_command(name, [sys.executable, "-m", module, *(str(a) for a in args)])

    def start_command(self, name: str, command: list[str]) -> Child:
        """Start any program."""
        self.logs.mkdir(parents=True, exist_ok=True)
        with (self.logs / f"{name}.log").open("ab") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **self.environment},
                start_new_session=True,
                preexec_fn=die_with_parent(),  # noqa: PLW1509 - no threads here
            )
        child = Child(name, command, process)
        self.children[name] = child
        return child

    def restart(self, name: str) -> Child:
        """Start a process again with the words it had."""
        return self.start_command(name, self.children[name].command)

    def kill(self, name: str) -> None:
        """`kill -9`, as a power cut would."""
        child = self.children[name]
        child.process.kill()
        child.process.wait()

    def check(self) -> None:
        """
        Raise when a process has ended, or the run shall end.

        Raises:
            ProcessDiedError: naming it, its exit code and the last line of its log.
            KeyboardInterrupt: somebody interrupted the run.
        """
        if self.interrupted:
            raise KeyboardInterrupt
        for child in self.children.values():
            code = child.process.poll()
            if code is not None:
                raise ProcessDiedError(
                    f"{child.name} ended with exit code {code}: {self.last_line(child.name)}"
                )

    def last_line(self, name: str) -> str:
        """The last line a process wrote, for an error message."""
        path = self.logs / f"{name}.log"
        lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
        return lines[-1][:400] if lines else "(no output)"

    def stop(self, names: list[str] | None = None) -> None:
        """SIGTERM in reverse order of start, SIGKILL for what is still there after 8 s."""
        chosen = names if names is not None else list(reversed(self.children))
        for name in chosen:
            self._signal(name, signal.SIGTERM)
        deadline_s = time.monotonic() + STOP_WAIT_S
        for name in chosen:
            left_s = max(0.0, deadline_s - time.monotonic())
            try:
                self.children[name].process.wait(left_s)
            except subprocess.TimeoutExpired:
                self._signal(name, signal.SIGKILL)
                self.children[name].process.wait()
            self._signal(name, signal.SIGKILL)  # what its session may have left
            del self.children[name]

    def _signal(self, name: str, number: int) -> None:
        child = self.children[name]
        try:
            if number == signal.SIGKILL:
                os.killpg(child.pid, number)
            else:
                child.process.send_signal(number)
        except (ProcessLookupError, PermissionError):
            pass


def wait_for(
    what: str, condition: Callable[[], bool], timeout_s: float, check: Callable[[], None]
) -> Iterator[None]:
    """
    Yield (for a progress display) until `condition` holds.

    Raises:
        NotReadyError: not within `timeout_s`. And whatever `check` raises.
    """
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        check()
        if time.monotonic() > deadline_s:
            raise NotReadyError(f"{what} not ready within {timeout_s:.0f} s")
        yield
        time.sleep(POLL_S)
