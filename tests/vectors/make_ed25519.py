"""
Writes ed25519_edge_cases.json: `python tests/vectors/make_ed25519.py`.

Signatures about which Ed25519 implementations differ (Chalkias, Garillot, Nikolaenko: "Taming the
many EdDSAs", 2020), made here with curve arithmetic of our own. Expected is the verdict of this
rule, which is ours: A and S in canonical form, A and R not of small order, and [S]B = R + [h]A
without the cofactor, compared as bytes. Another verdict of the library we use would split a chain.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from wire.keys import Domain, preimage

PATH = Path(__file__).with_name("ed25519_edge_cases.json")
CHAIN = "hg-test-0123456789abcdef"
MESSAGE = b"message"

# --- RFC 8032 section 5.1: the curve, in affine coordinates ---------------------------------------

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
ROOT = pow(2, (P - 1) // 4, P)
Point = tuple[int, int]
IDENTITY: Point = (0, 1)


def add(a: Point, b: Point) -> Point:
    """The complete addition law of twisted Edwards curves with a = -1."""
    (x1, y1), (x2, y2) = a, b
    product = D * x1 * x2 * y1 * y2 % P
    x = (x1 * y2 + x2 * y1) * pow(1 + product, P - 2, P)
    y = (y1 * y2 + x1 * x2) * pow(1 - product, P - 2, P)
    return x % P, y % P


def times(number: int, point: Point) -> Point:
    """A multiple of a point."""
    found = IDENTITY
    while number:
        if number & 1:
            found = add(found, point)
        point, number = add(point, point), number >> 1
    return found


def find(y: int, sign: int) -> Point | None:
    """The point with this y and sign of x; None when there is none."""
    squared = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(squared, (P + 3) // 8, P)
    if (x * x - squared) % P:
        x = x * ROOT % P
    if (x * x - squared) % P:
        return None
    return (P - x) % P if x & 1 != sign else x, y % P


def encode(point: Point, *, y_plus: int = 0, flip: bool = False) -> bytes:
    """32 bytes; `y_plus` and `flip` (of the sign) make what is not canonical."""
    x, y = point
    return (y + y_plus | ((x & 1) ^ flip) << 255).to_bytes(32, "little")


def digest(*parts: bytes) -> int:
    """SHA-512 as a scalar."""
    return int.from_bytes(hashlib.sha512(b"".join(parts)).digest(), "little") % L


_base = find(4 * pow(5, P - 2, P) % P, 0)
assert _base is not None
BASE = _base
SECRET = digest(b"a secret of the vectors")
NONCE = digest(b"a nonce of the vectors")
PUBLIC = times(SECRET, BASE)


def torsion() -> list[Point]:
    """The eight points of small order, multiples of one of order 8."""
    y = 2
    while True:
        point = find(y, 0)
        if point is not None:
            small = times(L, point)
            if times(4, small) != IDENTITY:
                return [times(number, small) for number in range(8)]
        y += 1


TORSION = torsion()
EIGHTH = TORSION[1]


def signature(
    public: bytes, point_r: Point, message: bytes, nonce: int = NONCE, secret: int = SECRET
) -> bytes:
    """R and S for a message under our domain."""
    r = encode(point_r)
    s = (nonce + digest(r, public, said(message)) * secret) % L
    return r + s.to_bytes(32, "little")


def said(message: bytes) -> bytes:
    """The signed bytes."""
    return preimage(Domain.TX, CHAIN, message)


def ground(public: bytes, point_r: Point, remainder: int | None) -> bytes:
    """A message whose h is (or, None: is not) a multiple of eight."""
    for number in range(1000):
        message = b"ground %d" % number
        rest = digest(encode(point_r), public, said(message)) % 8
        if rest == remainder or (remainder is None and rest != 0):
            return message
    raise AssertionError


def vectors() -> list[dict[str, Any]]:
    """All cases: what they are, their bytes, and the verdict."""
    key, r = encode(PUBLIC), times(NONCE, BASE)
    good = signature(key, r, MESSAGE)
    rows: list[tuple[str, bytes, bytes, bytes, bool]] = [
        ("a good signature", key, MESSAGE, good, True),
        ("of the empty message", key, b"", signature(key, r, b""), True),
        ("of a long message", key, b"x" * 2_000, signature(key, r, b"x" * 2_000), True),
        ("of another message", key, b"massage", good, False),
        ("no signature", key, MESSAGE, b"", False),
        ("63 bytes", key, MESSAGE, good[:-1], False),
        ("65 bytes", key, MESSAGE, good + b"\0", False),
        ("no key", b"", MESSAGE, good, False),
        ("a key of 31 bytes", key[:-1], MESSAGE, good, False),
        ("a key of 33 bytes", key + b"\0", MESSAGE, good, False),
        ("a key that is no point", _no_point(), MESSAGE, good, False),
        ("zero key, zero signature", bytes(32), MESSAGE, bytes(64), False),
        ("zero signature", key, MESSAGE, bytes(64), False),
        ("a key of ones", b"\xff" * 32, MESSAGE, good, False),
    ]
    for name, more in (("L", L), ("2 L", 2 * L), ("the top bit", 2**255)):
        s = int.from_bytes(good[32:], "little") + more
        changed = good[:32] + s.to_bytes(33, "little")[:32]
        rows.append((f"S plus {name}", key, MESSAGE, changed, False))
    for order, point in enumerate(TORSION):
        name = f"A of small order, multiple {order} of an eighth"
        public = encode(point)
        # R = [s]B − [h]A, found by trying: with S of the forger's choice, for nobody's key
        rows.append((name, public, *_forged(public, point), False))
    weak = {"A = 1 + p": encode(IDENTITY, y_plus=P),
            "A = 1 with a sign": encode(IDENTITY, flip=True),
            "A = −1 with a sign": encode(TORSION[4], flip=True),
            "A = p": (P).to_bytes(32, "little")}  # fmt: skip
    for name, public in weak.items():
        point = TORSION[2] if name == "A = p" else IDENTITY
        if "−1" in name:
            point = TORSION[4]
        rows.append((f"{name}: not canonical", public, *_forged(public, point), False))
    for order, point in enumerate(TORSION):
        name = f"R of small order, multiple {order} of an eighth"
        rows.append((name, key, MESSAGE, signature(key, point, MESSAGE, nonce=0), False))
    raw = encode(IDENTITY, y_plus=P)
    s = digest(raw, key, said(MESSAGE)) * SECRET % L
    rows.append(("R = 1 + p: not canonical", key, MESSAGE, raw + s.to_bytes(32, "little"), False))
    mixed_r = add(r, EIGHTH)
    rows.append(
        ("R of mixed order: right with the cofactor only", key, MESSAGE,
         signature(key, mixed_r, MESSAGE), False)
    )  # fmt: skip
    mixed = encode(add(PUBLIC, EIGHTH))
    for rest, name in ((0, "h of a multiple of 8: right"), (None, "right with the cofactor only")):
        message = ground(mixed, r, rest)
        rows.append(
            (f"A of mixed order, {name}", mixed, message, signature(mixed, r, message), rest == 0)
        )
    return [
        {"name": name, "public": public.hex(), "message": message.hex(), "signature": sig.hex(),
         "valid": valid}
        for name, public, message, sig, valid in rows
    ]  # fmt: skip


def _forged(public: bytes, point: Point) -> tuple[bytes, bytes]:
    """Message and signature for which the equation holds, though nobody has a key to `point`."""
    for number in range(1000):
        message = b"forged %d" % number
        r = times(NONCE, BASE)
        h = digest(encode(r), public, said(message))
        if times(h % 8, point) == IDENTITY:
            return message, encode(r) + NONCE.to_bytes(32, "little")
    raise AssertionError


def _no_point() -> bytes:
    y = 2
    while find(y, 0) is not None:
        y += 1
    return y.to_bytes(32, "little")


def keys() -> list[dict[str, Any]]:
    """Public keys, and whether one may be registered: those of the large subgroup only."""
    rows = [("of a secret", encode(PUBLIC), True), ("no point", _no_point(), False)]
    rows += [(f"small order {n}", encode(p), False) for n, p in enumerate(TORSION)]
    rows += [
        ("1 + p", encode(IDENTITY, y_plus=P), False),
        ("p", P.to_bytes(32, "little"), False),
        ("1 with a sign", encode(IDENTITY, flip=True), False),
        ("ones", b"\xff" * 32, False),
        ("mixed order", encode(add(PUBLIC, EIGHTH)), False),
        ("31 bytes", encode(PUBLIC)[:-1], False),
        ("none", b"", False),
    ]
    return [{"name": name, "public": public.hex(), "good": good} for name, public, good in rows]


def text() -> str:
    """The file."""
    content = {"chain": CHAIN, "domain": Domain.TX.name, "signatures": vectors(), "keys": keys()}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PATH.write_text(text())
