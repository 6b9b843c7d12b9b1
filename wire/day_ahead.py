"""
The aggregator's day-ahead schedule, as the DSO is asked to approve it, and the DSO's answer.

It travels like a withdrawal (`wire.withdrawal`): sealed to the DSO on `dso/req/<aggregator>`,
signed by the aggregator's key; the answer is sealed to the `boxKey` sent along.

    approve-schedule  {key, boxKey, slots: [[slot, netWh], …]}
                          -> {slots: [[slot, netWh], …],
                              changes: [{slot, askedWh, approvedWh, reason}, …]}

Net energy is import − export of the whole feeder [Wh]; what single homes are expected to do stays
with the aggregator. A request names at most 96 slots, each once, in order, and the answer the same
ones; a longer schedule is asked for in parts. The same slots may be asked again: what was approved
stands. A refusal is `{refusal, detail}`.

References:
    TMI section IV (the aggregator's schedule, approved by the DSO with possible changes).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, TypeAlias, TypeVar

import msgspec

from wire.errors import MalformedError
from wire.units import MAX_SAFE_INT

APPROVE_SCHEDULE = "approve-schedule"
MAX_SLOTS = 96
"""Slots in one request: a day of quarter hours."""
MAX_NET_WH = 10**12
"""Most energy of a feeder in a slot, either way [Wh]."""

Slot = Annotated[int, msgspec.Meta(ge=0, le=MAX_SAFE_INT)]
Net = Annotated[int, msgspec.Meta(ge=-MAX_NET_WH, le=MAX_NET_WH)]
Row: TypeAlias = tuple[int, int]
"""(slot, net energy [Wh])."""
S = TypeVar("S", bound="_Slots")


class Change(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """A slot that was approved otherwise than asked."""

    slot: Slot
    asked_wh: Net
    approved_wh: Net
    reason: Annotated[str, msgspec.Meta(pattern=r"^[A-Z_]{1,32}$")]
    """See `aggregator.grid_limits.Reason`."""


class _Slots(msgspec.Struct, frozen=True, rename="camel"):
    slots: Annotated[list[tuple[Slot, Net]], msgspec.Meta(min_length=1, max_length=MAX_SLOTS)]


class ScheduleRequest(_Slots, frozen=True, rename="camel"):
    """What is asked for: (slot, net energy [Wh]), slots rising."""


class ScheduleAnswer(_Slots, frozen=True, rename="camel"):
    """What is approved: (slot, net energy [Wh]), slots rising."""

    changes: Annotated[list[Change], msgspec.Meta(max_length=MAX_SLOTS)]
    """Where that is not what was asked."""


def read_schedule(parameters: dict[str, Any]) -> ScheduleRequest:
    """
    The parameters of `approve-schedule`; form only.

    Raises:
        MalformedError: they are not.
    """
    return _read(parameters, ScheduleRequest)


def read_approval(parameters: dict[str, Any], asked: ScheduleRequest) -> ScheduleAnswer:
    """
    An answer to a request.

    Raises:
        MalformedError: not its form, other slots than were asked, or changes that do not tell how
            what was asked became what is approved.
    """
    answer = _read(parameters, ScheduleAnswer)
    if [slot for slot, _ in answer.slots] != [slot for slot, _ in asked.slots]:
        raise MalformedError("other slots than were asked")
    told = [(one.slot, one.asked_wh, one.approved_wh) for one in answer.changes]
    changed = [
        (slot, asked_wh, approved_wh)
        for (slot, asked_wh), (_, approved_wh) in zip(asked.slots, answer.slots, strict=True)
        if asked_wh != approved_wh
    ]
    if told != changed:
        raise MalformedError("changes that do not explain the answer")
    return answer


def _read(parameters: dict[str, Any], kind: type[S]) -> S:
    try:
        found = msgspec.convert(parameters, kind, strict=True)
    except msgspec.ValidationError as error:
        raise MalformedError(str(error)) from None
    if any(first >= second for (first, _), (second, _) in pairwise(found.slots)):
        raise MalformedError("slots are not in order", field="slots")
    return found
