"""
The words between EMS and gateway: JSON lines on a Unix socket.

    {"id": n, "method": str, "params": {…}}
    {"id": n, "result": …}  or  {"id": n, "error": {"code", "message"}}

One struct per method says what it takes; a field too many or too few is BAD_PARAMS.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

REQUEST_BYTES_MAX = 16 * 1024
RESPONSE_BYTES_MAX = 256 * 1024
SLOT_MAX = 2**44
PART_CHARS_MAX = 12_000
"""Of a part of a file, base64."""

Slot = Annotated[int, msgspec.Meta(ge=1, le=SLOT_MAX)]
Identity = Annotated[str, msgspec.Meta(pattern=r"^hg1[a-z2-7]{32}$")]
Label = Annotated[str, msgspec.Meta(pattern=r"^(validator:)?hg1[a-z2-7]{32}$")]


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A question."""

    id: int
    method: str
    params: dict[str, Any] = {}


class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a method takes; this one takes nothing."""


class PseudonymParams(Params, frozen=True):
    """`pseudonym`: an address, or `validator:<id>`."""

    label: Label


class ReadingParams(Params, frozen=True):
    """`sign_reading`: the slot that has ended."""

    slot: Slot


class ReceiptParams(Params, frozen=True):
    """`sign_receipt`: who asks for confirmation of which slot."""

    address: Identity
    slot: Slot


class CpfParams(Params, frozen=True):
    """`attest_cpf`: the window, both ends inclusive."""

    validator: Identity
    start_slot: Slot
    end_slot: Slot


class BatteryParams(Params, frozen=True):
    """`set_battery`: power [W, + discharge] for so many real seconds."""

    power_w: Annotated[int, msgspec.Meta(ge=-10_000_000, le=10_000_000)]
    lease_s: Annotated[int, msgspec.Meta(ge=1, le=3_600)]


class PartParams(Params, frozen=True):
    """`firmware_part`: a part of a file that is handed over, base64."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
    offset: Annotated[int, msgspec.Meta(ge=0, le=2**30)]
    data: Annotated[str, msgspec.Meta(max_length=PART_CHARS_MAX)]


class InstallParams(Params, frozen=True):
    """`firmware_install`: the file's name in the repository."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=100)]


class AttestParams(Params, frozen=True):
    """`attest_firmware`: the CSM-DB's challenge."""

    nonce: Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,16}\.[0-9a-f]{64}$")]


FIRMWARE_METHODS: dict[str, type[Params]] = {
    "firmware_part": PartParams,
    "firmware_install": InstallParams,
    "firmware_status": Params,
    "attest_firmware": AttestParams,
}
METHODS: dict[str, type[Params]] = {
    "public_keys": Params,
    "pseudonym": PseudonymParams,
    "nameplate": Params,
    "state": Params,
    "sign_reading": ReadingParams,
    "sign_receipt": ReceiptParams,
    "attest_cpf": CpfParams,
    "set_battery": BatteryParams,
    "release_battery": Params,
    **FIRMWARE_METHODS,
}


class RpcError(Exception):
    """An answer that is an error."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        self.message = message
        super().__init__(f"{code}: {message}")


def read_request(line: bytes) -> tuple[int, str, Params]:
    """
    A request's id, method and checked parameters.

    Raises:
        RpcError: MALFORMED, UNKNOWN_METHOD, BAD_PARAMS; `request_id(line)` finds the id then.
    """
    try:
        request = msgspec.json.decode(line, type=Request)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RpcError("MALFORMED", str(error)) from None
    kind = METHODS.get(request.method)
    if kind is None:
        raise RpcError("UNKNOWN_METHOD", f"there is no method {request.method[:64]!r}")
    try:
        return request.id, request.method, msgspec.convert(request.params, kind, strict=True)
    except (msgspec.ValidationError, RecursionError) as error:
        raise RpcError("BAD_PARAMS", str(error)) from None


class _OnlyId(msgspec.Struct):
    id: int = 0


def request_id(line: bytes) -> int:
    """The id of a request that may be wrong otherwise; 0 where it has none."""
    try:
        return msgspec.json.decode(line, type=_OnlyId).id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 0


def result_line(number: int, result: Any) -> bytes:
    """An answer."""
    return msgspec.json.encode({"id": number, "result": result}) + b"\n"


def error_line(number: int, error: RpcError) -> bytes:
    """An answer that is an error."""
    facts = {"code": error.code, "message": error.message}
    return msgspec.json.encode({"id": number, "error": facts}) + b"\n"
