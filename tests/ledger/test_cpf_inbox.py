"""A home leaves its attestation in the node's folder; the validator says it under its own name."""

import json
import os

import pytest
from support.chain_builder import FIRST_SLOT, VALIDATORS, cpf, make_genesis, slot_ms
from support.nodes import feeder

from ledger.cpf_inbox import CpfInbox
from ledger.genesis import Privacy
from runtime.cpf_folder import CPF_FOLDER, MAX_FILE_BYTES, MAX_FILES, put_attestation, waiting_slots
from runtime.metrics import refusals
from wire.canonical import encode

GENESIS = make_genesis()
OWN, OTHER = VALIDATORS[0], VALIDATORS[1]
END = FIRST_SLOT + 8


def operation(end_slot=END, validator=OWN, **changes):
    return cpf(validator, end_slot, 40_000, GENESIS.chain_id, **changes)


def leave(folder, end_slot=END, **changes):
    said = operation(**{"end_slot": end_slot, **changes})
    put_attestation(folder, end_slot, said["grant"], said["attestation"])
    return said


@pytest.fixture
def inbox(tmp_path):
    return CpfInbox(tmp_path, OWN.id, GENESIS)


def test_the_newest_window_that_has_ended_is_said_and_the_older_ones_are_gone(inbox, tmp_path):
    assert inbox.operation(END + 1) is None, "no folder yet"
    for slot in (END - 2, END - 1, END):
        leave(tmp_path, slot)
    assert inbox.operation(END) == operation(END - 1)
    assert waiting_slots(tmp_path) == [END, END - 1]
    assert inbox.operation(END + 1) == operation(END)
    inbox.landed(END)
    assert waiting_slots(tmp_path) == []
    leave(tmp_path, END)
    assert inbox.operation(END + 1) is None, "what was judged is not said again"


def test_a_crash_while_writing_leaves_no_half_file(tmp_path, monkeypatch):
    def power_cut(_descriptor):
        raise OSError("power cut")

    monkeypatch.setattr(os, "fsync", power_cut)
    with pytest.raises(OSError, match="power cut"):
        leave(tmp_path)
    assert waiting_slots(tmp_path) == []


def test_a_node_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(OSError):
        leave(tmp_path / "nowhere")


def _link(path):
    path.symlink_to("/etc/hostname")


def _of(text):
    return lambda path: path.write_bytes(text if isinstance(text, bytes) else encode(text))


SAID = operation()
FORGED = {**SAID["attestation"], "cpf_q16": 65_536}
FOREIGN = operation(validator=OTHER)


@pytest.mark.parametrize(
    ("refusal", "write"),
    [
        ("MALFORMED", _of(b"")),
        ("MALFORMED", _of(b"\xff" * 100)),
        ("MALFORMED", _of(b"[" * 4000)),
        ("MALFORMED", _of([])),
        ("MALFORMED", _of({"grant": SAID["grant"]})),
        ("MALFORMED", _of({"grant": {}, "attestation": {}})),
        ("MALFORMED", _of(json.dumps({k: SAID[k] for k in ("grant", "attestation")}).encode())),
        ("MALFORMED", _of({k: operation(END - 1)[k] for k in ("grant", "attestation")})),
        ("MALFORMED", os.mkfifo),
        ("MALFORMED", _link),
        ("OVERSIZED", _of(b" " * (MAX_FILE_BYTES + 1))),
        ("BAD_SIGNATURE", _of({"grant": SAID["grant"], "attestation": FORGED})),
        ("BAD_CERTIFICATE", _of({k: FOREIGN[k] for k in ("grant", "attestation")})),
    ],
)
def test_what_is_not_our_meters_word_is_refused_by_name_and_taken_away(
    inbox, tmp_path, refusal, write
):
    leave(tmp_path, END - 3)
    write(tmp_path / CPF_FOLDER / f"{END}.json")
    before = refusals("ledger").get(refusal, 0)
    assert inbox.operation(END + 1) == operation(END - 3)
    assert refusals("ledger")[refusal] == before + 1
    assert waiting_slots(tmp_path) == [END - 3]


def test_many_files_are_looked_at_in_rounds(tmp_path):
    (tmp_path / CPF_FOLDER).mkdir()
    for slot in range(3 * MAX_FILES):
        (tmp_path / CPF_FOLDER / f"{slot}.json").touch()
    assert len(waiting_slots(tmp_path)) == MAX_FILES
    inbox = CpfInbox(tmp_path, OWN.id, GENESIS)
    for _ in range(3):
        assert inbox.operation(END) is None
    assert waiting_slots(tmp_path) == []


async def test_a_node_says_what_its_home_left_and_the_chain_takes_it_from_nobody_else(tmp_path):
    async with feeder(tmp_path, privacy=Privacy(address_slots=4)) as market:
        chain_id = market.genesis.chain_id
        said = cpf(OWN, FIRST_SLOT + 7, 40_000, chain_id)
        put_attestation(tmp_path / "node-0", FIRST_SLOT + 7, said["grant"], said["attestation"])
        market.clock.move_to(slot_ms(FIRST_SLOT + 8) + 1)
        await market.until(
            lambda: all(node.ledger.query(f"cpf/{OWN.id}") is not None for node in market.nodes)
        )
        assert market.nodes[1].ledger.query(f"cpf/{OWN.id}")["cpfQ16"] == 40_000
        await market.until(lambda: waiting_slots(tmp_path / "node-0") == [])
