"""
Checkpoints: a point of a chain that somebody trusts, and the validators who decide from there on.

The first checkpoint is the genesis. Later ones are made from final headers, best from a seal. As a
file (`checkpoint.json`) a checkpoint is a JSON object that people can compare by eye; like a
genesis it is trusted for where it came from, not for what is in it. Source: ledger.md §6.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from ledger import types
from ledger.genesis import Genesis
from ledger.schedule import validator_set
from wire.canonical import encode
from wire.errors import ConfigError, MalformedError, UnknownSenderError
from wire.keys import KEY_BYTES, from_text, to_text

CHECKPOINT_FILE = "checkpoint.json"
"""Where a light client keeps its place, and a joining node finds what to trust."""
MAX_FILE_BYTES = 64 * 1024


class UnknownValidatorsError(UnknownSenderError):
    """Of a validator set the client does not know: it needs the seal header that introduces it."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a client trusts."""

    chain_id: str
    validators: types.ValidatorSet
    """Who decides."""
    epoch: int
    """The running epoch; after a seal header, the one it begins."""
    height: int
    block_hash: bytes
    time_ms: int
    """Market time of the header [ms]."""
    exec_height: int
    firm_height: int
    """The highest header seen that is certainly a block: with transactions, or a seal. (What a
    quorum finalises after a seal is dropped when the seal is final; such a header is empty.)"""


def genesis_checkpoint(genesis: Genesis) -> Checkpoint:
    """Trust in a genesis, and nothing newer."""
    return Checkpoint(
        chain_id=genesis.chain_id,
        validators=validator_set(genesis),
        epoch=0,
        height=0,
        block_hash=types.genesis_hash(genesis.chain_id),
        time_ms=genesis.start_ms,
        exec_height=0,
        firm_height=0,
    )


def checkpoint_at(
    header: types.Header, validators: types.ValidatorSet, firm_height: int = 0
) -> Checkpoint:
    """
    Trust in a header, because it was verified or came from somebody who is trusted.

    Args:
        header: best a seal; anything later may be built on it
        validators: of its epoch; if it is a seal, of the epoch it begins
        firm_height: known before; the header's own counts when it is certainly a block

    Raises:
        UnknownValidatorsError: the header names another set.
    """
    named = header.next_validators_hash if header.seal else header.validators_hash
    if named != validators.hash:
        raise UnknownValidatorsError("the header names another set", epoch=header.epoch)
    return Checkpoint(
        chain_id=header.chain_id,
        validators=validators,
        epoch=header.epoch + 1 if header.seal else header.epoch,
        height=header.height,
        block_hash=types.header_hash(header),
        time_ms=header.time_ms,
        exec_height=header.exec_height,
        firm_height=header.height if header.seal or header.n_tx else firm_height,
    )


# --- As a file ------------------------------------------------------------------------------------


class _Section(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True
):
    """A JSON object of the file."""


class _Validator(_Section, frozen=True, kw_only=True):
    id: Annotated[str, msgspec.Meta(max_length=64)]
    key: str
    """Public key, base64url."""


class _File(_Section, frozen=True, kw_only=True):
    chain_id: Annotated[str, msgspec.Meta(max_length=64)]
    validators: tuple[_Validator, ...]
    epoch: types.Count
    height: types.Count
    block_hash: str
    """Hex."""
    time_ms: types.Count
    exec_height: types.Count
    firm_height: types.Count


def checkpoint_json(checkpoint: Checkpoint) -> dict[str, Any]:
    """The JSON object of the file."""
    named = zip(checkpoint.validators.ids, checkpoint.validators.keys, strict=True)
    content = _File(
        chain_id=checkpoint.chain_id,
        validators=tuple(_Validator(id=name, key=to_text(key)) for name, key in named),
        epoch=checkpoint.epoch,
        height=checkpoint.height,
        block_hash=checkpoint.block_hash.hex(),
        time_ms=checkpoint.time_ms,
        exec_height=checkpoint.exec_height,
        firm_height=checkpoint.firm_height,
    )
    value = msgspec.to_builtins(content)
    assert type(value) is dict
    return value


def checkpoint_from_json(raw: bytes) -> Checkpoint:
    """
    Read a checkpoint's JSON text.

    Raises:
        MalformedError: not a checkpoint.
    """
    try:
        content = msgspec.json.decode(raw, type=_File)
        block_hash = bytes.fromhex(content.block_hash)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise MalformedError(f"not a checkpoint: {error}") from None
    if len(block_hash) != types.HASH_BYTES:
        raise MalformedError("blockHash: expected 64 hex digits")
    return Checkpoint(
        chain_id=content.chain_id,
        validators=types.ValidatorSet(
            tuple(one.id for one in content.validators),
            tuple(from_text(one.key, KEY_BYTES) for one in content.validators),
        ),
        epoch=content.epoch,
        height=content.height,
        block_hash=block_hash,
        time_ms=content.time_ms,
        exec_height=content.exec_height,
        firm_height=content.firm_height,
    )


def read_checkpoint(path: Path) -> Checkpoint:
    """
    Read a checkpoint file.

    Raises:
        ConfigError: names the file and the remedy.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error}); give a checkpoint file") from None
    try:
        if len(raw) > MAX_FILE_BYTES:
            raise MalformedError("too long", size=len(raw))
        return checkpoint_from_json(raw)
    except MalformedError as error:
        raise ConfigError(f"{path}: {error}; make one with `ledger checkpoint`") from None


def write_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write the file: after a crash it is the old one or the new one."""
    new = path.with_name(path.name + ".new")
    with new.open("wb") as file:
        file.write(encode(checkpoint_json(checkpoint)) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
