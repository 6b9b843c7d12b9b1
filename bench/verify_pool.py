"""
Would a pool of threads verify signatures for a node? (`python -m bench.verify_pool`; ADR 0008)

A stand-in for a busy node: so much Python work per transaction, and one Ed25519 verification. Once
the loop's thread does both; then a pool verifies while the loop's thread works. What a pool can win
is the time of the verifications; what it costs is that a thread that comes back from libsodium has
to wait for the interpreter, and the working thread has to be interrupted for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from nacl import bindings
from nacl.signing import SigningKey

TRANSACTIONS = 4_096
BODY_BYTES = 400
STEPS = 900
"""Of a Python loop, as work per transaction: about 45 µs, the least that a validator does."""
ROUNDS = 5


def verify(signed: bytes, public: bytes, count: int) -> None:
    """Check the same signature so many times."""
    for _ in range(count):
        bindings.crypto_sign_open(signed, public)


def work(count: int) -> int:
    """Python work for so many transactions; its result is of no interest."""
    rows: dict[int, int] = {}
    for step in range(count * STEPS):
        rows[step & 1023] = step
    return len(rows)


def inline(signed: bytes, public: bytes, chunk: int) -> None:
    """One thread does both."""
    for _ in range(TRANSACTIONS // chunk):
        verify(signed, public, chunk)
        work(chunk)


def pooled(signed: bytes, public: bytes, chunk: int, threads: int) -> None:
    """A pool verifies ahead, `chunk` signatures a job."""
    with ThreadPoolExecutor(threads) as pool:
        jobs: list[Future[None]] = [
            pool.submit(verify, signed, public, chunk) for _ in range(TRANSACTIONS // chunk)
        ]
        for job in jobs:
            work(chunk)
            job.result()


def measure(run: Callable[[], None]) -> tuple[float, float]:
    """The best of some rounds: wall and processor time per transaction [µs]."""
    best = (float("inf"), 0.0)
    for _ in range(ROUNDS):
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        run()
        took_s = time.perf_counter() - wall_s
        best = min(best, (took_s, time.process_time() - cpu_s))
    return best[0] / TRANSACTIONS * 1e6, best[1] / TRANSACTIONS * 1e6


def main() -> None:
    """Print a table."""
    key = SigningKey.generate()
    signed, public = bytes(key.sign(bytes(BODY_BYTES))), bytes(key.verify_key)
    rows: list[tuple[str, Callable[[], None]]] = [
        ("one thread", lambda: inline(signed, public, 16)),
        ("1 in a pool, 64 a job", lambda: pooled(signed, public, 64, 1)),
        ("2 in a pool, 64 a job", lambda: pooled(signed, public, 64, 2)),
        ("2 in a pool, 16 a job", lambda: pooled(signed, public, 16, 2)),
        ("2 in a pool, 1 a job", lambda: pooled(signed, public, 1, 2)),
    ]
    print(f"{'':24}{'µs/tx':>8}{'CPU µs/tx':>12}")
    for name, run in rows:
        wall_us, cpu_us = measure(run)
        print(f"{name:24}{wall_us:8.0f}{cpu_us:12.0f}")


if __name__ == "__main__":
    main()
