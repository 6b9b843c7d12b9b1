"""What the DSO approves of a feeder's schedule."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.accounts import Accounts
from aggregator.grid_limits import AHEAD_DAYS_MAX, GridPolicy, Works, approve, refusal_of
from wire.day_ahead import ScheduleRequest, read_approval

SLOT_S, PER_DAY = 900, 96
NOON = 48
RATED = GridPolicy(rating_import_w=20_000, rating_export_w=12_000)
"""5000 Wh in and 3000 Wh out in a slot."""
MORNING = Works(first_slot_of_day=32, last_slot_of_day=NOON, import_w=8_000, export_w=0)
"""2000 Wh in, nothing out."""
DIGGING = GridPolicy(20_000, 12_000, [MORNING])


def one(asked_wh, policy=RATED, slot=NOON, before=None):
    """(approved [Wh], reason) of one slot."""
    answer = approve([(slot, asked_wh)], before or {}, policy, SLOT_S)
    [(_, approved_wh)] = answer.slots
    return approved_wh, (answer.changes[0].reason if answer.changes else "")


@pytest.mark.parametrize(
    ("asked_wh", "policy", "expected"),
    [
        (10**9, GridPolicy(), (10**9, "")),
        (-(10**9), GridPolicy(), (-(10**9), "")),
        (5_000, RATED, (5_000, "")),
        (5_001, RATED, (5_000, "IMPORT_RATING")),
        (-3_000, RATED, (-3_000, "")),
        (-3_001, RATED, (-3_000, "EXPORT_RATING")),
        (5_001, GridPolicy(rating_export_w=0), (5_001, "")),
        (-5_001, GridPolicy(rating_import_w=0), (-5_001, "")),
        (2_000, DIGGING, (2_000, "")),
        (2_001, DIGGING, (2_000, "IMPORT_WORKS")),
        (9_999, DIGGING, (2_000, "IMPORT_WORKS")),
        (-1, DIGGING, (0, "EXPORT_WORKS")),
        (
            9_999,
            GridPolicy(20_000, None, [Works(0, 95, import_w=20_000)]),
            (5_000, "IMPORT_RATING"),
        ),
        (9_999, GridPolicy(20_000, None, [Works(0, 95, export_w=0)]), (5_000, "IMPORT_RATING")),
        (9_999, GridPolicy(None, None, [Works(0, 95, import_w=3)]), (0, "IMPORT_WORKS")),
        (0, GridPolicy(0, 0), (0, "")),
    ],
)
def test_a_slot_is_cut_to_the_tightest_limit_and_the_reason_names_it(asked_wh, policy, expected):
    assert one(asked_wh, policy) == expected


@pytest.mark.parametrize(("of_day", "limited"), [(31, False), (32, True), (48, True), (49, False)])
def test_works_limit_their_slots_of_every_day(of_day, limited):
    for day in (0, 20_000):
        approved_wh, _ = one(4_000, DIGGING, day * PER_DAY + of_day)
        assert approved_wh == (2_000 if limited else 4_000)


def test_what_was_approved_before_stands():
    assert one(400, before={NOON: 300}) == (300, "APPROVED_BEFORE")
    assert one(300, before={NOON: 300}) == (300, "")
    assert one(9_999, before={NOON: 9_999}) == (9_999, "")


@pytest.mark.parametrize(
    ("slots", "roles", "refusal"),
    [
        ([100, 101], {"aggregator"}, None),
        ([100, 101], {"aggregator", "dso"}, None),
        ([100, 101], {"dso"}, "NOT_ALLOWED"),
        ([100, 101], {"prosumer"}, "NOT_ALLOWED"),
        ([100, 101], set(), "NOT_ALLOWED"),
        ([99, 100], {"aggregator"}, "SLOT_CLOSED"),
        ([100 + AHEAD_DAYS_MAX * PER_DAY], {"aggregator"}, None),
        ([101 + AHEAD_DAYS_MAX * PER_DAY], {"aggregator"}, "SLOT_TOO_FAR"),
    ],
)
def test_only_an_aggregator_asks_and_only_for_coming_slots(slots, roles, refusal):
    assert refusal_of([(slot, 0) for slot in slots], frozenset(roles), 100, SLOT_S) == refusal


nets = st.integers(-20_000, 20_000)
powers = st.none() | st.integers(0, 60_000)
works = st.builds(
    lambda first, length, in_w, out_w: Works(first, first + length, in_w, out_w),
    st.integers(0, 95), st.integers(0, 40), powers, powers,
)  # fmt: skip


@given(
    st.lists(nets, min_size=1, max_size=96),
    st.builds(GridPolicy, powers, powers, st.lists(works, max_size=3)),
    st.dictionaries(st.integers(0, 95), nets, max_size=3),
)
def test_every_slot_is_within_every_limit_and_changed_no_more_than_needed(asked, policy, before):
    rows = list(enumerate(asked))
    answer = approve(rows, before, policy, SLOT_S)
    told = {"slots": answer.slots, "changes": msgspec.to_builtins(answer.changes)}
    read_approval(told, ScheduleRequest(rows))  # explains itself
    for (slot, asked_wh), (_, approved_wh) in zip(rows, answer.slots, strict=True):
        if slot in before:
            assert approved_wh == before[slot]
            continue
        running = [one for one in policy.works if one.first_slot_of_day <= slot]
        running = [one for one in running if slot <= one.last_slot_of_day]
        limits = [
            power_w * SLOT_S // 3600
            for power_w in (
                [policy.rating_import_w, *(one.import_w for one in running)]
                if asked_wh > 0
                else [policy.rating_export_w, *(one.export_w for one in running)]
            )
            if power_w is not None
        ]
        assert abs(approved_wh) == min([abs(asked_wh), *limits])
        assert approved_wh * asked_wh >= 0


def test_the_dsos_book_keeps_the_first_approval_of_a_slot():
    books = Accounts(":memory:")
    with books.atomic():
        books.approve(
            "hg1a", [(10, 9_999), (11, 5)], approve([(10, 9_999), (11, 5)], {}, RATED, SLOT_S)
        )
        books.approve("hg1a", [(10, 1)], approve([(10, 1)], {}, RATED, SLOT_S))
    assert books.approved("hg1a", 0, 99) == {10: 5_000, 11: 5}
    assert books.approved("hg1a", 11, 11) == {11: 5}
    assert books.approved("hg1b", 0, 99) == {}
    [row] = books.db.query("SELECT * FROM schedules WHERE slot = 10")
    assert (row["asked_wh"], row["reason"]) == (9_999, "IMPORT_RATING")
    books.close()
