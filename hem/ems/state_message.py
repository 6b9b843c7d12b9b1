"""
What a home tells the operators of itself, every few seconds, under its participant's identity.

Its powers, added up over a slot, are the net energy of its receipt, which is on the chain under the
address of the hour. Whoever reads both knows whose address it is, whatever else is done to hide it.
So where addresses are fresh a home tells its health and no more, unless its household says so.

Source: ADR 0010; docs/concepts/identities.md.
"""

from __future__ import annotations

from typing import Any

_INNER = frozenset({"battery", "time_ms"})
"""The home's own business in any market."""
_HEALTH = frozenset({"devices"})


def state_to_tell(state: dict[str, Any], shares_powers: bool) -> dict[str, Any]:
    """
    The part of a gateway's state that leaves the home.

    Args:
        state: as the gateway tells it: powers [W], registers [Wh], state of charge [‰], devices
        shares_powers: addresses are fixed, or the household wants it

    Returns:
        Without `shares_powers` nothing that was measured.
    """
    if shares_powers:
        return {name: value for name, value in state.items() if name not in _INNER}
    return {name: value for name, value in state.items() if name in _HEALTH}
