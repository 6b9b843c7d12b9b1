"""
The consumption-production function (CPF) of Proof of Energy, in integers and exact decimals.

TMI's equation 9 is CPF = 1 / e^|P − C|: the home whose production P and consumption C agree best
leads. On watt-hours it underflows, and a vacant home (0, 0) always wins, so it is normalised over a
window of slots:

    net = import − export,  P = generation,  C = P + net
    I = Σ |net|,  E = Σ max(P, C, 0),  CPF_q16 = ⌊65536 · exp(−κ · I / E)⌋,  0 where E = 0

`decimal` rounds `exp` correctly, so every machine computes the same integer. The meter's gateway,
the DSO's audit and the ledger all call these functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import ROUND_FLOOR, Context, Decimal

Q16 = 65_536
"""CPF = 1 in the fixed-point form of the chain."""
_CONTEXT = Context(prec=28)


def cpf_q16(nets_wh: Sequence[int], generations_wh: Sequence[int], kappa_milli: int) -> int:
    """
    ⌊65536 · CPF⌋ over a window.

    Args:
        nets_wh: import − export of each slot [Wh]
        generations_wh: generation of each slot [Wh], one for each net
        kappa_milli: κ · 1000, how steeply imbalance is punished

    Returns:
        0…65536; 0 when no energy was turned over.

    Raises:
        ValueError: the two sequences differ in length, or κ is negative.
    """
    if kappa_milli < 0:
        raise ValueError(f"kappa_milli={kappa_milli} is negative")
    turnover_wh = turnover(nets_wh, generations_wh)
    if turnover_wh == 0:
        return 0
    imbalance_wh = sum(abs(net_wh) for net_wh in nets_wh)
    exponent = _CONTEXT.divide(Decimal(-kappa_milli * imbalance_wh), Decimal(1000 * turnover_wh))
    scaled = _CONTEXT.multiply(Decimal(Q16), _CONTEXT.exp(exponent))
    return int(scaled.to_integral_value(rounding=ROUND_FLOOR))


def turnover(nets_wh: Sequence[int], generations_wh: Sequence[int]) -> int:
    """E = Σ max(P, C, 0): the energy a home turned over in the window [Wh]."""
    return sum(
        max(produced_wh, consumed_wh, 0)
        for produced_wh, consumed_wh in _flows(nets_wh, generations_wh)
    )


def eligible(
    nets_wh: Sequence[int],
    generations_wh: Sequence[int],
    *,
    min_energy_wh: int,
    min_production_wh: int,
) -> bool:
    """
    True when the home turned over and produced enough to count; a gap is the caller's to refuse.

    Without a minimum, a vacant house, perfectly balanced at zero, would lead almost always.
    """
    return (
        turnover(nets_wh, generations_wh) >= min_energy_wh
        and sum(generations_wh) >= min_production_wh
    )


def _flows(nets_wh: Sequence[int], generations_wh: Sequence[int]) -> Iterator[tuple[int, int]]:
    for net_wh, produced_wh in zip(nets_wh, generations_wh, strict=True):
        yield produced_wh, produced_wh + net_wh
