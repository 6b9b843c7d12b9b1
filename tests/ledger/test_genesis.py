"""The genesis file: what it says is what its chain id says."""

import json

import msgspec
import pytest
from support.chain_builder import key, make_genesis

from ledger.genesis import (
    Membership,
    Poe,
    Prices,
    Rewards,
    genesis_bytes,
    genesis_json,
    load_genesis,
    read_genesis_bytes,
    seal_genesis,
    write_genesis,
)
from wire.errors import ConfigError
from wire.keys import to_text


def test_a_written_genesis_is_read_back(tmp_path):
    path = tmp_path / "genesis.json"
    written = write_genesis(make_genesis(), path)
    assert load_genesis(path) == written
    assert read_genesis_bytes(genesis_bytes(written)) == written
    assert written.chain_id.startswith("hg-test-")
    assert len(written.chain_id) == len("hg-test-") + 16


def test_names_in_the_file_are_those_of_the_design(tmp_path):
    value = genesis_json(make_genesis())
    assert {
        "market", "chainId", "slotLengthS", "gateLeadS", "graceSlots", "startMs", "issuingKey",
        "supervisor", "dsoBoxKey", "prices", "validators", "poe", "delta0Ms", "membership",
        "rewards",
    } == set(value)  # fmt: skip
    assert set(value["supervisor"]) == {"address", "key", "balanceUc"}
    assert set(value["prices"]) == {"retailUcPerKwh", "feedInUcPerKwh", "imbalanceUcPerKwh"}
    assert set(value["validators"][0]) == {"id", "key", "controller", "onion"}
    assert set(value["membership"]) == {"maxValidators", "evidenceEpochs", "banEpochs"}
    assert set(value["rewards"]) == {"perBlockUc", "maxBlocks"}
    assert {"windowSlots", "kappaMilli", "minEnergyWh", "minProductionWh"} < set(value["poe"])


def test_any_change_needs_another_chain_id(tmp_path):
    path = tmp_path / "genesis.json"
    write_genesis(make_genesis(), path)
    value = json.loads(path.read_text())
    value["prices"]["retailUcPerKwh"] += 1
    path.write_text(json.dumps(value))
    with pytest.raises(ConfigError, match=r"genesis\.json.*chainId"):
        load_genesis(path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"market": "Not A Topic"}, "market"),
        ({"issuing_key": "x"}, "issuingKey"),
        ({"dso_box_key": "x"}, "dsoBoxKey"),
        ({"slot_length_s": 1}, "slotLengthS"),
        ({"validators": ()}, "validators"),
        ({"poe": Poe(window_slots=0)}, r"poe\.windowSlots"),
        ({"membership": Membership(max_validators=3)}, r"membership\.maxValidators"),
        ({"membership": Membership(ban_epochs=95)}, r"membership\.banEpochs"),
        ({"rewards": Rewards(per_block_uc=-1)}, r"rewards\.perBlockUc"),
        ({"rewards": Rewards(per_block_uc=1, max_blocks=1000)}, "worth of the energy"),
        ({"rewards": Rewards(per_block_uc=1), "prices": Prices(feed_in_uc_per_kwh=0)}, "worth"),
    ],
)
def test_a_rule_that_cannot_work_is_named(change, named):
    with pytest.raises(ConfigError, match=named):
        make_genesis(**change)


def test_identities_are_the_hashes_of_their_keys():
    genesis = make_genesis()
    wrong = msgspec.structs.replace(genesis.supervisor, key=to_text(key("other").public))
    with pytest.raises(ConfigError, match="supervisor"):
        seal_genesis(msgspec.structs.replace(genesis, supervisor=wrong))


def test_unknown_missing_and_unreadable_are_config_errors(tmp_path):
    path = tmp_path / "genesis.json"
    with pytest.raises(ConfigError, match="cannot be read"):
        load_genesis(path)
    for text in ("{", "[]", "{}", "null", '{"market": "x", "surprise": 1}'):
        path.write_text(text)
        with pytest.raises(ConfigError, match="not a genesis"):
            load_genesis(path)


def test_gate_and_settlement_times():
    genesis = make_genesis()
    start_ms = genesis.grid.start_ms(100)
    assert genesis.gate_ms(100) == start_ms - 300_000
    assert genesis.settle_ms(100) == start_ms + 2 * 900_000
