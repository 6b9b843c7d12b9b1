"""
Hash onions: seeds that their owner fixed before anybody could know what they would be good for.

From a secret, layer N is made, and each layer above it is the hash of the one below:

    tip = layer 0 = H(layer 1),  layer 1 = H(layer 2),  …,  layer N = H(label ‖ secret)

Whoever committed to the tip on the chain reveals layer 1, then layer 2, one per epoch at most; each
is checked against the one before, and none of them can be chosen (`ledger.contracts.seed`). An
onion of 65,536 layers lasts for 682 days of 15-minute epochs, takes 2 MiB, and is made in some 50
ms. Pure; the owner keeps the secret.
"""

from __future__ import annotations

import hashlib
from functools import cached_property

LAYERS = 65_536
_LABEL = b"hearthgrid-onion-v1\0"


class Onion:
    """
    The layers from one secret.

    Args:
        secret: known to the owner only; e.g. the seed of a derived key
        layers: how many may be revealed
    """

    def __init__(self, secret: bytes, layers: int = LAYERS) -> None:
        if layers < 1:
            raise ValueError(f"layers={layers}: an onion has one at least")
        self._layers = [hashlib.sha256(_LABEL + secret).digest()]
        for _ in range(layers):
            self._layers.append(wrap(self._layers[-1]))
        self._layers.reverse()

    def __repr__(self) -> str:
        return f"Onion({len(self._layers) - 1} layers)"

    @property
    def tip(self) -> bytes:
        """What is committed to; reveals nothing."""
        return self._layers[0]

    def layer(self, number: int) -> bytes:
        """
        The layer to reveal as the `number`-th (from 1); 0 is the tip.

        Raises:
            IndexError: the onion has not so many.
        """
        if number < 0:
            raise IndexError(number)
        return self._layers[number]

    def under(self, outer: bytes) -> bytes | None:
        """What to reveal when the chain holds `outer`; None: not of this onion, or used up."""
        number = self._numbers.get(outer)
        if number is None or number + 1 >= len(self._layers):
            return None
        return self._layers[number + 1]

    @cached_property
    def _numbers(self) -> dict[bytes, int]:
        return {layer: number for number, layer in enumerate(self._layers)}


def wrap(layer: bytes) -> bytes:
    """The layer above."""
    return hashlib.sha256(layer).digest()
