"""No decoder crashes, hangs or swells on any input: a value, or a refusal with a name."""

import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
from fuzz import harness, services
from fuzz.mutate import mutated
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

SLOWEST_S = 2.0
"""Of processor time for one input; a thousand times the usual, as the machine may be busy."""
BYTES_PER_BYTE = 400
"""Memory taken per byte of input: an empty list of three bytes' text takes 64 in Python."""
BASE_BYTES = 4 * 1024 * 1024
EXAMPLES = {
    "advisory": 30,
    "http": 25,
    "archive": 25,
    "mqtt_meter": 25,
    "modbus": 5,
    "client": 20,
    "sunspec": 30,
    "profiles": 30,
    "csmdb": 30,
    "packets": 40,
}
RUN = Path(harness.__file__).with_name("run.py")

steps = st.lists(
    st.tuples(st.integers(0, 255), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
    min_size=1,
    max_size=4,
)


@pytest.fixture(autouse=True)
def quiet():
    with services.quiet():
        yield


def inputs(target):
    changed = st.builds(mutated, st.sampled_from(list(target.seeds())), steps)
    return st.one_of(changed, changed, changed, st.binary(max_size=400))


@pytest.mark.parametrize("name", sorted(harness.TARGETS))
def test_valid_messages_pass(name):
    for one in harness.TARGETS[name].seeds():
        harness.TARGETS[name].run(one)


@pytest.mark.parametrize("name", sorted(harness.TARGETS))
def test_anything_is_a_value_or_a_named_refusal_in_bounded_time(name):
    target = harness.TARGETS[name]

    @seed(1)
    @settings(
        max_examples=EXAMPLES.get(name, 60),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs(target))
    def run(data):
        began_s = time.process_time()
        target.run(data)
        assert time.process_time() - began_s < SLOWEST_S

    run()


@pytest.mark.parametrize("name", sorted(n for n, t in harness.TARGETS.items() if not t.stateful))
def test_the_memory_taken_is_a_multiple_of_the_input(name):
    target = harness.TARGETS[name]
    largest = sorted(target.seeds(), key=len)[-1]
    grown = [
        mutated(largest, [(kind, 7 * kind, what)]) for kind in (2, 5) for what in range(0, 50, 12)
    ]
    for data in (b"[" * 60_000, b'{"":' * 15_000, b"[" + b"[]," * 20_000 + b"[]]", *grown):
        target.run(data)  # what is loaded once is not the input's
        tracemalloc.start()
        try:
            target.run(data)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < BASE_BYTES + BYTES_PER_BYTE * len(data), len(data)


def test_the_coverage_guided_fuzzer_runs_and_finds_nothing_in_a_moment():
    pytest.importorskip("atheris", reason="atheris is not installed: pip install '.[fuzz]'")
    command = [sys.executable, str(RUN), "--seconds", "2", "types"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "nothing found" in done.stdout
