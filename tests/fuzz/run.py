"""
Coverage-guided fuzzing of the targets, with atheris (libFuzzer).

    python tests/fuzz/run.py [--seconds N] [TARGET…]

Each target runs in a process of its own, from the seeds and what earlier runs found interesting
(`out/fuzz/<target>`). Mutations are libFuzzer's and, every second time, those of `mutate`, which
keep a message well formed. A find stops the target; its input stays in `out/fuzz/` as
`<target>-crash-…`, and `--again FILE` runs a target on it.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
from pathlib import Path
from random import Random

REPOSITORY = Path(__file__).resolve().parents[2]
OUT = REPOSITORY / "out" / "fuzz"
SLOWEST_S = 5
MEMORY_MB = 2_048
PACKAGES = ["aggregator", "broker", "csmdb", "hem", "ledger", "market", "runtime", "sim", "wire"]


def main() -> int:
    """Fuzz the named targets, or all; the exit code is 1 when one found something."""
    sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]
    options = _options()
    if options.again:
        return _again(options.targets[0], options.again)
    if options.inside:
        _fuzz(options.targets[0], options.seconds)
    from fuzz import harness  # noqa: PLC0415 — after the path is set, and never instrumented here

    unknown = set(options.targets) - harness.TARGETS.keys()
    if unknown:
        print(f"no target {sorted(unknown)}; there are {sorted(harness.TARGETS)}")
        return 2
    found = []
    for name in options.targets or list(harness.TARGETS):
        corpus = OUT / name
        corpus.mkdir(parents=True, exist_ok=True)
        for seed in harness.TARGETS[name].seeds():
            (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
        print(f"--- {name}", flush=True)
        command = [sys.executable, __file__, "--inside", "--seconds", str(options.seconds), name]
        if subprocess.run(command, check=False).returncode:
            found.append(name)
    print(f"finds in: {', '.join(found)}" if found else "nothing found")
    return 1 if found else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--again", type=Path, help="run the target once on this file")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _again(name: str, path: Path) -> int:
    from fuzz import harness  # noqa: PLC0415

    harness.TARGETS[name].run(path.read_bytes())
    print("nothing wrong")
    return 0


def _fuzz(name: str, seconds: int) -> None:
    """Never returns: libFuzzer ends the process."""
    import atheris  # noqa: PLC0415

    with atheris.instrument_imports(include=PACKAGES, enable_loader_override=False):
        from fuzz import harness, mutate, services  # noqa: PLC0415

    target = harness.TARGETS[name]
    for seed in target.seeds():
        target.run(seed)

    def change(data: bytes, most: int, seed: int) -> bytes:
        if seed % 2:
            return bytes(atheris.Mutate(data, most))
        return mutate.mutated(data, mutate.random_steps(Random(seed)))[:most]

    arguments = [
        sys.argv[0], f"-max_total_time={seconds}", f"-timeout={SLOWEST_S}",
        f"-rss_limit_mb={MEMORY_MB}", f"-artifact_prefix={OUT / name}-", "-max_len=140000",
        "-len_control=0", "-verbosity=0", "-print_final_stats=1", str(OUT / name),
    ]  # fmt: skip
    with services.quiet():
        atheris.Setup(arguments, target.run, custom_mutator=change)
        atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
