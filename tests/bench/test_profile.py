"""What a stack is for: the innermost frame that says so."""

import pytest

from bench.profile import OTHER, area_of, shares

MAIN = "<module> (/app/ledger/cli.py:1)"
NODE = "turn (/app/ledger/node.py:300)"


@pytest.mark.parametrize(
    ("frames", "area"),
    [
        ([MAIN, NODE, "verify (/lib/nacl/signing.py:97)"], "Ed25519"),
        ([MAIN, NODE, "apply (/app/ledger/execution.py:5)", "clear (/app/market/a.py:3)"],
         "execution: contracts, market"),
        ([MAIN, NODE, "write_block (/app/ledger/store.py:9)"], "blocks to SQLite"),
        ([MAIN, NODE, "decode (/app/wire/canonical.py:80)"], "reading and writing messages"),
        ([MAIN, NODE], "consensus"),
        ([MAIN, "run (/lib/asyncio/runners.py:4)"], "event loop"),
        (["process 7: python", "nowhere"], OTHER),
    ],
)  # fmt: skip
def test_an_area_is_that_of_the_innermost_frame(frames, area):
    assert area_of(frames) == area


def test_shares_add_up(tmp_path):
    file = tmp_path / "a.stacks"
    waiting = "_worker (/lib/concurrent/futures/thread.py:81)"
    file.write_text(f"run (/lib/threading.py:9);{waiting} 7\n")
    assert shares(file) == {}
    file.write_text(f"{MAIN};{NODE} 3\n{MAIN};{NODE};verify (/lib/nacl/signing.py:97) 1\n")
    assert shares(file) == {"consensus": 0.75, "Ed25519": 0.25}
