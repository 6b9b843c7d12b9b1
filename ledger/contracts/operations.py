"""
The operations that a transaction may carry: their fields, read strictly.

An operation is a JSON object with `op` and exactly the fields below in camelCase. Integers may be
any the wire carries; what range makes sense is the contract's to judge, because it has a name for
each refusal.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, get_args

import msgspec

from wire.errors import MalformedError, UnknownOperationError


class _Operation(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    rename="camel",
    tag_field="op",
    forbid_unknown_fields=True,
):
    """Base of the operations."""


class RegisterAddress(_Operation, frozen=True, kw_only=True, tag="register-address"):
    """The sender shows its address grant."""

    grant: dict[str, Any]


class Revoke(_Operation, frozen=True, kw_only=True, tag="revoke"):
    """The supervisor or the DSO shows a revocation of the CSM-DB: a ban, or the end of one."""

    revocation: dict[str, Any]


class BidOffer(_Operation, frozen=True, kw_only=True, tag="bid-offer"):
    """TMI's bid-offer: an order for the double auction of a slot."""

    side: Literal["buy", "sell"]
    slot: int
    energy_wh: int
    price_uc_per_kwh: int
    """The most a buyer pays; the least a seller takes."""


class DeliveryReceipt(_Operation, frozen=True, kw_only=True, tag="receipt"):
    """What a meter says flowed in a slot."""

    receipt: dict[str, Any]


class AttestCpf(_Operation, frozen=True, kw_only=True, tag="cpf"):
    """What a meter says of a validator's home over a window."""

    grant: dict[str, Any]
    attestation: dict[str, Any]


class DeployAuction(_Operation, frozen=True, kw_only=True, tag="deploy-auction"):
    """The aggregator opens an auction; its deadline is the slot's gate closure."""

    auction: str
    template: Literal["reverse", "forward", "double"]
    slot: int
    energy_wh: int
    """What is bought or sold; 0 in a double auction."""
    price_uc_per_kwh: int
    """The cap of a reverse, the floor of a forward auction; 0 in a double auction."""
    pricing: Literal["as-bid", "uniform"]
    sealed: bool = False
    """Bids are committed and revealed."""


class AuctionBid(_Operation, frozen=True, kw_only=True, tag="auction-bid"):
    """An order in an auction that was deployed."""

    auction: str
    energy_wh: int
    price_uc_per_kwh: int
    side: Literal["", "buy", "sell"] = ""
    """Of an order in a double auction; in the others it may be left out."""


class CommitBid(_Operation, frozen=True, kw_only=True, tag="commit-bid"):
    """A bid that nobody can read yet."""

    slot: int
    auction: str = ""
    """The name of one that was deployed; empty: the slot's double auction."""
    commitment: str
    """`market.sealed.commitment`, 32 bytes base64url."""


class RevealBid(_Operation, frozen=True, kw_only=True, tag="reveal-bid"):
    """The sender opens one of its commitments."""

    slot: int
    auction: str = ""
    side: Literal["buy", "sell"]
    energy_wh: int
    price_uc_per_kwh: int
    salt: str
    """32 bytes, base64url."""


class AddEnergyAsset(_Operation, frozen=True, kw_only=True, tag="add-energy-asset"):
    """The DSO gives an address energy to trade in every slot of an interval."""

    address: str
    kind: Literal["production", "consumption"]
    energy_wh: int
    """Per slot."""
    start_slot: int
    end_slot: int
    """Inclusive."""


class AddFinancialBalance(_Operation, frozen=True, kw_only=True, tag="add-financial-balance"):
    """The DSO confirms a deposit."""

    address: str
    amount_uc: int


class PostOffer(_Operation, frozen=True, kw_only=True, tag="post-offer"):
    """PETra's postOffer: production for sale, or consumption that asks for energy."""

    kind: Literal["production", "consumption"]
    energy_wh: int
    """Per slot."""
    start_slot: int
    end_slot: int
    """Inclusive."""
    price_uc_per_kwh: int
    until_ms: int | None = None
    """Market time from which it cannot be accepted; none: until its last slot closes."""


class RescindOffer(_Operation, frozen=True, kw_only=True, tag="rescind-offer"):
    """The owner takes an offer back."""

    offer: str


class GivenAsset(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True
):
    """Energy given for an offer; its kind is the opposite of the offer's."""

    energy_wh: int
    start_slot: int
    end_slot: int


class AcceptOffer(_Operation, frozen=True, kw_only=True, tag="accept-offer"):
    """PETra's acceptOffer: exchange assets (and a buyer's money) for those of an offer."""

    offer: str
    assets: list[GivenAsset]


class DepositEnergyAsset(_Operation, frozen=True, kw_only=True, tag="deposit-energy-asset"):
    """The sender gives energy back to the DSO."""

    kind: Literal["production", "consumption"]
    energy_wh: int
    """Per slot."""
    start_slot: int
    end_slot: int


class DepositFinancialBalance(
    _Operation, frozen=True, kw_only=True, tag="deposit-financial-balance"
):
    """The sender gives money back to the DSO; it leaves the chain."""

    amount_uc: int


class MakeOffer(_Operation, frozen=True, kw_only=True, tag="make-offer"):
    """Nazari's CTS: energy of a slot for sale, with a guarantee."""

    offer: str
    """`<sender>:<name>`, name of a-z, 0-9 and -."""
    slot: int
    energy_wh: int
    """An upper bound where there is a commitment."""
    price_uc_per_kwh: int
    """As above."""
    guarantee_uc: int
    accept_before_ms: int
    """Market time; at the latest the slot's gate closure."""
    deliver_before_ms: int
    """Market time of the meter's word; after the slot's end, at the latest its settlement."""
    commitment: str = ""
    """`market.escrow.commitment` of the true amounts, or empty."""


