"""
The attestations that a home leaves for its validator, made into the operation `cpf`.

A file is from outside (`runtime.cpf_folder`): what is not of the form, of another validator or not
signed by issuer and meter is refused by its name, counted and taken away. Of several the newest
that holds is said; those before it say nothing any more. A window that has not ended waits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import structlog

from ledger.genesis import Genesis
from runtime.cpf_folder import drop_waiting, read_waiting, waiting_slots
from runtime.metrics import count_refusal
from wire.canonical import decode
from wire.certificates import ValidatorGrant, dump, load
from wire.errors import CertificateError, MalformedError, WireError
from wire.keys import KEY_BYTES, from_text
from wire.metering import CpfAttestation, check_record, load_record, record_json

COMPONENT = "ledger"

log = structlog.get_logger(component=COMPONENT)


def read_attestation(raw: bytes, end_slot: int, validator: str, genesis: Genesis) -> dict[str, Any]:
    """
    The operation that a file asks for.

    Args:
        raw: the file
        end_slot: by its name
        validator: ours

    Raises:
        MalformedError: not of the form, or of another window than its name says.
        CertificateError: another validator's. UnsignedError, BadSignatureError.
    """
    value = decode(raw)
    if not isinstance(value, dict) or set(value) != {"grant", "attestation"}:
        raise MalformedError("expected grant and attestation")
    grant = load(ValidatorGrant, value["grant"], genesis.issuer, genesis.market)
    said = load_record(CpfAttestation, value["attestation"])
    if said.end_slot != end_slot:
        raise MalformedError("of another window than its name", end_slot=said.end_slot)
    if not said.validator == grant.validator == validator:
        raise CertificateError("of another validator", validator=said.validator[:64])
    check_record(said, from_text(grant.meter_key, KEY_BYTES), genesis.chain_id)
    return {"op": "cpf", "grant": dump(grant), "attestation": record_json(said)}


class CpfInbox:
    """
    The attestations in a node's folder.

    Args:
        folder: the node's
        validator: its identity
        genesis: of its chain
    """

    def __init__(self, folder: Path, validator: str, genesis: Genesis) -> None:
        self._folder, self._validator, self._genesis = folder, validator, genesis
        self._said = False
        self._done_slot = -1
        """What was judged is not said again, even where its file cannot be taken away."""

    def operation(self, slot: int) -> dict[str, Any] | None:
        """
        The `cpf` to be sent now, if any.

        Args:
            slot: the current one; windows that end in it or later wait
        """
        try:
            found = self._newest(slot)
        except OSError as error:
            if not self._said:
                log.warning("attestations cannot be read", reason=error.strerror)
            self._said = True
            return None
        self._said = False
        return found

    def landed(self, end_slot: int) -> None:
        """An attestation was executed, whatever came of it: it and those before it are done."""
        self._done_slot = max(end_slot, self._done_slot)
        try:
            done = [one for one in waiting_slots(self._folder) if one <= end_slot]
            drop_waiting(self._folder, done)
        except OSError as error:
            log.warning("attestations cannot be taken away", reason=error.strerror)

    def _newest(self, slot: int) -> dict[str, Any] | None:
        ended = [one for one in waiting_slots(self._folder) if self._done_slot < one < slot]
        for end_slot in ended:
            try:
                raw = read_waiting(self._folder, end_slot)
                found = read_attestation(raw, end_slot, self._validator, self._genesis)
            except WireError as error:
                count_refusal(COMPONENT, error.refusal)
                log.warning("attestation refused", end_slot=end_slot, reason=str(error)[:200])
                drop_waiting(self._folder, [end_slot])
                continue
            drop_waiting(self._folder, [one for one in ended if one < end_slot])
            return found
        return None
