"""The notice board has what stands, and no more than it has room for."""

from __future__ import annotations

from hem.ems import board as board_module
from hem.ems.board import Board

ME, OTHER = "hg1me", "hg1other"


def posted(name, until_ms=1_000, **changes):
    event = {
        "event": "offer-posted", "offer": name, "address": OTHER, "kind": "production",
        "energyWh": 10, "startSlot": 5, "endSlot": 7, "priceUcPerKwh": 9, "untilMs": until_ms,
    }  # fmt: skip
    return {**event, **changes}


def escrow(name, **changes):
    event = {
        "event": "escrow-offered", "offer": name, "seller": OTHER, "slot": 5, "energyWh": 10,
        "priceUcPerKwh": 9, "acceptBeforeMs": 1_000, "commitment": "",
    }  # fmt: skip
    return {**event, **changes}


def names(board, market="order-book", now_ms=0):
    return [offer.name for offer in board.offers(market, now_ms, ME.__eq__)]


def test_offers_stand_until_they_are_taken_or_lapse():
    board = Board()
    for event in (posted("a"), posted("b", 2_000), posted("c"), escrow("e")):
        board.take_event(event)
    assert names(board) == ["a", "b", "c"] and names(board, "escrow") == ["e"]
    board.take_event({"event": "offer-accepted", "offer": "a"})
    board.take_event({"event": "escrow-ended", "offer": "e"})
    assert names(board) == ["b", "c"] and names(board, "escrow") == []
    assert names(board, now_ms=1_000) == ["b"]
    board.forget_before(1_000)
    assert names(board) == ["b"]


def test_our_own_wanted_energy_and_hidden_amounts_are_not_for_us():
    board = Board()
    for event in (
        posted("mine", address=ME), posted("asks", kind="consumption"),
        escrow("hidden", commitment="ab"), escrow("own", seller=ME),
    ):  # fmt: skip
        board.take_event(event)
    assert names(board) == [] and names(board, "escrow") == []


def test_a_flood_of_offers_takes_no_more_room(monkeypatch):
    monkeypatch.setattr(board_module, "MAX_OFFERS", 3)
    board = Board()
    for n in range(9):
        board.take_event(posted(f"o{n}"))
    assert names(board) == ["o0", "o1", "o2"]
