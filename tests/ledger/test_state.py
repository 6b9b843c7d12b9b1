"""The state: a journal that undoes exactly, a root of exactly what is there."""

import hashlib

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ledger import smt
from ledger.state import State, verify_proof
from wire.canonical import encode

KEYS = st.integers(0, 12).map(lambda n: f"row/{n:02d}")
VALUES = st.one_of(st.integers(-5, 5), st.dictionaries(st.sampled_from("ab"), st.integers(0, 3)))


def fresh_root(rows: dict) -> bytes:
    changes = [(smt.path_of(k), hashlib.sha256(encode(v)).digest()) for k, v in rows.items()]
    return smt.node_hash(smt.update(None, changes))


class StateAgainstADict(RuleBasedStateMachine):
    """Whatever is written, committed and rolled back, a plain dict tells what must be there."""

    def __init__(self):
        super().__init__()
        self.state = State()
        self.models = [{}]

    @rule(key=KEYS, value=VALUES)
    def put(self, key, value):
        self.state.put(key, value)
        self.models[-1][key] = value

    @rule(key=KEYS)
    def delete(self, key):
        self.state.delete(key)
        self.models[-1].pop(key, None)

    @rule()
    def begin(self):
        self.state.begin()
        self.models.append(dict(self.models[-1]))

    @precondition(lambda self: len(self.models) > 1)
    @rule()
    def commit(self):
        self.state.commit()
        self.models[-2:] = [self.models[-1]]

    @precondition(lambda self: len(self.models) > 1)
    @rule()
    def rollback(self):
        self.state.rollback()
        self.models.pop()

    @rule()
    def root(self):
        assert self.state.root() == fresh_root(self.models[-1])

    @precondition(lambda self: len(self.models) > 1)
    @rule()
    def changes(self):
        before, after = self.models[-2], self.models[-1]
        rows = self.state.changes()
        assert all(rows[k] == (before.get(k), after.get(k)) for k in rows)
        encoded = self.state.encoded_changes()
        assert encoded == {k: encode(after[k]) if k in after else None for k in rows}
        assert {k for k in {**before, **after} if before.get(k) != after.get(k)} <= set(rows)

    @invariant()
    def rows(self):
        assert list(self.state.scan("row/")) == sorted(self.models[-1].items())
        first = min(self.models[-1], default=None)
        assert self.state.first("row/") == first


TestStateAgainstADict = StateAgainstADict.TestCase


def test_scan_gives_the_prefix_only_and_may_be_written_to():
    state = State([("a/1", 1), ("a/2", 2), ("b/1", 3)])
    seen = []
    for key, _ in state.scan("a/"):
        seen.append(key)
        state.delete("a/2")
    assert seen == ["a/1"]
    assert state.get("b/1") == 3


@given(st.dictionaries(KEYS, VALUES), KEYS)
def test_proofs_hold_against_the_root(rows, key):
    state = State(rows.items())
    proof = state.prove(key)
    assert verify_proof(state.root(), key, rows.get(key), proof)
    assert not verify_proof(state.root(), key, {"other": 1}, proof)


def test_a_rolled_back_root_is_the_old_one():
    state = State([("a", 1)])
    before = state.root()
    state.begin()
    state.put("a", 2)
    assert state.root() != before
    state.rollback()
    assert state.root() == before
