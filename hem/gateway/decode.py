"""
Registers to numbers and back: the eight number types that meters and inverters use, and text.

A register is 16 bits, its bytes in network order (Modbus application protocol, section 4.2). The
protocol says nothing about values wider than that, so makers differ: `big` has the high word first,
`little` the low word. Nothing here scales or judges; that is the template's part.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Literal

NumberType = Literal["u16", "i16", "u32", "i32", "u64", "i64", "f32", "f64"]
WordOrder = Literal["big", "little"]

CODES: dict[str, str] = {
    "u16": ">H", "i16": ">h", "u32": ">I", "i32": ">i", "u64": ">Q", "i64": ">q", "f32": ">f",
    "f64": ">d",
}  # fmt: skip
"""Types and how the struct module calls them."""
WORDS: dict[str, int] = {name: struct.calcsize(code) // 2 for name, code in CODES.items()}
"""Registers of each type."""


def decode(words: Sequence[int], kind: NumberType, order: WordOrder = "big") -> int | float | None:
    """
    The number in `words`; None where a float is none, or words are missing.

    Never raises, whatever a device sends.
    """
    if len(words) != WORDS[kind]:
        return None
    value: int | float = struct.unpack(CODES[kind], _bytes(words, order))[0]
    return value if isinstance(value, int) or math.isfinite(value) else None


def encode(value: float, kind: NumberType, order: WordOrder = "big") -> list[int]:
    """
    The registers that hold `value`; integers are taken as they are, floats as near as can be.

    Raises:
        ValueError: it does not fit.
    """
    try:
        number = float(value) if kind in {"f32", "f64"} else int(value)
        if not math.isfinite(number):
            raise ValueError(f"{value} is not a number")
        data = struct.pack(CODES[kind], number)
    except (struct.error, OverflowError):
        raise ValueError(f"{value} does not fit into {kind}") from None
    words = [int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2)]
    return words if order == "big" else words[::-1]


def bits(words: Sequence[int], order: WordOrder = "big") -> int:
    """The words as one unsigned number: what not-available values are compared with."""
    return int.from_bytes(_bytes(words, order), "big")


def text(words: Sequence[int]) -> str:
    """ASCII up to the first zero; what is not printable is left out."""
    raw = _bytes(words, "big").split(b"\0", 1)[0]
    return "".join(chr(byte) for byte in raw if 0x20 <= byte < 0x7F).strip()


def _bytes(words: Sequence[int], order: WordOrder) -> bytes:
    ordered = words if order == "big" else words[::-1]
    return b"".join((word & 0xFFFF).to_bytes(2, "big") for word in ordered)
