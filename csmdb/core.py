"""
The CSM-DB's decisions: enrol, certify, grant addresses, grant validators, list meters.

Pure but for the repository port: time is an argument, signatures are deterministic, and the one
random thing (a claim code) is handed in. A decision is a signed record or a `Refused`.

Certificates and grants are signed for the market's *name*, not for a chain: they are needed to make
the genesis, and outlive it.

Every operation may be repeated: the same enrolment with the same keys gets the same certificate,
the same address with the same meter key the same grant. What has less than half of its time left is
renewed when it is asked for: a certificate also after it has ended (the key proves who asks), an
address' grant only before (after that the home takes a fresh address).

References:
    TMI sections IV and V-B (CSM-DB, certified smart meters); PETra (anonymous addresses, the DSO's
    safety limits); ADR 0001 (self-certifying identities).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from csmdb.limit_classes import BUYERS, DEFAULT_CLASSES_W, SELLERS, limits_of
from csmdb.records import Claim, Participant, Refused, Repository
from csmdb.requests import (
    MAX_AT_WORK,
    MAX_TEXT,
    AddressRequest,
    EnrolmentRequest,
    read_addresses,
    read_count,
    read_enrolment,
    read_identity,
    read_key,
    read_text,
)
from wire.certificates import ROLES, AddressGrant, Certificate, Meter, ValidatorGrant, dump, seal
from wire.enrolment import ENROLL, GRANT_ADDRESSES, GRANT_VALIDATOR, RENEW
from wire.errors import ConfigError, Refusal
from wire.keys import SigningKey, id_of, to_text
from wire.presence import AFTER_SLOTS, at_work
from wire.slots import SlotGrid

DAY_MS = 86_400_000
CERTIFICATE_DAYS = 365
CLAIM_DAYS = 30
GRANT_DAYS = 7
MAX_GRANT_DAYS = 14
SKEW_MS = 300_000
"""A certificate holds from a little before it was signed: clocks differ."""
READERS = frozenset({"dso", "aggregator"})
CODE_BYTES = 10
"""80 random bits: hashing without salt or stretching is enough, and nobody guesses one."""
_CODE_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's base 32: no I, L, O, U
PAGE_ROWS = 400
ROTATED = "rotated"
OPERATOR = "operator"
"""Who acts at the command line, in the audit log."""


def make_code(random: bytes) -> str:
    """A one-time code from ten random bytes: four groups of four letters or digits."""
    number = int.from_bytes(random[:CODE_BYTES], "big")
    letters = "".join(_CODE_ALPHABET[(number >> 5 * i) & 31] for i in range(16))
    return "-".join(letters[i : i + 4] for i in range(0, 16, 4))


def hash_code(code: str) -> str:
    """How a code is kept: SHA-256, after forgiving case, dashes, blanks and I, L, O."""
    plain = code.upper().translate(str.maketrans("ILO", "110", "- "))
    return hashlib.sha256(b"hearthgrid-claim-v1\0" + plain.encode()).hexdigest()


def check_roles(roles: tuple[str, ...]) -> None:
    """
    Raise unless these are roles we know.

    Raises:
        ConfigError: none, unknown or repeated.
    """
    if not roles or len(set(roles)) != len(roles) or not set(roles) <= set(ROLES):
        raise ConfigError(f"roles: expected some of {', '.join(ROLES)}, got {', '.join(roles)}")


@dataclass(frozen=True, slots=True)
class Desk:
    """
    The desk where the CSM-DB decides.

    Args:
        key: the issuing key
        market: its name is the context of every signature
        grid: slots of the market
        rows: the repository
        classes_w: to which grants round connections up (`csmdb.limit_classes`); none: exact
    """

    key: SigningKey
    market: str
    grid: SlotGrid
    rows: Repository
    classes_w: tuple[int, ...] = DEFAULT_CLASSES_W

    # --- enrolment ------------------------------------------------------------------------------

    def enroll(self, sender: str, parameters: dict[str, Any], now_ms: int) -> Certificate | Refused:
        """
        Turn a claim code into a certificate for `sender`, whose signature was checked.

        Returns:
            The certificate; or BAD_CLAIM, CLAIM_USED, EXPIRED, DUPLICATE, BANNED.

        Raises:
            MalformedError: the parameters are not an enrolment.
        """
        request = read_enrolment(sender, parameters)
        with self.rows.atomic():
            decision = self._enroll(sender, request, now_ms)
            self._log(now_ms, sender, ENROLL, decision)
        return decision

    def _enroll(self, sender: str, request: EnrolmentRequest, now_ms: int) -> Certificate | Refused:
        claim = self.rows.claim(hash_code(request.code))
        if claim is None:
            return Refused(Refusal.BAD_CLAIM, "no such claim code")
        if claim.used_by:
            return self._again(sender, request, claim)
        if now_ms >= claim.expires_ms:
            return Refused(Refusal.EXPIRED, "the claim code has expired; ask for a new one")
        if self.rows.participant(sender) is not None:
            return Refused(Refusal.DUPLICATE, "this key is enrolled with another claim code")
        predecessor = self.rows.keys.predecessor_by(claim.code_hash)
        if predecessor and self.rows.keys.successor_of(predecessor):
            return Refused(Refusal.CLAIM_USED, "another code for this home was used")
        if self.rows.meter_owner(request.meter) not in ("", predecessor):
            return Refused(Refusal.DUPLICATE, "this meter is enrolled by another participant")
        participant = Participant(
            id=sender,
            key=request.key,
            box_key=request.box_key,
            roles=claim.roles,
            feeder=claim.feeder,
            max_import_w=claim.max_import_w,
            max_export_w=claim.max_export_w,
            validator=claim.validator,
            name="",
            enrolled_ms=now_ms,
        )
        if predecessor:
            participant = self._succeed(predecessor, participant, now_ms)
        else:
            self.rows.put_participant(participant)
        self.rows.add_meter(sender, request.meter)
        self.rows.use_claim(claim.code_hash, sender, now_ms)
        return self._certify(participant, [request.meter], now_ms - SKEW_MS, now_ms)

    def _succeed(self, old: str, participant: Participant, now_ms: int) -> Participant:
        """Take the place of a predecessor: what it had passes on, its key is revoked."""
        before, keys = self.rows.participant(old), self.rows.keys
        assert before is not None
        successor = replace(participant, name=before.name, banned=before.banned)
        self.rows.put_participant(successor)
        keys.hand_over(old, successor.id)
        keys.take_meter(old)
        known = self.rows.certificate_of(old)
        until_ms = known.not_after_ms if known is not None else now_ms
        keys.add_revocation(now_ms, until_ms, ROTATED, identity=old, successor=successor.id)
        for row in keys.tls_of(old):
            if not keys.is_serial_revoked(row.serial):
                keys.add_revocation(now_ms, row.not_after_ms, ROTATED, serial=row.serial)
        return successor

    def _again(self, sender: str, request: EnrolmentRequest, claim: Claim) -> Certificate | Refused:
        """The code was used: by the same keys, then the answer was lost; or by somebody else."""
        known = self.rows.participant(sender)
        meter = self.rows.meter_of(sender)
        certificate = self.rows.certificate_of(sender)
        if (
            claim.used_by != sender
            or known is None
            or meter is None
            or certificate is None
            or meter.meter_key != request.meter.meter_key
        ):
            return Refused(Refusal.CLAIM_USED, "the claim code was used with other keys")
        if known.banned:
            return Refused(Refusal.BANNED, known.banned)
        if known.box_key != request.box_key:
            self.rows.put_participant(replace(known, box_key=request.box_key))
        return certificate

    def renew(self, sender: str, now_ms: int) -> Certificate | Refused:
        """
        A certificate for a home that is enrolled; the one it has while half of that is left.

        Returns:
            The certificate; or UNKNOWN_SENDER, BANNED, NOT_ALLOWED (not a home).
        """
        with self.rows.atomic():
            decision = self._renew(sender, now_ms)
            self._log(now_ms, sender, RENEW, decision)
        return decision

    def _renew(self, sender: str, now_ms: int) -> Certificate | Refused:
        who = self.rows.participant(sender)
        known = self.rows.certificate_of(sender)
        if who is None or known is None:
            return Refused(Refusal.UNKNOWN_SENDER, "enrol first")
        if who.banned:
            return Refused(Refusal.BANNED, who.banned)
        meter = self.rows.meter_of(sender)
        if meter is None:
            return Refused(Refusal.NOT_ALLOWED, "a service is certified by the operator")
        if known.not_after_ms - now_ms >= CERTIFICATE_DAYS * DAY_MS // 2:
            return known
        return self._certify(who, [meter], now_ms - SKEW_MS, now_ms)

    def certify_service(
        self,
        public: bytes,
        roles: tuple[str, ...],
        name: str,
        now_ms: int,
        actor: str = OPERATOR,
    ) -> Certificate:
        """
        A certificate for a service of the operator: no meter, no limits.

        Valid from the epoch on, since a simulated market may live in the past. Certified again, a
        service that is banned stays so.

        Raises:
            ConfigError: unknown roles, or the key belongs to a home.
        """
        check_roles(roles)
        subject = id_of(public)
        known = self.rows.participant(subject)
        if known is not None and self.rows.meter_of(subject) is not None:
            raise ConfigError(f"{subject} is the key of a home")
        participant = Participant(
            id=subject,
            key=to_text(public),
            box_key="",
            roles=roles,
            feeder="",
            max_import_w=0,
            max_export_w=0,
            validator="",
            name=name[:MAX_TEXT],
            enrolled_ms=now_ms,
        )
        if known is not None:
            participant = replace(participant, banned=known.banned)
        with self.rows.atomic():
            self.rows.put_participant(participant)
            certificate = self._certify(participant, [], 0, now_ms)
            self._log(now_ms, actor, "certify-service", certificate, subject)
        return certificate

    def certify_meter(self, participant: str, now_ms: int) -> Certificate:
        """A certificate for a home whose meter has changed; inside a transaction."""
        who, meter = self.rows.participant(participant), self.rows.meter_of(participant)
        assert who is not None and meter is not None, f"{participant} is no home"
        certificate = self._certify(who, [meter], now_ms - SKEW_MS, now_ms)
        self._log(now_ms, participant, "certify-meter", certificate)
        return certificate

    def _certify(
        self, who: Participant, meters: list[Meter], not_before_ms: int, now_ms: int
    ) -> Certificate:
        certificate = Certificate(
            subject=who.id,
            key=who.key,
            roles=list(who.roles),
            feeder=who.feeder,
            max_import_w=who.max_import_w,
            max_export_w=who.max_export_w,
            not_before_ms=not_before_ms,
            not_after_ms=now_ms + CERTIFICATE_DAYS * DAY_MS,
            serial_no=self.rows.next_serial_no(),
            meter=meters,
        )
        sealed = seal(certificate, self.key, self.market)
        self.rows.add_certificate(sealed)
        return sealed

    # --- grants ---------------------------------------------------------------------------------

    def grant_addresses(
        self, sender: str, parameters: dict[str, Any], now_ms: int
    ) -> list[AddressGrant] | Refused:
        """
        Make addresses lawful traders, all of them or none.

        Returns:
            One grant per address, in order; or UNKNOWN_SENDER, BANNED, NOT_ALLOWED, UNKNOWN_MAKE,
            DUPLICATE, QUANTITY_OUT_OF_RANGE.

        Raises:
            MalformedError: the parameters are not a list of addresses.
        """
        asked = read_addresses(parameters, *self._interval(parameters, now_ms))
        decision: list[AddressGrant] | Refused
        with self.rows.atomic():
            decision = self._check_trader(sender) or self._check_slots(asked, now_ms) or []
            if not isinstance(decision, Refused):
                decision = self._grant_all(sender, asked, now_ms)
            self._log(now_ms, sender, GRANT_ADDRESSES, decision)
        return decision

    def _check_trader(self, sender: str) -> Refused | None:
        who = self.rows.participant(sender)
        if who is None:
            return Refused(Refusal.UNKNOWN_SENDER, "enrol first")
        if who.banned:
            return Refused(Refusal.BANNED, who.banned)
        if not (BUYERS | SELLERS) & set(who.roles):
            return Refused(Refusal.NOT_ALLOWED, "only consumers, producers and prosumers trade")
        return self._check_make(sender)

    def _check_make(self, sender: str) -> Refused | None:
        """A meter whose make was erased, or never told, cannot be found by an advisory."""
        meter = self.rows.meter_of(sender)
        if meter is None or meter.vendor or meter.model:
            return None
        return Refused(
            Refusal.UNKNOWN_MAKE, "the operator has to say the meter's make: `csmdb meter`"
        )

    def _check_slots(self, asked: list[AddressRequest], now_ms: int) -> Refused | None:
        refusals = (self._check_interval(one.start_slot, one.end_slot, now_ms) for one in asked)
        return next((refused for refused in refusals if refused is not None), None)

    def _grant_all(
        self, sender: str, asked: list[AddressRequest], now_ms: int
    ) -> list[AddressGrant] | Refused:
        who = self.rows.participant(sender)
        assert who is not None
        grants: list[AddressGrant] = []
        fresh: list[AddressGrant] = []
        for one in asked:
            grant = self._address(who, one)
            if isinstance(grant, Refused):
                return grant
            if self._to_renew(grant, one.start_slot, one.end_slot, now_ms):
                unsigned = self._grant(who, replace(one, start_slot=grant.start_slot))
                grant = seal(unsigned, self.key, self.market)
                fresh.append(grant)
            elif not grant.signature:
                grant = seal(grant, self.key, self.market)
                fresh.append(grant)
            elif grant.end_slot < self.grid.slot_at(now_ms):
                return Refused(Refusal.DUPLICATE, f"{grant.address} has had its time; use another")
            grants.append(grant)
        if len({g.address for g in grants}) != len(grants):
            return Refused(Refusal.DUPLICATE, "an address is named twice")
        if any(self._at_a_time(sender, grant, fresh) > MAX_AT_WORK for grant in fresh):
            return Refused(
                Refusal.QUANTITY_OUT_OF_RANGE, f"more than {MAX_AT_WORK} addresses at a time"
            )
        for grant in fresh:
            self.rows.add_address_grant(sender, grant)
        return grants

    def _at_a_time(self, sender: str, grant: AddressGrant, fresh: list[AddressGrant]) -> int:
        """How many addresses of somebody would be at work at any time at which this one is."""
        first, last = at_work(grant.start_slot, grant.end_slot)
        held = self.rows.address_slots_of(sender, first - AFTER_SLOTS)
        held |= {one.address: (one.start_slot, one.end_slot) for one in fresh}
        times = (at_work(*slots) for slots in held.values())
        return sum(begin <= last and end >= first for begin, end in times)

    def _address(self, who: Participant, asked: AddressRequest) -> AddressGrant | Refused:
        """The grant made before, or a new one, not yet signed."""
        address = id_of(asked.key)
        known = self.rows.address_grant(address)
        if known is not None:
            holder, grant = known
            if holder != who.id or grant.meter_key != asked.meter_key:
                return Refused(Refusal.DUPLICATE, f"{address} is granted otherwise")
            return grant
        if self.rows.participant(address) is not None:
            return Refused(Refusal.NOT_ALLOWED, f"{address} is a participant, not a pseudonym")
        return self._grant(who, asked)

    def _to_renew(self, grant: AddressGrant, start: int, end: int, now_ms: int) -> bool:
        """Less than half of it is left, it has not ended, and longer is asked for."""
        slot = self.grid.slot_at(now_ms)
        left = grant.end_slot - max(start, slot)
        known = bool(grant.signature) and grant.end_slot >= slot
        return known and grant.end_slot < end and left < (end - max(start, slot)) // 2

    def _grant(self, who: Participant, asked: AddressRequest) -> AddressGrant:
        """A grant of the participant's class of limits, not yet signed."""
        buy_w, sell_w = limits_of(who, self.classes_w)
        return AddressGrant(
            address=id_of(asked.key),
            key=to_text(asked.key),
            meter_key=asked.meter_key,
            can_buy=bool(BUYERS & set(who.roles)),
            can_sell=bool(SELLERS & set(who.roles)),
            max_buy_wh=self._per_slot_wh(buy_w),
            max_sell_wh=self._per_slot_wh(sell_w),
            start_slot=asked.start_slot,
            end_slot=asked.end_slot,
        )

    def grant_validator(
        self, sender: str, parameters: dict[str, Any], now_ms: int
    ) -> ValidatorGrant | Refused:
        """
        Bind the home's pseudonymous meter key to the validator it hosts.

        A grant is renewed (a new one is made) when less than half of it is left.

        Returns:
            The grant; or UNKNOWN_SENDER, BANNED, NOT_ALLOWED (not this home's validator),
            UNKNOWN_MAKE, DUPLICATE (another meter key speaks for it now), QUANTITY_OUT_OF_RANGE.

        Raises:
            MalformedError: the parameters are not of this form.
        """
        validator = read_identity(parameters, "validator")
        meter_key = read_key(parameters, "meterKey")
        start, end = self._interval(parameters, now_ms)
        with self.rows.atomic():
            decision = self._check_interval(start, end, now_ms) or self._grant_validator(
                sender, validator, meter_key, start, end
            )
            self._log(now_ms, sender, GRANT_VALIDATOR, decision)
        return decision

    def _grant_validator(
        self, sender: str, validator: str, meter_key: str, start: int, end: int
    ) -> ValidatorGrant | Refused:
        who = self.rows.participant(sender)
        if who is None:
            return Refused(Refusal.UNKNOWN_SENDER, "enrol first")
        if who.banned:
            return Refused(Refusal.BANNED, who.banned)
        if who.validator != validator:
            return Refused(Refusal.NOT_ALLOWED, "this home does not host this validator")
        if (refused := self._check_make(sender)) is not None:
            return refused
        known = self.rows.validator_grant(validator)
        # what a predecessor held does not bind its successor, which may have another meter key
        if known is not None and known[0] == sender and known[1].end_slot >= start:
            grant = known[1]
            if grant.meter_key != meter_key:
                return Refused(Refusal.DUPLICATE, "another meter key speaks for this validator")
            if grant.start_slot <= start and grant.end_slot - start >= (end - start) // 2:
                return grant
        grant = ValidatorGrant(
            validator=validator, meter_key=meter_key, start_slot=start, end_slot=end
        )
        sealed = seal(grant, self.key, self.market)
        self.rows.add_validator_grant(sender, sealed)
        return sealed

    # --- look-ups -------------------------------------------------------------------------------

    def list_meters(
        self, sender: str, parameters: dict[str, Any], now_ms: int
    ) -> dict[str, Any] | Refused:
        """
        Meters and their addresses, for the DSO's audit: one page of them.

        With `fromSlot` only addresses that are good then or later: where they are fresh there are
        hundreds of each meter, and who asks again knows the others.

        Returns:
            `{"meters": [{participant, meterKey, addresses, validator}], "next": cursor}`; the
            cursor is empty on the last page. Or UNKNOWN_SENDER, BANNED, NOT_ALLOWED.
        """
        refused = self._check_reader(sender)
        if refused is not None:
            return refused
        cursor = read_text(parameters.get("after", ""), "after", MAX_TEXT * 2)
        participant, _, address = cursor.partition("/")
        from_slot = max(
            self.oldest_slot(now_ms), read_count(parameters.get("fromSlot", 0), "fromSlot")
        )
        rows = self.rows.address_rows((participant, address), from_slot, PAGE_ROWS)
        meters: dict[str, dict[str, Any]] = {}
        for row in rows:
            meter = meters.setdefault(
                row.participant,
                {
                    "participant": row.participant,
                    "meterKey": row.meter_key,
                    "validator": row.validator,
                    "addresses": [],
                },
            )
            if row.address:
                meter["addresses"].append(row.address)
        last = f"{rows[-1].participant}/{rows[-1].address}" if len(rows) == PAGE_ROWS else ""
        return {"meters": list(meters.values()), "next": last}

    def show_participant(
        self, sender: str, parameters: dict[str, Any], now_ms: int
    ) -> dict[str, Any] | Refused:
        """
        What the DSO has to know of a participant who wants to trade under an address.

        Returns:
            `{"participant": {id, roles, feeder, maxImportW, maxExportW, banned, predecessors,
            grant}}`; the grant
            is that of the address, empty when it is not the participant's. Or UNKNOWN_SENDER,
            BANNED, NOT_ALLOWED (of the one who asks), NOT_FOUND.

        Raises:
            MalformedError: the parameters name no participant and address.
        """
        asked = read_identity(parameters, "participant")
        address = read_identity(parameters, "address")
        refused = self._check_reader(sender)
        if refused is not None:
            return refused
        who = self.rows.participant(asked)
        if who is None:
            return Refused(Refusal.NOT_FOUND, "nobody has this identity")
        known = self.rows.address_grant(address)
        return {
            "participant": {
                "id": who.id,
                "roles": list(who.roles),
                "feeder": who.feeder,
                "maxImportW": who.max_import_w,
                "maxExportW": who.max_export_w,
                "banned": who.banned,
                "predecessors": self.rows.keys.predecessors(asked),
                "grant": dump(known[1]) if known is not None and known[0] == asked else {},
            }
        }

    def _check_reader(self, sender: str) -> Refused | None:
        who = self.rows.participant(sender)
        if who is None:
            return Refused(Refusal.UNKNOWN_SENDER, "no certificate")
        if who.banned:
            return Refused(Refusal.BANNED, who.banned)
        if not READERS & set(who.roles):
            return Refused(Refusal.NOT_ALLOWED, "for the DSO and the aggregator only")
        return None

    # --- helpers --------------------------------------------------------------------------------

    def _interval(self, parameters: dict[str, Any], now_ms: int) -> tuple[int, int]:
        current = self.grid.slot_at(now_ms)
        start = read_count(parameters.get("startSlot", current), "startSlot")
        end = read_count(parameters.get("endSlot", start + self._slots(GRANT_DAYS)), "endSlot")
        return start, end

    def _check_interval(self, start: int, end: int, now_ms: int) -> Refused | None:
        current = self.grid.slot_at(now_ms)
        longest = self._slots(MAX_GRANT_DAYS)
        if current - 1 <= start <= end and end - current <= longest:
            return None
        return Refused(
            Refusal.QUANTITY_OUT_OF_RANGE, f"slots {start}…{end}, now {current}, up to {longest}"
        )

    def oldest_slot(self, now_ms: int) -> int:
        """Address grants that ended before this slot are told to nobody."""
        return self.grid.slot_at(now_ms) - self._slots(MAX_GRANT_DAYS)

    def _slots(self, days: int) -> int:
        return days * DAY_MS // (self.grid.length_s * 1000)

    def _per_slot_wh(self, power_w: int) -> int:
        return power_w * self.grid.length_s // 3600

    def _log(
        self, now_ms: int, actor: str, action: str, decision: object, subject: str = ""
    ) -> None:
        subject = subject or actor
        if isinstance(decision, Refused):
            # a ban's reason is what an operator wrote, maybe of a person: not for the chain
            detail = "" if decision.refusal is Refusal.BANNED else decision.detail
            self.rows.audit(now_ms, actor, action, decision.refusal.value, detail, subject=subject)
            return
        records = decision if isinstance(decision, list) else [decision]
        digest = hashlib.sha256(msgspec.json.encode(records, order="sorted")).hexdigest()
        # address grants are on the chain: whoever has both would know by the digest whose they are
        public = action == GRANT_ADDRESSES
        self.rows.audit(
            now_ms, actor, action, "OK", "" if public else digest, subject=subject,
            personal={"grants": digest} if public else None,
        )  # fmt: skip
