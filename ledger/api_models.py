"""
What the HTTP API answers, as models: the answers are made from them, and so is `openapi.json`.

Names are camelCase as everywhere in the project's JSON. Money in µ¤, energy in Wh, times in UTC
milliseconds of market time (`time` is the same for people), hashes in hex.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

Hex32 = Field(pattern=r"^[0-9a-f]{64}$")


class Model(BaseModel):
    """A JSON object of the API."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True
    )


class Code(StrEnum):
    """Why a request was refused."""

    BAD_PARAMETER = "BAD_PARAMETER"
    NOT_FOUND = "NOT_FOUND"
    NOT_PROVABLE = "NOT_PROVABLE"
    """No final header covers it (yet)."""
    NO_NODE = "NO_NODE"
    """Only a running node can answer this."""
    METHOD_NOT_ALLOWED = "METHOD_NOT_ALLOWED"
    RATE_LIMITED = "RATE_LIMITED"
    BUSY = "BUSY"
    UNREADABLE = "UNREADABLE"
    """The chain's file cannot be read now."""


class Problem(Model):
    """A refusal (RFC 9457, `application/problem+json`)."""

    title: str
    status: int
    code: Code
    detail: str
    """What is wrong, and what would be right."""


class NodeFacts(Model):
    """The node that answers."""

    id: str
    role: Literal["validator", "full"]
    """What it was started as."""
    votes: bool
    """It has a seat among the running epoch's validators."""
    connected: bool
    """To the broker."""
    mempool: int
    """Transactions waiting."""


class Status(Model):
    """Where the chain stands."""

    chain_id: str
    market: str
    height: int
    """The last executed block; 0 before the first."""
    oldest: int
    """The lowest block here; older ones were dropped, or never fetched."""
    block_hash: str
    epoch: int
    """The running one: that of the next block."""
    time_ms: int
    time: str
    slot: int
    proposer: str
    """Of the last block; empty before the first."""
    state_root: str
    """After the last block; empty before the first."""
    validators: int
    quorum: int
    node: NodeFacts | None
    """None: the page is served from a folder."""


class Health(Model):
    """Whether the node can do its work."""

    state: Literal["ok", "down"]
    reasons: list[str]
    height: int


class Block(Model):
    """A final block in a list."""

    height: int
    hash: str = Hex32
    epoch: int
    view: int
    time_ms: int
    time: str
    proposer: str
    transactions: int
    seal: bool
    """The last of its epoch."""


class BlockPage(Model):
    """Blocks from a height down."""

    tip: int
    blocks: list[Block]
    next: int | None
    """`from` of the next page; None at the oldest block here."""


class Signer(Model):
    """Whose vote is in a certificate."""

    index: int
    id: str | None
    """None when the chain has forgotten that epoch's validators."""


class FinalityFacts(Model):
    """Why a block is final."""

    height: int
    """The block that was finalised itself; its ancestors are final with it."""
    view: int
    signers: list[Signer]


class BlockTransaction(Model):
    """A transaction in a block's list."""

    txid: str = Hex32
    sender: str
    code: str
    """"OK", or why the bundle was refused as a whole."""
    operations: list[str]
    """Names, in order."""
    codes: list[str]
    """One for each operation of an executed bundle."""


class BlockDetail(Block):
    """A final block."""

    parent_hash: str = Hex32
    tx_root: str = Hex32
    exec_height: int
    """After whose execution the two roots in the header were taken."""
    header_state_root: str = Hex32
    header_receipts_root: str = Hex32
    state_root: str = Hex32
    """After executing this block."""
    validators_hash: str
    schedule_root: str
    finality: FinalityFacts | None
    """None: no finalization of it is on this disk."""
    items: list[BlockTransaction]
    """From `offset` on; at most 100 at a time."""
    events: list[dict[str, Any]]
    """The first 200; `ledger export events` gives all."""
    event_count: int


