"""
Proof of Energy on chain: the consumption-production function that a meter attests for a validator.

The chain keeps one attestation for each validator, the newest. The registers behind it never come
here; the DSO recomputes it from them (TMI eq. 9, `wire.cpf`).
"""

from __future__ import annotations

from collections.abc import Iterable

from ledger.contracts import keys
from ledger.contracts.context import Context
from ledger.contracts.operations import AttestCpf
from ledger.genesis import CPF_STALE_SLOTS
from ledger.state import State
from wire import certificates
from wire.certificates import ValidatorGrant
from wire.cpf import Q16
from wire.errors import Refusal
from wire.keys import KEY_BYTES, from_text
from wire.metering import CpfAttestation, check_record, load_record


def attest(ctx: Context, op: AttestCpf) -> Refusal | None:
    """Store an attestation that is newer than the last one of its validator."""
    genesis = ctx.genesis
    grant = certificates.load(ValidatorGrant, op.grant, genesis.issuer, genesis.market)
    said = load_record(CpfAttestation, op.attestation)
    if said.validator != grant.validator:
        return Refusal.NOT_ALLOWED
    if genesis.fresh_addresses and ctx.sender != said.validator:
        return Refusal.NOT_ALLOWED  # from a trading address it would tell whose that is
    if ctx.state.get(keys.validator(said.validator)) is None:
        return Refusal.NOT_FOUND
    if said.start_slot < 0 or said.end_slot - said.start_slot + 1 != genesis.poe.window_slots:
        return Refusal.MALFORMED
    if not 0 <= said.cpf_q16 <= Q16:
        return Refusal.QUANTITY_OUT_OF_RANGE
    if not grant.start_slot <= said.end_slot <= grant.end_slot:
        return Refusal.BAD_CERTIFICATE
    if said.end_slot >= ctx.slot:
        return Refusal.FUTURE_DATED
    before = ctx.state.get(keys.cpf(said.validator))
    if before is not None and said.end_slot <= before["endSlot"]:
        return Refusal.DUPLICATE
    check_record(said, from_text(grant.meter_key, KEY_BYTES), genesis.chain_id)
    ctx.state.put(
        keys.cpf(said.validator),
        {
            "startSlot": said.start_slot,
            "endSlot": said.end_slot,
            "cpfQ16": said.cpf_q16,
            "eligible": said.eligible,
        },
    )
    ctx.emit(
        "cpf",
        validator=said.validator,
        endSlot=said.end_slot,
        cpfQ16=said.cpf_q16,
        eligible=said.eligible,
    )
    return None


def schedule_inputs(
    state: State, validators: Iterable[str], slot: int
) -> dict[str, tuple[int, bool]]:
    """
    (cpf_q16, eligible) of each validator, in the given order, as seen in `slot`.

    Without an attestation, or with a stale one, a validator counts as not eligible.
    """
    inputs = {}
    for name in validators:
        said = state.get(keys.cpf(name))
        if said is None:
            inputs[name] = (0, False)
        else:
            fresh = said["endSlot"] + CPF_STALE_SLOTS >= slot
            inputs[name] = (said["cpfQ16"], said["eligible"] and fresh)
    return inputs
