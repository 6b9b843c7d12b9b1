"""
Private requests to the DSO (PETra's withdrawAssets), and their answers.

They travel like those to the CSM-DB (`wire.enrolment`): an envelope signed by the participant's EMS
key, sealed to the DSO's box key, on `dso/req/<participant>`; the answer is signed by the
supervisor's key, sealed to the `boxKey` sent along, on `dso/rsp/<participant>`. `key` is the EMS
public key, of which the participant's identity is the hash.

    withdraw-assets  {key, boxKey, withdrawal, address, amountUc,
                      assets: [{kind, energyWh, startSlot, endSlot}, …]}
                          -> {withdrawal, status}    status: "sent" or "done"
    show-account     {key, boxKey}
                          -> {balanceUc, owedUc,
                              withdrawn: [{kind, energyWh, startSlot, endSlot}, …]}

`owedUc` is what its addresses owe on the ledger; `balanceUc` below zero is a bill.
A refusal (PETra's failedWithdrawal) is `{refusal, detail}`. `withdrawal` is the participant's name
for its request; the same one asked again has no second effect and tells what became of it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from wire.certificates import AddressGrant, Certificate
from wire.errors import MalformedError
from wire.keys import is_id
from wire.units import MAX_SAFE_INT

WITHDRAW_ASSETS = "withdraw-assets"
SHOW_ACCOUNT = "show-account"
SENT = "sent"
DONE = "done"
MAX_ASSETS = 16
"""Assets in one request."""

Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_SAFE_INT)]


class WantedAsset(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """Energy of one kind in every slot of an interval."""

    kind: Literal["production", "consumption"]
    energy_wh: Count
    """Per slot."""
    start_slot: Count
    end_slot: Count
    """Inclusive."""


class Withdrawal(msgspec.Struct, frozen=True, rename="camel"):
    """What a participant asks to have moved to an address."""

    withdrawal: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9-]{1,64}$")]
    address: str
    amount_uc: Count
    assets: Annotated[list[WantedAsset], msgspec.Meta(max_length=MAX_ASSETS)]


def portion_wh(limit_wh: int) -> int:
    """
    The largest standard amount of energy within a limit: 1, 2 or 5 times a power of ten [Wh].

    Withdrawn amounts are public, so a home asks for one that many homes ask for.
    """
    if limit_wh < 1:
        return 0
    decade = int("1" + "0" * (len(str(limit_wh)) - 1))
    return max(step * decade for step in (1, 2, 5) if step * decade <= limit_wh)


def portioned(grant: AddressGrant, certificate: Certificate, slot_s: int) -> AddressGrant:
    """
    A grant with what its home may ask the DSO for.

    A grant names a class of connections (`csmdb.limit_classes`), the DSO checks the connection
    itself, which only the home's certificate tells.

    Args:
        slot_s: length of a slot [s]

    Returns:
        The grant, limits above the connection's own lowered to a portion within it.
    """

    def within(class_wh: int, power_w: int) -> int:
        own_wh = power_w * slot_s // 3600
        return class_wh if class_wh <= own_wh else portion_wh(own_wh)

    return msgspec.structs.replace(
        grant,
        max_buy_wh=within(grant.max_buy_wh, certificate.max_import_w),
        max_sell_wh=within(grant.max_sell_wh, certificate.max_export_w),
    )


def read_withdrawal(parameters: dict[str, Any]) -> Withdrawal:
    """
    The parameters of `withdraw-assets`; form only.

    Raises:
        MalformedError: they are not.
    """
    try:
        asked = msgspec.convert(parameters, Withdrawal, strict=True)
    except msgspec.ValidationError as error:
        raise MalformedError(str(error)) from None
    if not is_id(asked.address):
        raise MalformedError("expected an identity", field="address")
    if any(asset.start_slot > asset.end_slot for asset in asked.assets):
        raise MalformedError("an asset ends before it starts")
    return asked