class OperationFacts(Model):
    """One operation of a transaction."""

    op: str
    code: str | None
    """"OK" or a refusal's name; None while it is not executed, or where the bundle was refused."""
    fields: dict[str, Any]
    """As the sender signed them."""


class TransactionDetail(Model):
    """A transaction and what became of it."""

    txid: str = Hex32
    state: Literal["final", "pending"]
    """pending: in a block that is still being voted on."""
    height: int | None
    time_ms: int | None
    index: int | None
    """Position in the block."""
    sender: str
    nonce: int
    expires_slot: int
    dated: str
    """By the sender's clock."""
    code: str | None
    operations: list[OperationFacts]
    size_bytes: int


class Account(Model):
    """What the chain knows of an address."""

    address: str
    known: bool
    balance_uc: int
    locked_uc: int
    nonce: int
    """Of the next transaction."""
    participation: str
    grant: dict[str, Any] | None
    assets: dict[str, Any] | None
    validator: dict[str, Any] | None
    """Its row, when the address is a validator's."""


class Validator(Model):
    """A validator of the running epoch."""

    index: int
    id: str
    key: str
    controller: str
    status: str
    """candidate, active, leaving or banned."""
    since_epoch: int | None
    until_epoch: int | None
    founder: bool
    cpf_q16: int | None
    """Its last attested CPF, 65,536 is 1; None: it has never attested."""
    cpf_window: list[int] | None
    """First and last slot of that window."""
    eligible: bool
    """The attestation says so, and is fresh enough to count now."""
    turns: int
    """In the running schedule."""
    share_permille: int
    """turns ÷ length of the schedule."""
    blocks: int
    """Led in the running epoch so far."""
    last_led: int | None
    """Height of the last of them."""


class ValidatorList(Model):
    """The validators of the running epoch."""

    epoch: int
    schedule_length: int
    validators: list[Validator]


class EpochFacts(Model):
    """The running epoch."""

    epoch: int
    base_height: int
    """The seal it starts from; 0 is the genesis."""
    base_time_ms: int
    base_time: str
    mode: str
    """Of Proof of Energy: smooth or strict."""
    schedule: list[int]
    """Indexes of validators; view v is led by schedule[(v − 1) mod length]."""
    validators: list[str]
    next_validators: list[str]
    seed: str
    """What the chain draws lots from, hex."""


class VoteFacts(Model):
    """A vote that is part of evidence."""

    kind: str
    block_hash: str
    signature: str


class EvidenceItem(Model):
    """Two votes of one validator that exclude each other, as this node saw them."""

    epoch: int
    view: int
    index: int
    validator: str | None
    """None when the chain has forgotten that epoch's validators."""
    first: VoteFacts
    second: VoteFacts
    judged: bool
    """The chain has decided about it."""


class EvidenceList(Model):
    """What this node found out about others."""

    evidence: list[EvidenceItem]
    total: int


class PeerFacts(Model):
    """A validator that was heard."""

    id: str
    last_heard_ms: int
    """Real UTC milliseconds."""
    silent_ms: int
    """Real time since then."""
    votes: int
    """Heard since this node started."""
    kind: str
    """Of the last vote: notarize, nullify or finalize."""
    epoch: int
    view: int
    height: int | None
    """Of the last block it voted for that this node knows."""


class PeerList(Model):
    """Who speaks."""

    node: str
    peers: list[PeerFacts]
    silent: list[str]
    """Validators of the running epoch that were not heard since this node started."""


class ProofFacts(Model):
    """A proof in both forms; nothing of it needs to be believed."""

    kind: Literal["state", "receipt", "inclusion"]
    chain_id: str
    height: int
    """The block after which it is true."""
    proved_by: int
    """Height of the final header in it."""
    time_ms: int
    header_hash: str = Hex32
    claim: dict[str, Any]
    """What it proves: key and value, receipt, or txid and index."""
    siblings: list[str]
    """The Merkle path."""
    signers: list[int]
    """Indexes of the validators whose finalization is in it."""
    size_bytes: int
    encoded: str
    """Hex of the binary form; `ledger check-proof` takes either."""
