"""The ledger benchmark does what it says, in a few seconds and with small numbers."""

from dataclasses import replace

import pytest

from bench.brokers import INSTALL, find_mosquitto
from bench.ledger import SHORT, _percentile_ms, run
from bench.report import measurements, show
from bench.workload import (
    ORDERS_PER_ADDRESS,
    ORDERS_PER_SLOT,
    Market,
    capacity,
    new_key,
    sign_all,
)
from ledger.mempool import MAX_PER_SENDER
from wire.transactions import parse_transaction

TINY = replace(SHORT, steady=((40, 0.7), (80, 0.7)), windows=(16,), step_s=0.8, limit_s=0.05,
               crash_s=(0.3, 1.0, 0.7))  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("broker", ["mosquitto", pytest.param("embedded", marks=pytest.mark.long)])
def test_a_run_loses_nothing_through_a_killed_leader_and_measures_every_part(
    broker, tmp_path, capsys
):
    if broker == "mosquitto" and find_mosquitto() is None:
        pytest.skip(INSTALL)
    result = run(TINY, broker, tmp_path, lambda _: None)
    assert [phase.name for phase in result.phases] == [
        "40 tx/s", "leader killed", "bundles of 64", "16 outstanding", "80 tx/s",
    ]  # fmt: skip
    for phase in result.phases:
        assert 0 < phase.sent == phase.final and phase.late == 0, phase
        assert 0 < phase.p50_ms <= phase.p95_ms <= phase.p99_ms <= phase.max_ms
        assert phase.validator_us_per_tx > 0 and phase.broker_us_per_tx > 0
        assert 90 < phase.bytes_per_vote < 130 < phase.bytes_per_certificate < 300
    assert result.audit["executed"] > 0 and result.audit["same"]
    assert not result.audit["lost"] and not result.audit["refused"] and not result.crash["lost"]
    assert result.crash["transactions"] > 0 and result.limit_tx_per_s > 0
    assert measurements(result)["lost"] == 0
    show(result)
    assert "16 outstanding" in capsys.readouterr().out


def test_the_load_keeps_the_rules_of_the_market():
    market = Market(1_800_000_000_000)
    keys = [new_key(), new_key()]
    signed = sign_all(market.genesis(), market.now_ms, keys, 300, 1, 1)
    assert len(signed) == 300 == len({tx.txid for tx in signed})
    for key in keys:
        mine = [parse_transaction(tx.raw) for tx in signed if tx.address == key.id]
        assert [tx.nonce for tx in mine] == list(range(1, len(mine) + 1))
        assert len(mine) <= capacity(1)
        operations = [operation for tx in mine for operation in tx.operations]
        slots = [one["slot"] for one in operations if one["op"] == "bid-offer"]
        assert max(map(slots.count, slots)) <= ORDERS_PER_SLOT
        receipts = [one["receipt"]["slot"] for one in operations if one["op"] == "receipt"]
        assert len(receipts) == len(set(receipts)) == len(mine) // 10
    assert capacity(64) * 64 <= ORDERS_PER_ADDRESS
    assert capacity(64) <= MAX_PER_SENDER


def test_percentiles_are_nearest_rank():
    values_s = [0.001 * n for n in range(1, 101)]
    assert [_percentile_ms(values_s, percent) for percent in (50, 99, 100)] == pytest.approx(
        [50, 99, 100]
    )
    assert _percentile_ms([], 99) == 0
