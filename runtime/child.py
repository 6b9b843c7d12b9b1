"""
One question to a process of its own, one answer from it, and it ends.

For work that takes much memory now and then, or may hang: what the child took is given back, and a
child that is late, says too much or crashes costs an answer and nothing else. What it says is not
believed; whoever asks decodes and checks it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Sequence

from runtime.process import die_with_parent

ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
"""numpy starts threads for every core when it is imported."""
ANSWER_BYTES_MAX = 1_000_000
REST_BYTES = 65_536
"""What is read at once of an output that nobody wants any more."""


class ChildError(Exception):
    """The child gave nothing that can be used; the text says why."""


async def ask_child(
    command: Sequence[str], question: bytes, deadline_s: float, bytes_max: int = ANSWER_BYTES_MAX
) -> bytes:
    """
    Start a child, write the question to its input, read its output to the end.

    Args:
        deadline_s: from its start to its end [real s]

    Raises:
        ChildError: it does not start, is late, crashes, or says more than `bytes_max`.
    """
    try:
        async with asyncio.timeout(deadline_s):
            return await _ask(command, question, bytes_max)
    except TimeoutError:
        raise ChildError(f"late: no answer within {deadline_s:g} s") from None


async def _ask(command: Sequence[str], question: bytes, bytes_max: int) -> bytes:
    try:
        child = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={**os.environ, **ONE_THREAD},
            preexec_fn=die_with_parent(),
        )
    except OSError as error:
        raise ChildError(f"does not start: {error.strerror}") from None
    try:
        return await _exchange(child, question, bytes_max)
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
        # A child killed while we are cancelled must still be reaped.
        await asyncio.shield(_reap(child))


async def _exchange(child: asyncio.subprocess.Process, question: bytes, bytes_max: int) -> bytes:
    """The question in, the answer out, both at once: a child may answer before it has read all."""
    assert child.stdin is not None
    assert child.stdout is not None
    writing = asyncio.create_task(_write(child.stdin, question))
    try:
        answer = bytearray()
        while part := await child.stdout.read(bytes_max):
            answer += part
            if len(answer) > bytes_max:
                raise ChildError(f"says more than {bytes_max} bytes")
    finally:
        writing.cancel()
    code = await child.wait()
    if code != 0:
        raise ChildError(f"crashed: exit code {code}")
    return bytes(answer)


async def _reap(child: asyncio.subprocess.Process) -> None:
    """Wait for the end of a child; asyncio does not see it while its output is not read."""
    assert child.stdout is not None
    while await child.stdout.read(REST_BYTES):
        pass
    await child.wait()


async def _write(stdin: asyncio.StreamWriter, question: bytes) -> None:
    with contextlib.suppress(ConnectionError):
        stdin.write(question)
        await stdin.drain()
        stdin.close()
