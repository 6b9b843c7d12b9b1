"""A home hands its CPF to its validator's node, and shows it under no address."""

from __future__ import annotations

import json

import pytest
from support.chain_builder import FIRST_SLOT, key

from hem.ems import attesting
from wire.certificates import ValidatorGrant, dump

GRANT = ValidatorGrant(
    validator=key("validator 0").id, meter_key="m", start_slot=FIRST_SLOT, end_slot=FIRST_SLOT + 9,
    signature="s",
)  # fmt: skip


def attestation(end_slot):
    return {"validator": GRANT.validator, "end_slot": end_slot, "cpf_q16": 7}


def test_an_attestation_is_left_whole_under_its_windows_end(tmp_path):
    for end_slot in (FIRST_SLOT + 4, FIRST_SLOT + 5, FIRST_SLOT + 5):
        file = attesting.hand_over(tmp_path, GRANT, attestation(end_slot))
        assert file == tmp_path / "cpf" / f"{end_slot}.json"
        said = json.loads(file.read_bytes())
        assert said == {"grant": dump(GRANT), "attestation": attestation(end_slot)}
    assert sorted(p.suffix for p in (tmp_path / "cpf").iterdir()) == [".json", ".json"]


def test_a_crash_while_writing_leaves_no_half_file(tmp_path, monkeypatch):
    def power_cut(_descriptor):
        raise OSError("power cut")

    monkeypatch.setattr(attesting.os, "fsync", power_cut)
    with pytest.raises(OSError, match="power cut"):
        attesting.hand_over(tmp_path, GRANT, attestation(FIRST_SLOT))
    assert not list((tmp_path / "cpf").glob("*.json"))


def test_a_node_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(OSError):
        attesting.hand_over(tmp_path / "nowhere", GRANT, attestation(FIRST_SLOT))
