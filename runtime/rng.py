"""Randomness: the operating system's for keys, a seeded generator for tests and simulations."""

from __future__ import annotations

import random
import secrets


class SystemRng:
    """The operating system's randomness."""

    def bytes(self, size: int) -> bytes:
        """`size` unpredictable bytes."""
        return secrets.token_bytes(size)

    def uniform(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return random.uniform(low, high)


class SeededRng:
    """Repeatable randomness; never for real keys."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def bytes(self, size: int) -> bytes:
        """`size` repeatable bytes."""
        return self._random.randbytes(size)

    def uniform(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return self._random.uniform(low, high)
