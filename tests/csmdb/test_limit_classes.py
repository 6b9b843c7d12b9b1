"""What a grant says of a connection is said of many homes; if not, the operator is told."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.brokers import make_key
from support.csmdb_site import NOW_MS
from support.enrolment import AskingHome
from typer.testing import CliRunner

from csmdb import cli
from csmdb.config import load_config
from csmdb.limit_classes import DEFAULT_CLASSES_W, class_of
from csmdb.setup import create, open_csmdb
from market.settlement import assumed_net_wh
from wire.certificates import AddressGrant, Certificate
from wire.errors import ConfigError
from wire.withdrawal import portion_wh, portioned

SLOT_S = 900


def enrol(csmdb, name, import_w, export_w, role="prosumer"):
    home = AskingHome(name)
    code = csmdb.add_claim([role], import_w, export_w, "feeder-1")
    certificate = csmdb.desk.enroll(home.ems.id, home.enrolment(code), NOW_MS)
    now_ms = csmdb.clock.now_ms()
    [grant] = csmdb.desk.grant_addresses(home.ems.id, {"addresses": [home.address_row()]}, now_ms)
    return certificate, grant


def looks(grant):
    return (grant.can_buy, grant.can_sell, grant.max_buy_wh, grant.max_sell_wh)


def test_homes_of_a_class_and_role_have_grants_that_look_alike(csmdb):
    grants = [
        enrol(csmdb, f"home-{number}", *watts)[1]
        for number, watts in enumerate([(11_000, 11_000), (4_600, 3_680), (10_000, 0)])
    ]
    assert {looks(grant) for grant in grants} == {(True, True, 2_750, 2_750)}
    _, other = enrol(csmdb, "home-9", 4_600, 0, "consumer")
    assert looks(other) == (True, False, 2_750, 0)


@given(st.integers(0, 10**6), st.sampled_from([DEFAULT_CLASSES_W, (5,), ()]))
def test_a_class_is_never_below_the_connection_so_silence_is_settled_at_the_worst(power_w, classes):
    class_w = class_of(power_w, classes)
    assert class_w >= power_w
    assert class_w == power_w or class_w in classes or class_w % classes[-1] == 0
    own, said = (assumed_net_wh(one * SLOT_S // 3600, 0, 0) for one in (power_w, class_w))
    assert said >= own


@given(st.integers(0, 10**9))
def test_energy_is_withdrawn_in_portions_within_what_the_connection_carries(limit_wh):
    portion = portion_wh(limit_wh)
    assert portion <= limit_wh < 2.5 * portion or limit_wh == portion == 0
    assert portion == 0 or str(portion).rstrip("0") in ("1", "2", "5")


def test_a_home_withdraws_no_more_than_its_own_connection_whatever_its_class(csmdb):
    certificate, grant = enrol(csmdb, "home-1", 10_000, 6_000)
    own = portioned(grant, certificate, SLOT_S)
    assert isinstance(certificate, Certificate) and isinstance(own, AddressGrant)
    assert (own.max_buy_wh, own.max_sell_wh) == (2_000, 1_000), "of 2500 and 1500 Wh"
    certificate, grant = enrol(csmdb, "home-2", 11_000, 11_000)
    assert portioned(grant, certificate, SLOT_S) == grant


def test_a_class_with_few_homes_is_reported_with_what_to_do(tmp_path):
    folder = tmp_path / "db"
    with create(folder, "test") as csmdb:
        csmdb.issue_service_certificate(make_key("service").public, ["analytics"], "analytics")
        for number in range(5):
            enrol(csmdb, f"home-{number}", 11_000, 9_000)
        enrol(csmdb, "farm", 11_001, 200_000)
        enrol(csmdb, "school", 23_000, 0, "consumer")
    found = CliRunner().invoke(cli.app, ["privacy", str(folder), "--json"])
    assert [(row["class_w"], row["homes"], row["enough"]) for row in json.loads(found.output)] == [
        (24_000, 1, False), (220_000, 1, False), (11_000, 5, True),
    ]  # fmt: skip
    lines = CliRunner().invoke(cli.app, ["privacy", str(folder)]).output.splitlines()
    assert "take 24000 out of limit_classes_w" in lines[0]
    assert "put a larger class into limit_classes_w" in lines[1]
    assert lines[2] == "5 homes that buy and sell, up to 11000 W"


def test_the_operator_chooses_the_classes(tmp_path):
    folder = tmp_path / "db"
    create(folder, "test").close()
    for text, watts in (("[20_000]", 20_000), ("[]", 4_600)):
        (folder / "csmdb.toml").write_text(f"[privacy]\nlimit_classes_w = {text}\n")
        with open_csmdb(folder) as csmdb:
            _, grant = enrol(csmdb, f"home of {watts}", 4_600, 4_600)
        assert grant.max_buy_wh == watts * SLOT_S // 3600


@pytest.mark.parametrize("wrong", ["[5, 4]", "[0]", "[5, 5]", '["5 kW"]'])
def test_classes_that_do_not_rise_are_a_configuration_error(tmp_path, wrong):
    (tmp_path / "csmdb.toml").write_text(f"[privacy]\nlimit_classes_w = {wrong}\n")
    with pytest.raises(ConfigError, match=r"privacy\.limit_classes_w"):
        load_config(tmp_path)
