"""
The clue that validators give: their CPF against what a chain of addresses would give.

CPF = exp(−κ I/E) over a window of slots, with I = Σ|net| that receipts show and the turnover E that
they do not. So every guess of a validator's addresses makes a turnover E = κ I / −ln CPF for each
window. Of the right ones it changes by one slot's turnover from window to window; of wrong ones it
jumps. By night a home without a battery has E = I whatever its load: then nothing is learned.
"""

from __future__ import annotations

import math

import numpy as np

from sim.linkage_past import RECENT, Past
from sim.linkage_tracks import Batch, Floats, Reading
from wire.cpf import Q16

CERTAIN = 0.98
"""Above this share of I in E nothing but consumption flowed."""
NEUTRAL = 0.3


def roughness(
    past: Past, batch: Batch, reading: Reading, window: int, kappa: float = 1.0
) -> Floats:
    """
    How much the implied turnover jumps: (homes, segments, validators), about 0…2.

    Args:
        window: slots of a CPF's window, at most `RECENT`
    """
    homes, segments = len(past.recent_wh), len(batch.addresses)
    validators = sorted(reading.cpf_q16)
    found = np.full((homes, segments, len(validators)), NEUTRAL)
    period = batch.nets_wh.shape[1]
    both = np.concatenate(
        [
            np.broadcast_to(np.abs(past.recent_wh)[:, None, :], (homes, segments, RECENT)),
            np.broadcast_to(np.abs(batch.nets_wh)[None, :, :], (homes, segments, period)),
        ],
        axis=2,
    )
    ends = range(batch.first_slot - 1, batch.first_slot + period)
    sums = [both[:, :, RECENT + k - window : RECENT + k].sum(axis=2) for k in range(period + 1)]
    for number, name in enumerate(validators):
        said = [_share(reading.cpf_q16[name].get(end), kappa) for end in ends]
        turnovers = [
            total / share for total, share in zip(sums, said, strict=True) if share is not None
        ]
        if len(turnovers) < 2:
            continue
        series = np.stack(turnovers)
        jumps = np.abs(np.diff(series, axis=0)).mean(axis=0) / np.maximum(series.mean(axis=0), 1)
        found[:, :, number] = np.where(np.isnan(jumps), NEUTRAL, jumps)
    return found


def clues(past: Past, rough: Floats, named: Floats) -> list[Floats]:
    """
    For each home the roughness under the validator that has fitted it best so far, and by name.

    Args:
        rough: of `roughness`
        named: (homes, segments), 0 where the same validator's CPF was sent by both
    """
    if rough.shape[2] == 0:
        return [np.zeros(rough.shape[:2]), np.zeros(rough.shape[:2]), named]
    best = np.argmin(past.roughness, axis=1)
    fitting = np.take_along_axis(rough, best[:, None, None], axis=2)[:, :, 0]
    return [fitting, rough.min(axis=2), named]


def _share(cpf_q16: int | None, kappa: float) -> float | None:
    """I/E of a CPF; None where it tells nothing."""
    if not cpf_q16 or cpf_q16 >= Q16:
        return None
    share = -math.log(cpf_q16 / Q16) / kappa
    return share if 0 < share < CERTAIN else None
