"""The history keeps what was measured, in any order, and believes nothing from the disk."""

import random
import struct
import sys
import zlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hem.controller.history import (
    BEHIND_SLOTS,
    ENERGY_MAX_WH,
    SAVED_BYTES_MAX,
    SLOT_MAX,
    SLOTS_MAX,
    History,
    HistoryError,
)

MAGIC = b"HGHY\x01"
ROWS = st.dictionaries(
    st.integers(1_000, 1_000 + 24 * 3 - 1),
    st.tuples(st.integers(0, ENERGY_MAX_WH), st.integers(0, ENERGY_MAX_WH)),
    max_size=60,
)


def filled(rows, slots_per_day=24, days=3):
    history = History(slots_per_day, days)
    for slot, (load_wh, pv_wh) in rows:
        history.observe(slot, load_wh, pv_wh)
    return history


@given(ROWS, st.randoms(use_true_random=False))
def test_any_order_and_any_gaps_give_the_same_history(rows, rng):
    shuffled = list(rows.items())
    rng.shuffle(shuffled)
    sorted_in, mixed_in = filled(sorted(rows.items())), filled(shuffled)
    assert dict(mixed_in.measured()) == dict(sorted_in.measured()) == rows
    assert mixed_in.buffers() == sorted_in.buffers()
    for slot in range(990, 1_080):
        assert mixed_in.at(slot) == rows.get(slot)


@given(ROWS)
def test_a_history_comes_back_from_the_store_as_it_was(rows):
    history = filled(rows.items())
    again = History.from_bytes(history.to_bytes(), 24, 3)
    assert (again.newest, again.buffers()) == (history.newest, history.buffers())


@given(ROWS, st.integers(950, 1_100))
def test_a_gap_is_filled_from_the_same_slot_of_other_days_and_never_from_nothing(rows, slot):
    history = filled(rows.items())
    load_wh, pv_wh = history.filled(slot)
    same = [row for each, row in rows.items() if (each - slot) % 24 == 0]
    if slot in rows:
        assert (load_wh, pv_wh) == rows[slot]
    elif same:
        assert min(r[0] for r in same) <= load_wh <= max(r[0] for r in same)
        assert min(r[1] for r in same) <= pv_wh <= max(r[1] for r in same)
    else:
        assert pv_wh == 0
        assert load_wh <= max((r[0] for r in rows.values()), default=0)


def test_who_measured_nothing_gets_nothing():
    history = History(96)
    assert history.empty
    assert history.filled(5) == (0, 0)
    assert history.at(0) is None
    assert list(history.measured()) == []
    assert History.from_bytes(history.to_bytes(), 96).empty


def test_what_is_older_than_the_ring_is_forgotten():
    history = History(24, 2)
    for slot in range(100):
        history.observe(slot, slot, 0)
    assert [slot for slot, _ in history.measured()] == list(range(52, 100))
    history.observe(160, 7, 7)
    assert list(history.measured()) == [(160, (7, 7))]


def test_a_single_late_slot_does_not_wipe_the_ring_and_a_clock_set_back_does():
    history = History(24, 2)
    history.observe(10_000, 1, 1)
    for slot in range(50, 50 + BEHIND_SLOTS - 1):
        history.observe(slot, 2, 2)
    assert dict(history.measured()) == {10_000: (1, 1)}
    history.observe(60, 3, 3)
    history.observe(61, 4, 4)
    assert dict(history.measured()) == {60: (3, 3), 61: (4, 4)}


def test_impossible_energies_are_bounded_and_impossible_slots_ignored():
    history = History(24)
    for slot in (-1, SLOT_MAX + 1):
        history.observe(slot, 1, 1)
    assert history.empty
    history.observe(0, -5, 10**12)
    assert history.at(0) == (0, ENERGY_MAX_WH)


@pytest.mark.parametrize("slots_per_day", [1, 24, 96, 288, 1_440, 21_600])
def test_the_worst_history_still_fits_in_the_store_and_in_memory(slots_per_day):
    history = History(slots_per_day)
    rng = random.Random(1)
    for slot in range(10**6, 10**6 + SLOTS_MAX):
        history.observe(slot, rng.randint(0, ENERGY_MAX_WH), rng.randint(0, ENERGY_MAX_WH))
    saved = history.to_bytes()
    assert len(saved) <= SAVED_BYTES_MAX
    assert sum(map(sys.getsizeof, history.buffers())) < 70_000
    assert History.from_bytes(saved, slots_per_day).buffers() == history.buffers()


def test_fewer_days_take_the_last_ones_of_a_save():
    long, short = History(24, 10), History(24, 2)
    for slot in range(24 * 10):
        long.observe(slot, slot, 0)
        short.observe(slot, slot, 0)
    assert History.from_bytes(long.to_bytes(), 24, 2).buffers() == short.buffers()


def save(slots_per_day=24, capacity=24, newest=23, rows=None, tail=b""):
    rows = [5] * 48 if rows is None else rows
    body = struct.pack("<IIq", slots_per_day, capacity, newest) + struct.pack("<48i", *rows)
    return MAGIC + zlib.compress(body + tail)


def test_the_save_that_the_broken_ones_are_made_from_is_whole():
    assert History.from_bytes(save(), 24, 1).at(23) == (5, 5)


@pytest.mark.parametrize(
    ("saved", "why"),
    [
        (b"", "not a saved history"),
        (b'{"history":[]}', "not a saved history"),
        (save().replace(b"HGHY\x01", b"HGHY\x02"), "another version"),
        (MAGIC, "cut off"),
        (MAGIC + b"nonsense", "damaged"),
        (save()[:-1], "cut off"),
        (save() + b"x", "cut off"),
        (MAGIC + zlib.compress(b"short"), "header"),
        (MAGIC + zlib.compress(bytes(10**8)), "longer than any"),
        (save(slots_per_day=96), "96 slots a day"),
        (save(capacity=0), "of 0 slots"),
        (save(capacity=2**32 - 1), "slots has"),
        (save(tail=b"1234"), "slots has"),
        (save(rows=[5] * 47 + [ENERGY_MAX_WH + 1]), "energies"),
        (save(rows=[-2] + [5] * 47), "energies"),
        (save(rows=[-1] + [5] * 47), "energies"),
        (save(newest=-1), "cannot end"),
        (save(newest=-9), "cannot end"),
        (save(newest=2**60), "cannot end"),
        (save(rows=[-1] * 48), "cannot end"),
        (save(newest=22), "before slot 0"),
    ],
)
def test_garbage_from_the_disk_is_refused_by_name(saved, why):
    with pytest.raises(HistoryError, match=why):
        History.from_bytes(saved, 24, 1)


@given(st.binary(max_size=200), st.integers(0, 120), st.integers(0, 255))
def test_no_bytes_from_the_disk_do_anything_else_than_load_or_be_refused(noise, at, value):
    flipped = bytearray(save())
    flipped[at % len(flipped)] = value
    for saved in (noise, MAGIC + noise, MAGIC + zlib.compress(noise), bytes(flipped)):
        try:
            history = History.from_bytes(saved, 24, 1)
        except HistoryError:
            continue
        slots = [slot for slot, _ in history.measured()]
        assert all(a < b for a, b in pairwise(slots))


@pytest.mark.parametrize(("slots_per_day", "days"), [(0, 1), (24, 0), (-1, 28)])
def test_a_history_of_nothing_is_refused(slots_per_day, days):
    with pytest.raises(ValueError, match="at least one"):
        History(slots_per_day, days)
