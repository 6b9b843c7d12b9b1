"""
Clues that a segment is a home's, by kind. Each is a distance (homes, segments), 0 if all agrees.

    amounts   metered energy: continuity over the boundary, yesterday, the hour's habit
    contracts what was bought and sold, as settlement publishes it beside what was metered
    timing    delays after the slot's start, clocks in date and reqId, places in blocks
    orders    what is ordered against what the home's own forecast would say, prices
    money     withdrawn and deposited amounts
    grant     limits in the grant
    cpf       see `sim.linkage_cpf`
    address   the same address

What is not known of a home or a segment (NaN) decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sim.linkage_past import RECENT, SLOTS_PER_DAY, Past
from sim.linkage_tracks import COLUMNS, Batch, Floats

PERSISTENCE = 0.6
"""Weight of the last slots against the hour's habit in a home's forecast."""
Clue = Callable[[Past, Batch], Floats]


def amounts(past: Past, batch: Batch) -> list[Floats]:
    """From metered energy alone."""
    slots = (batch.first_slot + np.arange(batch.nets_wh.shape[1])) % SLOTS_PER_DAY
    nets = batch.nets_wh
    last, habit = past.recent_wh[:, -1], past.habit_wh[:, slots]
    mean, spread = _mean(nets), _spread(nets)
    recent = past.recent_wh[:, -4:]
    return [
        _scaled(last[:, None] - nets[:, 0][None, :], 30),
        _scaled(_mean(recent)[:, None] - mean[None, :], 30),
        _scaled(_spread(past.recent_wh[:, -RECENT // 2 :])[:, None] - spread[None, :], 30),
        _scaled(_far(past.yesterday_wh[:, slots], nets), 30),
        _scaled(_far(habit, nets), 30),
        _scaled(_mean(habit)[:, None] - mean[None, :], 30),
        _scaled(_foreseen(past, batch)[:, None] - nets[:, 0][None, :], 30),
        _exactly(np.minimum(last, 0)[:, None] - np.minimum(nets[:, 0], 0)[None, :]),
        (np.sign(_mean(recent))[:, None] != np.sign(mean)[None, :]).astype(float),
    ]


def contracts(past: Past, batch: Batch) -> list[Floats]:
    """From what was bought and sold, as it is settled."""
    first = batch.contracts_wh[:, 0]
    return [
        _scaled(_foreseen(past, batch)[:, None] - first[None, :], 30),
        *_column(past, batch, "contract_wh", 30),
        *_column(past, batch, "residual_wh", 30),
        *_column(past, batch, "contract_share", 0.1),
    ]


def timing(past: Past, batch: Batch) -> list[Floats]:
    """From when messages come, what clocks say, and where they stand."""
    scales = {
        "receipt_delay_ms": 20, "bid_delay_ms": 20, "receipt_date_ms": 200, "bid_date_ms": 200,
        "receipt_request_ms": 10, "bid_request_ms": 10, "receipt_rank": 0.05, "bid_rank": 0.05,
        "registered_ms": 1_000,
    }  # fmt: skip
    return [one for name, scale in scales.items() for one in _column(past, batch, name, scale)]


def orders(past: Past, batch: Batch) -> list[Floats]:
    """From what is ordered: by which forecast, at which prices."""
    first = batch.orders_wh[:, 0]
    return [
        _scaled(_foreseen(past, batch)[:, None] - first[None, :], 20),
        _scaled(past.recent_wh[:, -1][:, None] - first[None, :], 20),
        *_column(past, batch, "ask_uc", 2_000),
        *_column(past, batch, "bid_uc", 2_000),
        *_column(past, batch, "order_wh", 30),
        *_column(past, batch, "order_share", 0.1),
    ]


def money(past: Past, batch: Batch) -> list[Floats]:
    """From amounts withdrawn to an address, and deposited from it."""
    return [
        *_column(past, batch, "withdrawn_uc", 10_000),
        *_column(past, batch, "deposited_uc", 10_000),
    ]


def grant(past: Past, batch: Batch) -> list[Floats]:
    """From the limits of the grant."""
    return [*_column(past, batch, "buy_limit_wh", 10), *_column(past, batch, "sell_limit_wh", 10)]


def address(past: Past, batch: Batch) -> list[Floats]:
    """From the address itself."""
    return [_exactly(past.last[:, -1][:, None] - batch.columns[:, -1][None, :])]


def _foreseen(past: Past, batch: Batch) -> Floats:
    """What a home's own forecaster would say of a period's first slot, from its past [Wh]."""
    place = batch.first_slot % SLOTS_PER_DAY
    # a slot is bid for before the one in between has ended
    known = past.recent_wh[:, -5:-1]
    newest = known[:, -1]
    older = _mean(known[:, :-1])
    now = np.where(np.isnan(older), newest, (newest + older) / 2)
    habit = past.habit_wh[:, place]
    both = PERSISTENCE * now + (1 - PERSISTENCE) * habit
    return np.where(np.isnan(both), now, both)


def _column(past: Past, batch: Batch, name: str, scale: float) -> list[Floats]:
    """A column against the last segment's, against the mean of all, and whether it is the same."""
    place = COLUMNS.index(name)
    column = batch.columns[:, place][None, :]
    last, mean = past.last[:, place][:, None], past.mean[:, place][:, None]
    return [_scaled(last - column, scale), _scaled(mean - column, scale), _exactly(last - column)]


def _scaled(distance: Floats, scale: float) -> Floats:
    return _filled(np.log1p(np.abs(distance) / scale))


def _exactly(distance: Floats) -> Floats:
    """0 where it is the same, else 1."""
    return _filled(np.where(np.isnan(distance), np.nan, np.abs(distance) > 1e-6))


def _filled(distance: Floats) -> Floats:
    """What nobody knows is as far as the rest in the mean: it speaks neither for nor against."""
    known = ~np.isnan(distance)
    return np.where(known, distance, distance[known].mean() if known.any() else 0.0)


def _far(known: Floats, nets: Floats) -> Floats:
    """Mean distance of each home's slots to each segment's [Wh]; NaN where nothing is known."""
    return _mean(np.abs(known[:, None, :] - nets[None, :, :]))


def _mean(values: Floats) -> Floats:
    """Over the last axis, of what is known."""
    known = ~np.isnan(values)
    count = known.sum(axis=-1)
    total = np.where(known, values, 0).sum(axis=-1)
    found: Floats = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return found


def _spread(values: Floats) -> Floats:
    return np.sqrt(_mean((values - _mean(values)[..., None]) ** 2))
