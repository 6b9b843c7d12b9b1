"""
A lie in a receipt, so that anybody can check it. Pure.

A receipt on the ledger is signed by a key that its address alone uses, and names the digest of the
reading at the end of its slot. So two readings of the meter, its key, the receipt and the address'
grant (both public) prove the lie without the CSM-DB's word: the receipt's own digest says which
meter it is of. They tell two states of that meter's registers and one of its addresses; nothing in
them leads to another address, whose receipts have digests of other readings.

References:
    ADR 0013 (ended addresses); `aggregator.audit`.
"""

from __future__ import annotations

from typing import Any

from aggregator.audit import FALSE_RECEIPT, Finding, judge_receipt
from wire.canonical import decode, encode
from wire.certificates import AddressGrant, check
from wire.errors import CertificateError, MalformedError
from wire.keys import KEY_BYTES, from_text
from wire.metering import Reading, Receipt, check_record, digest, load_record, record_json


def readings_document(before: Reading | None, after: Reading | None) -> str:
    """The two readings that a receipt is compared with, to be kept as evidence."""
    if before is None or after is None:
        return ""
    return encode({"before": record_json(before), "after": record_json(after)}).decode()


def check_case(
    document: str,
    receipt: dict[str, Any],
    grant: AddressGrant,
    meter_key: bytes,
    issuer: bytes,
    market: str,
    chain_id: str,
) -> Finding:
    """
    Is this a lie, by what its meter signed?

    Args:
        document: of `readings_document`
        receipt: as the ledger holds it
        grant: of the receipt's address, as the ledger holds it
        meter_key: of the certified meter
        issuer: the CSM-DB's public key

    Returns:
        FALSE_RECEIPT with its facts.

    Raises:
        WireError: a part is not signed by whom it should be, or the parts do not belong together.
        MalformedError: the receipt is true.
    """
    parts = decode(document.encode())
    if not isinstance(parts, dict) or set(parts) != {"before", "after"}:
        raise MalformedError("expected two readings")
    before, after = (load_record(Reading, parts[name]) for name in ("before", "after"))
    said = load_record(Receipt, receipt)
    check(grant, issuer, market)
    check_record(said, from_text(grant.meter_key, KEY_BYTES), chain_id)
    for reading in (before, after):
        check_record(reading, meter_key, chain_id)
    if said.address != grant.address:
        raise CertificateError("the grant is another address'", address=said.address[:64])
    if said.reading != digest(after) or after.previous != digest(before):
        raise CertificateError("the receipt is not of these readings")
    if (before.slot, after.slot) != (said.slot - 1, said.slot):
        raise CertificateError("the readings are not of the receipt's slot", slot=said.slot)
    findings = judge_receipt(said.slot, said.net_wh, before, after)
    if not findings:
        raise MalformedError("the receipt is true", slot=said.slot)
    [finding] = findings
    assert finding.kind == FALSE_RECEIPT
    return finding
