"""`ledger run --role light`: what stops it is one line with a remedy."""

import msgspec
import pytest
from support.chain_builder import START_MS, VALIDATORS, Chain, key, make_genesis

from ledger import light_process, proofs
from ledger.checkpoint import genesis_checkpoint, write_checkpoint
from ledger.genesis import write_genesis
from ledger.light import Conflict, ConflictError, TrustExpiredError
from ledger.light_sync import EVIDENCE_FILE
from ledger.prover import Prover
from runtime.keyfiles import write_secret
from wire.errors import ConfigError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write_genesis(make_genesis(), tmp_path / "genesis.json")
    write_secret(tmp_path / "key", key("light").seed)
    (tmp_path / "cert").write_text("")
    monkeypatch.setattr(light_process, "read_certificate", lambda _path: None)
    return tmp_path


def run(folder):
    light_process.run_light(folder, folder / "key", folder / "cert", "127.0.0.1", 1)


def stopped_by(error, monkeypatch):
    def stop(_main):
        raise error

    monkeypatch.setattr(light_process, "run_service", stop)


def test_a_checkpoint_of_another_chain_is_refused(folder):
    other = genesis_checkpoint(make_genesis(gate_lead_s=299))
    write_checkpoint(other, folder / "checkpoint.json")
    with pytest.raises(ConfigError, match="remove it to start at the genesis"):
        run(folder)


def test_away_too_long_it_asks_for_a_checkpoint_of_somebody_trusted(folder, monkeypatch):
    stopped_by(TrustExpiredError("a newer checkpoint is needed"), monkeypatch)
    with pytest.raises(ConfigError, match=r"checkpoint\.json: EXPIRED.*`ledger checkpoint`"):
        run(folder)


def test_evidence_is_kept_in_a_file(folder, monkeypatch):
    chain = Chain()
    chain.block(START_MS + 1)
    first = Prover(chain.store).anchor(1)
    second = msgspec.structs.replace(
        first, header=msgspec.structs.replace(first.header, state_root=bytes(32))
    )
    conflict = Conflict(first, second, 1, (VALIDATORS[2].id,))
    stopped_by(ConflictError(conflict), monkeypatch)
    with pytest.raises(ConfigError, match=VALIDATORS[2].id):
        run(folder)
    kept = (folder / EVIDENCE_FILE).read_bytes()
    assert proofs.decode(proofs.Evidence, kept) == proofs.Evidence(first, second)