class AcceptEscrow(_Operation, frozen=True, kw_only=True, tag="accept-escrow"):
    """Nazari's CTP: the buyer repeats the offer and blocks its price."""

    offer: str
    energy_wh: int
    price_uc_per_kwh: int
    commitment: str = ""


class RevealEscrow(_Operation, frozen=True, kw_only=True, tag="reveal-escrow"):
    """Either side opens the commitment of an accepted trade."""

    offer: str
    energy_wh: int
    price_uc_per_kwh: int
    salt: str


class GiveUp(_Operation, frozen=True, kw_only=True, tag="give-up"):
    """Nazari's CCS: the seller takes back an offer that nobody has accepted."""

    offer: str


class SubmitSchedule(_Operation, frozen=True, kw_only=True, tag="submit-schedule"):
    """Baggio: what a transactive node expects to take (buy) or give (sell) in a slot."""

    side: Literal["buy", "sell"]
    slot: int
    energy_wh: int
    price_uc_per_kwh: int
    """The most a consumer pays; the least a producer takes."""


class AssignZone(_Operation, frozen=True, kw_only=True, tag="assign-zone"):
    """The supervisor says in which zone of the grid model an address is."""

    address: str
    zone: str
    """Empty: at the feeder's root."""


class CloseInterconnection(_Operation, frozen=True, kw_only=True, tag="close-interconnection"):
    """The supervisor takes a zone's interconnection out of service for some slots."""

    zone: str
    start_slot: int
    end_slot: int
    """Inclusive."""


class OpenAdjustment(_Operation, frozen=True, kw_only=True, tag="open-adjustment"):
    """The supervisor reopens a closed session, for orders that take back scheduled energy."""

    slot: int
    deadline_ms: int
    """Market time; at the latest the slot's start."""


class ProposeChange(_Operation, frozen=True, kw_only=True, tag="propose-change"):
    """DSO, aggregator or validator: a parameter shall have another value from a slot on."""

    path: str
    value: int | bool | str
    activation_slot: int


class ApproveChange(_Operation, frozen=True, kw_only=True, tag="approve-change"):
    """DSO, aggregator, validator or participant agrees."""

    change: str
    """`ledger.contracts.governance.change_id`: the hash of path, value and activation slot."""


class JoinValidator(_Operation, frozen=True, kw_only=True, tag="join-validator"):
    """A validator shows its licence; when it is the sender's first word, it introduces it."""

    licence: dict[str, Any]
    tip: str = ""
    """Commitment to its seeds, 32 bytes base64url, or empty."""


class LeaveValidator(_Operation, frozen=True, kw_only=True, tag="leave-validator"):
    """The sender wants to validate no longer."""


class Accuse(_Operation, frozen=True, kw_only=True, tag="evidence"):
    """Two votes of one validator that exclude each other."""

    first: str
    """A `ledger.types.Vote` in msgpack, base64url."""
    second: str


class CommitSeed(_Operation, frozen=True, kw_only=True, tag="commit-seed"):
    """The sender begins another onion."""

    tip: str
    """32 bytes, base64url."""


class RevealSeed(_Operation, frozen=True, kw_only=True, tag="reveal-seed"):
    """The sender opens the next layer of its onion."""

    preimage: str
    """32 bytes, base64url."""


class FundRewards(_Operation, frozen=True, kw_only=True, tag="fund-rewards"):
    """The supervisor moves money of its own into the reward pool."""

    amount_uc: int


class SetParticipation(_Operation, frozen=True, kw_only=True, tag="set-participation"):
    """The sender trades (TE), takes rewards (RE), or both."""

    mode: Literal["TE", "RE", "RE+TE"]


class SetPayee(_Operation, frozen=True, kw_only=True, tag="set-payee"):
    """The validator that sends it has its rewards paid to an address."""

    address: str


Operation: TypeAlias = (
    RegisterAddress
    | Revoke
    | BidOffer
    | DeliveryReceipt
    | AttestCpf
    | DeployAuction
    | AuctionBid
    | CommitBid
    | RevealBid
    | AddEnergyAsset
    | AddFinancialBalance
    | PostOffer
    | RescindOffer
    | AcceptOffer
    | DepositEnergyAsset
    | DepositFinancialBalance
    | MakeOffer
    | AcceptEscrow
    | RevealEscrow
    | GiveUp
    | SubmitSchedule
    | AssignZone
    | CloseInterconnection
    | OpenAdjustment
    | ProposeChange
    | ApproveChange
    | JoinValidator
    | LeaveValidator
    | Accuse
    | CommitSeed
    | RevealSeed
    | FundRewards
    | SetParticipation
    | SetPayee
)
BY_NAME: dict[str, type[Operation]] = {
    kind.__struct_config__.tag: kind for kind in get_args(Operation)
}
"""The structures by their `op`. (Reading into one of them takes a twentieth of the time that
reading into the union takes.)"""


def read_operation(value: dict[str, Any]) -> Operation:
    """
    Read one operation of a transaction.

    Raises:
        UnknownOperationError: no contract has it.
        MalformedError: its fields are not the operation's.
    """
    name = value.get("op")
    kind = BY_NAME.get(name) if type(name) is str else None
    if kind is None:
        raise UnknownOperationError("no contract has this operation")
    try:
        return msgspec.convert(value, kind, strict=True)
    except (msgspec.ValidationError, RecursionError) as error:
        raise MalformedError(str(error)) from None
