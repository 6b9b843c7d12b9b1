"""A provisioning file is believed whole or refused by file, key and remedy."""

import json
from pathlib import Path

import pytest

from hem.config import load_market_facts, load_provisioning
from wire.errors import ConfigError
from wire.keys import SigningKey, to_text

KEY = SigningKey(bytes(32))
GOOD = f"""
[home]
name = "home-03"
claim_code = "abc-123"
data_dir = "data"
[broker]
port = 1883
[market]
name = "demo"
genesis = "../../genesis.json"
csmdb = "{KEY.id}"
csmdb_key = "{to_text(KEY.public)}"
csmdb_box = "{to_text(KEY.public)}"
[gateway]
socket = "gateway.sock"
[[devices]]
name = "meter"
kind = "sunspec-meter"
port = 5020
device_id = 1
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "p.toml"
    path.write_text(text)
    return path


def test_paths_are_relative_to_the_file(tmp_path):
    provisioning = load_provisioning(write(tmp_path, GOOD))
    assert provisioning.home.data_dir == tmp_path / "data"
    assert provisioning.gateway.socket == tmp_path / "gateway.sock"
    assert provisioning.market.genesis == (tmp_path / "../../genesis.json").resolve()
    assert provisioning.policy.file == tmp_path / "policy.toml"
    assert provisioning.validator is None


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('claim_code = "abc-123"', "", "home.claim_code: is missing"),
        ("port = 1883", "port = 99999", "broker.port"),
        ("[broker]", "[broker]\nprot = 1", "broker.prot: is not a key"),
        (KEY.id, "hg1short", "market.csmdb: expected an identity"),
        ('kind = "sunspec-meter"', 'kind = "sunspec-meter"\nprot = 1', "has no key 'prot'"),
        ("[home]", "[home", "not TOML"),
        ('"gateway.sock"', '"' + "long/" * 30 + 'gateway.sock"', "set a shorter path"),
    ],
)
def test_an_error_names_file_and_key(tmp_path, old, new, says):
    path = write(tmp_path, GOOD.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        load_provisioning(path)
    assert str(path) in str(caught.value)
    assert says in str(caught.value)


def test_two_devices_of_one_name_are_refused(tmp_path):
    text = GOOD + GOOD[GOOD.index("[[devices]]") :]
    with pytest.raises(ConfigError, match="two devices are named 'meter'"):
        load_provisioning(write(tmp_path, text))


def test_an_unknown_kind_of_device_passes_with_its_own_keys(tmp_path):
    text = GOOD + '[[devices]]\nname = "x"\nkind = "quantum"\nflux = 3\n'
    assert load_provisioning(write(tmp_path, text)).devices[1].kind == "quantum"


PROXY = '[[proxy]]\ndevice = "meter"\n'


def test_a_proxy_shares_a_device_s_line_with_this_machine_only_and_no_writes(tmp_path):
    (proxy,) = load_provisioning(write(tmp_path, GOOD + PROXY)).proxy
    assert (str(proxy.listen), proxy.port, proxy.device_ids) == ("127.0.0.1", 5020, None)
    assert proxy.allow_writes is False


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[[proxy]]\ndevice = "invertor"\n', "proxy.0.device: no device is named 'invertor'"),
        ('[[proxy]]\ndevice = "p1"\n', "proxy.0.device: 'p1' is of kind p1; only a Modbus"),
        (PROXY * 2, "proxy.1.port: 5020 has a proxy already; give each its own"),
        ("[[proxy]]\nport = 5020\n", "proxy.0.device: is missing; add it"),
        (PROXY + "device_ids = []\n", "proxy.0.device_ids"),
        (PROXY + "device_ids = [256]\n", "proxy.0.device_ids.0"),
        (PROXY + 'listen = "everywhere"\n', "proxy.0.listen"),
        (PROXY + "clients_max = 0\n", "proxy.0.clients_max"),
        (PROXY + "writes = true\n", "proxy.0.writes: is not a key of this section"),
    ],
)
def test_a_wrong_proxy_is_named_by_its_key(tmp_path, text, says):
    p1 = '[[devices]]\nname = "p1"\nkind = "p1"\npath = "/dev/ttyUSB0"\n'
    path = write(tmp_path, GOOD + p1 + text)
    with pytest.raises(ConfigError) as caught:
        load_provisioning(path)
    assert str(path) in str(caught.value)
    assert says in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml"):
        load_provisioning(tmp_path / "none.toml")


def test_market_facts_come_from_the_genesis(tmp_path):
    path = tmp_path / "genesis.json"
    facts = {"chainId": "hg-demo-1", "dsoBoxKey": to_text(KEY.public), "slotLengthS": 60}
    path.write_text(json.dumps(facts | {"poe": {"kappaMilli": 500, "mode": "smooth"}}))
    loaded = load_market_facts(path)
    assert (loaded.chain_id, loaded.grid.length_s, loaded.poe.kappa_milli) == ("hg-demo-1", 60, 500)
    path.write_text("{}")
    with pytest.raises(ConfigError, match=r"genesis\.json: chainId: is missing"):
        load_market_facts(path)
