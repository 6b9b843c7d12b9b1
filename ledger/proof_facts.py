"""A proof in words: what it claims, after which block, and who signed for it."""

from __future__ import annotations

from typing import Any, Literal

from ledger import proofs, types
from ledger.api_models import ProofFacts
from wire.canonical import decode


def facts_of(proof: proofs.Proof) -> ProofFacts:
    """
    A proof's claim, unchecked; `ledger.proofs.verify` checks it.

    Raises:
        MalformedError: what is claimed is not canonical JSON.
    """
    header = proof.header
    kind, height, claim = _claim(proof)
    raw = proofs.encode(proof)
    return ProofFacts(
        kind=kind,
        chain_id=header.chain_id,
        height=height,
        proved_by=header.height,
        time_ms=header.time_ms,
        header_hash=types.header_hash(header).hex(),
        claim=claim,
        siblings=[proof.siblings[i : i + 32].hex() for i in range(0, len(proof.siblings), 32)],
        signers=list(types.signers(proof.finality.certificate)),
        size_bytes=len(raw),
        encoded=raw.hex(),
    )


def _claim(
    proof: proofs.Proof,
) -> tuple[Literal["state", "receipt", "inclusion"], int, dict[str, Any]]:
    header = proof.header
    match proof:
        case proofs.StateProof(key=key, value=value):
            row = decode(value) if value else None
            return "state", header.exec_height, {"key": key, "value": row}
        case proofs.ReceiptProof(receipt=receipt):
            return "receipt", header.exec_height, {"receipt": decode(receipt)}
        case proofs.InclusionProof(txid=txid, index=index):
            return "inclusion", header.height, {"txid": txid.hex(), "index": index}
