"""A scripted day has the state roots it always had, and its chain passes the audit."""

import importlib.util
import json
from pathlib import Path

from support.chain_builder import Chain, make_genesis

from ledger.genesis import write_genesis
from ledger.store import LedgerStore
from ledger.verify import verify_folder

VECTORS = Path(__file__).parents[1] / "vectors" / "ledger"


def generator():
    spec = importlib.util.spec_from_file_location("day", VECTORS / "make_scripted_day.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_scripted_day_gives_the_recorded_roots(tmp_path):
    write_genesis(make_genesis(), tmp_path / "genesis.json")
    chain = Chain(LedgerStore.in_folder(tmp_path))
    day = generator().run_day(chain)
    chain.store.close()
    assert day == json.loads((VECTORS / "scripted_day.json").read_text())
    report = verify_folder(tmp_path)
    assert report.state_root == day["stateRoot"]
    assert report.energy_traded_wh == day["totals"]["tradedWh"] > 0
