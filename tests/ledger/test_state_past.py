"""A state can be looked at as it was some blocks ago, and proved against the root of then."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.state import PAST_BLOCKS, State, verify_proof

KEYS = [f"row/{n}" for n in range(6)]
WRITES = st.dictionaries(st.sampled_from(KEYS), st.none() | st.integers(0, 5))


def write(state, writes):
    for key, value in writes.items():
        if value is None:
            state.delete(key)
        else:
            state.put(key, value)


@given(blocks=st.lists(st.tuples(WRITES, WRITES), max_size=8))
def test_every_row_of_every_past_block_is_as_it_was_and_proved(blocks):
    """Each block keeps one transaction's writes and takes another one's back."""
    state = State([(key, 9) for key in KEYS[:3]])
    then = [(state.root(), {key: state.get(key) for key in KEYS})]
    for kept, refused in blocks:
        state.begin()
        write(state, kept)
        state.begin()
        write(state, refused)
        state.rollback()
        state.root()
        state.commit()
        then.append((state.root(), {key: state.get(key) for key in KEYS}))
    state.begin()
    write(state, {"row/0": 77, "row/5": None})
    state.rollback()
    for root, rows in then:
        past = state.past(root)
        assert {key: past.get(key) for key in KEYS} == rows
        for key, value in rows.items():
            assert verify_proof(root, key, value, past.prove(key))


def test_a_state_too_long_ago_or_that_never_was_is_not_there():
    state = State([("row", 0)])
    roots = [state.root()]
    for number in range(1, PAST_BLOCKS + 2):
        state.begin()
        state.put("row", number)
        state.commit()
        roots.append(state.root())
    assert state.past(roots[0]) is None
    assert state.past(bytes(32)) is None
    assert state.past(roots[1]).get("row") == 1


@pytest.mark.parametrize("commits", [1, 3])
def test_a_block_that_changes_nothing_is_a_past_one_too(commits):
    state = State([("row", 0)])
    root = state.root()
    for _ in range(commits):
        state.begin()
        state.commit()
    assert state.past(root).get("row") == 0
