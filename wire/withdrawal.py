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
