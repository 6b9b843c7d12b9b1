"""The meter key signs one unbroken chain of plausible readings, and nothing a caller makes up."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hem.config import MarketFacts, Poe
from hem.gateway.meterbook import MeterBook, load_meter_key
from hem.gateway.signer import Registers, Rules, SigningRefusedError, attestation, check_reading
from runtime.store import MemoryStore, SqliteStore
from wire.canonical import encode
from wire.cpf import cpf_q16
from wire.errors import ConfigError
from wire.keys import BoxKey, SigningKey, from_text, to_text
from wire.metering import CpfAttestation, Reading, Receipt, check_record, digest, load_record
from wire.slots import SlotGrid

KEY = SigningKey(bytes(range(32)))
DSO = BoxKey(bytes(range(1, 33)))
GRID = SlotGrid(900)
RULES = Rules(KEY.id, GRID, 10_000, 2)
FACTS = MarketFacts(chainId="hg-test", dsoBoxKey=to_text(DSO.public), slotLengthS=900)
ADDRESS = SigningKey(b"a" * 32).id
OTHER = SigningKey(b"b" * 32).id
S = 1_980_000


def at(slot, late_ms=1000):
    return GRID.end_ms(slot) + late_ms


def book(store=None):
    return MeterBook(KEY, store or MemoryStore(), FACTS, 10_000, 2)


def refused(code, call, *arguments):
    with pytest.raises(SigningRefusedError) as caught:
        call(*arguments)
    assert caught.value.code == code


def test_the_first_reading_starts_the_chain():
    reading = check_reading(RULES, None, S, at(S), Registers(1, 2, 3))
    assert (reading.seq, reading.previous, reading.import_wh) == (0, "0" * 64, 1)


def test_each_reading_links_to_the_one_before_even_across_missed_slots():
    meter = book()
    first = load_record(Reading, meter.sign_reading(S, at(S), Registers(0, 0, 0))["reading"])
    row = meter.sign_reading(S + 3, at(S + 3), Registers(9, 8, 7))
    second = load_record(Reading, row["reading"])
    check_record(second, KEY.public, "hg-test")
    assert (second.seq, second.slot, second.previous) == (1, S + 3, digest(first))


@pytest.mark.parametrize("field", ["import_wh", "export_wh", "generation_wh"])
def test_a_register_that_goes_backwards_is_not_signed(field):
    meter = book()
    meter.sign_reading(S, at(S), Registers(5, 5, 5))
    values = {"import_wh": 6, "export_wh": 6, "generation_wh": 6} | {field: 4}
    refused("BACKWARDS", meter.sign_reading, S + 1, at(S + 1), Registers(**values))
    assert meter.reading(S + 1) is None


def test_a_register_that_rises_faster_than_the_connection_can_carry_is_not_signed():
    meter = book()
    meter.sign_reading(S, at(S), Registers(0, 0, 0))
    most = 10_000 // 4 + 2  # 10 kW for a quarter of an hour, and the rounding of two registers
    refused("TOO_FAST", meter.sign_reading, S + 1, at(S + 1), Registers(most + 1, 0, 0))
    meter.sign_reading(S + 1, at(S + 1), Registers(most, 0, 0))


def test_a_slot_is_closed_neither_before_its_end_nor_long_after_nor_out_of_order():
    meter = book()
    refused("TOO_EARLY", meter.sign_reading, S, at(S, -1), Registers(0, 0, 0))
    refused("TOO_LATE", meter.sign_reading, S, at(S + 2, 0), Registers(0, 0, 0))
    meter.sign_reading(S, at(S), Registers(0, 0, 0))
    refused("OUT_OF_ORDER", meter.sign_reading, S - 1, at(S), Registers(0, 0, 0))


def test_asking_twice_gives_the_same_bytes_whatever_the_registers_say_now():
    meter = book()
    first = meter.sign_reading(S, at(S), Registers(1, 1, 1))
    assert encode(meter.sign_reading(S, at(S + 1), Registers(99, 99, 99))) == encode(first)


def test_the_sealed_reading_opens_for_the_dso_only_and_is_the_reading():
    row = book().sign_reading(S, at(S), Registers(1, 1, 1))
    assert DSO.open(from_text(row["sealed"])) == encode(row["reading"])


def test_the_chain_goes_on_after_a_restart(tmp_path):
    path = tmp_path / "r.sqlite"
    store = SqliteStore(path)
    first = load_record(Reading, book(store).sign_reading(S, at(S), Registers(5, 5, 5))["reading"])
    store.close()
    again = book(SqliteStore(path))
    refused("BACKWARDS", again.sign_reading, S + 1, at(S + 1), Registers(4, 5, 5))
    row = again.sign_reading(S + 1, at(S + 1), Registers(6, 5, 5))
    assert row["reading"]["previous"] == digest(first)
    assert row["reading"]["seq"] == 1


def test_a_receipt_is_the_difference_of_the_registers_under_the_pseudonym():
    meter = book()
    meter.sign_reading(S, at(S), Registers(100, 50, 0))
    row = meter.sign_reading(S + 1, at(S + 1), Registers(130, 90, 0))
    receipt = load_record(Receipt, meter.sign_receipt(ADDRESS, S + 1))
    check_record(receipt, meter.pseudonym(ADDRESS), "hg-test")
    assert receipt.net_wh == 30 - 40
    assert receipt.reading == digest(load_record(Reading, row["reading"]))
    assert meter.pseudonym(ADDRESS) != KEY.public


def test_without_both_readings_there_is_no_receipt():
    meter = book()
    refused("NO_READING", meter.sign_receipt, ADDRESS, S)
    meter.sign_reading(S, at(S), Registers(0, 0, 0))
    refused("GAP", meter.sign_receipt, ADDRESS, S)


def test_one_slots_energy_is_confirmed_for_one_address_only():
    meter = book()
    meter.sign_reading(S, at(S), Registers(0, 0, 0))
    meter.sign_reading(S + 1, at(S + 1), Registers(7, 0, 0))
    first = meter.sign_receipt(ADDRESS, S + 1)
    assert meter.sign_receipt(ADDRESS, S + 1) == first
    refused("OTHER_ADDRESS", meter.sign_receipt, OTHER, S + 1)


def test_the_attestation_is_the_formula_over_stored_readings():
    meter = book()
    imports, exports, made = [0, 100, 150], [0, 0, 80], [0, 300, 700]
    for i in range(3):
        meter.sign_reading(S + i, at(S + i), Registers(imports[i], exports[i], made[i]))
    record = load_record(CpfAttestation, meter.attest_cpf(OTHER, S + 1, S + 2))
    check_record(record, meter.pseudonym(f"validator:{OTHER}"), "hg-test")
    assert record.cpf_q16 == cpf_q16([100, -30], [300, 400], 1000)
    assert record.eligible


def test_a_gap_in_the_window_makes_it_not_eligible():
    meter = book()
    for slot in (S, S + 2):
        meter.sign_reading(slot, at(slot), Registers(slot - S, 0, 1000 * (slot - S)))
    record = load_record(CpfAttestation, meter.attest_cpf(OTHER, S + 1, S + 2))
    assert (record.cpf_q16, record.eligible) == (0, False)


def test_a_backward_or_endless_window_is_refused():
    refused("BAD_WINDOW", attestation, {}, OTHER, 5, 4, Poe())
    refused("BAD_WINDOW", book().attest_cpf, OTHER, 5, 10**9)
    refused("NO_READING", book().attest_cpf, OTHER, 5, 6)


@given(
    st.lists(
        st.tuples(
            st.integers(-1, 3),
            st.integers(-10, 3000),
            st.integers(-10, 3000),
            st.integers(-10, 3000),
        ),
        max_size=20,
    )
)
def test_whatever_is_asked_what_is_signed_is_one_monotone_chain(steps):
    meter, slot, values, signed = book(), S, [100, 100, 100], []
    for skip, *rises in steps:
        slot += skip
        values = [max(0, value + rise) for value, rise in zip(values, rises, strict=True)]
        try:
            row = meter.sign_reading(slot, at(slot), Registers(*values))
        except SigningRefusedError:
            continue
        reading = load_record(Reading, row["reading"])
        if not signed or signed[-1] != reading:
            signed.append(reading)
    unique = sorted(set(signed), key=lambda reading: reading.seq)
    assert [reading.seq for reading in unique] == list(range(len(unique)))
    for before, after in itertools.pairwise(unique):
        assert after.previous == digest(before)
        assert after.slot > before.slot
        assert after.import_wh >= before.import_wh
        assert after.generation_wh - before.generation_wh <= 2500 * (after.slot - before.slot) + 2


def test_the_key_file_is_made_once_and_only_its_owner_reads_it(tmp_path):
    path = tmp_path / "meter.key"
    key = load_meter_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_meter_key(path).public == key.public
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_meter_key(path)
    path.chmod(0o600)
    path.write_text("")
    with pytest.raises(ConfigError, match="not a key file"):
        load_meter_key(path)
