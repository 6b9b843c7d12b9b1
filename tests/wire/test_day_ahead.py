"""A schedule on its way to the DSO, and the approval on its way back."""

import pytest

from wire.canonical import encode
from wire.day_ahead import (
    MAX_NET_WH,
    MAX_SLOTS,
    ScheduleRequest,
    read_approval,
    read_schedule,
)
from wire.errors import MalformedError

ASKED = ScheduleRequest([(10, 500), (11, -700), (13, 0)])
CHANGE = {"slot": 11, "askedWh": -700, "approvedWh": -600, "reason": "EXPORT_RATING"}
ANSWER = {"slots": [[10, 500], [11, -600], [13, 0]], "changes": [CHANGE]}


def test_a_request_is_read_with_what_travels_along():
    parameters = {"key": "k", "boxKey": "b", "slots": [[10, 500], [11, -700], [13, 0]]}
    assert read_schedule(parameters) == ASKED


@pytest.mark.parametrize(
    "slots",
    [
        None, [], "10", [[10]], [[10, 1, 2]], [[10, 1.5]], [[10, True]], [["10", 1]], [[-1, 0]],
        [[2**53, 0]], [[10, MAX_NET_WH + 1]], [[10, -MAX_NET_WH - 1]], [[11, 0], [10, 0]],
        [[10, 0], [10, 0]], [[slot, 0] for slot in range(MAX_SLOTS + 1)],
    ],
)  # fmt: skip
def test_a_request_of_another_form_is_malformed(slots):
    with pytest.raises(MalformedError):
        read_schedule({} if slots is None else {"slots": slots})


def test_the_longest_messages_are_small():
    slots = [[2**53 - MAX_SLOTS + n, -MAX_NET_WH] for n in range(MAX_SLOTS)]
    assert len(read_schedule({"slots": slots}).slots) == MAX_SLOTS
    changes = [
        {"slot": slot, "askedWh": wh, "approvedWh": 0, "reason": "A" * 32} for slot, wh in slots
    ]
    assert len(encode({"slots": slots, "changes": changes})) < 20_000


def test_an_answer_tells_what_was_approved_and_every_change():
    answer = read_approval(ANSWER, ASKED)
    assert answer.slots == [(10, 500), (11, -600), (13, 0)]
    [change] = answer.changes
    assert (change.slot, change.asked_wh, change.approved_wh) == (11, -700, -600)
    assert change.reason == "EXPORT_RATING"


@pytest.mark.parametrize(
    "broken",
    [
        {"slots": [[10, 500], [11, -600]]}, {"slots": [[10, 500], [11, -600], [14, 0]]},
        {"slots": [[10, 400], [11, -600], [13, 0]]}, {"slots": [[10, 500], [11, -700], [13, 0]]},
        {"changes": []}, {"changes": [CHANGE, CHANGE]}, {"changes": [{**CHANGE, "slot": 10}]},
        {"changes": [{**CHANGE, "askedWh": 1}]}, {"changes": [{**CHANGE, "approvedWh": 1}]},
        {"changes": [{**CHANGE, "reason": "because"}]}, {"changes": [{**CHANGE, "more": 1}]},
        {"changes": None},
    ],
)  # fmt: skip
def test_an_answer_that_does_not_explain_itself_is_malformed(broken):
    with pytest.raises(MalformedError):
        read_approval({**ANSWER, **broken}, ASKED)
