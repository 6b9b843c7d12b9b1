"""
The folder of a CSM-DB: made once, opened by the service, the command line and the demo.

    issuing.key        seed of the issuing key, the trust anchor's private half (mode 0600)
    box.key            seed of the key that requests are sealed to (mode 0600)
    csmdb.sqlite       claims, participants, meters, certificates, grants, audit log
    csmdb.toml         when there is one: where the database is instead (csmdb.config)
    certificate.json   the CSM-DB's own certificate, for its connection to the broker
    csmdb.json         what everybody may know: market, slot length, identity, public keys

Certificates and grants are signed for the market's *name* (the `chain_id` argument of
`wire.certificates`), because they are needed before the chain and its id exist.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from csmdb import revocations
from csmdb.config import CONFIG, PrivacySection, load_config, open_storage, write_config
from csmdb.core import CLAIM_DAYS, DAY_MS, OPERATOR, Desk, check_roles, hash_code, make_code
from csmdb.firmware_desk import FirmwareDesk
from csmdb.knowledge import Knowledge
from csmdb.records import Claim
from csmdb.repository import SqlRepository
from csmdb.storage import Storage
from runtime.clock import clock_from_environment
from runtime.keyfiles import read_key, read_secret, write_secret
from runtime.ports import Clock, Rng
from runtime.rng import SystemRng
from wire import topics
from wire.certificates import Certificate, ValidatorLicence, dump_text, seal
from wire.errors import ConfigError, TopicError
from wire.keys import KEY_BYTES, BoxKey, SigningKey, id_of, is_id, to_text
from wire.slots import DEFAULT_SLOT_S, SlotGrid

ISSUING_KEY = "issuing.key"
BOX_KEY = "box.key"
CERTIFICATE = "certificate.json"
FACTS = "csmdb.json"
CONNECTION_MAX_W = 10_000_000
MAX_CONTROLLER_CHARS = 64


@dataclass(slots=True)
class CsmDb:
    """An open CSM-DB."""

    folder: Path
    market: str
    grid: SlotGrid
    issuing_key: SigningKey
    box: BoxKey
    repository: SqlRepository
    clock: Clock
    rng: Rng
    privacy: PrivacySection = field(default_factory=PrivacySection)
    knowledge: Knowledge = field(default_factory=Knowledge)
    """Advisories, as far as they were read."""

    @property
    def id(self) -> str:
        """Identity of the CSM-DB: that of its issuing key."""
        return self.issuing_key.id

    @property
    def desk(self) -> Desk:
        """The rules, on this database."""
        return Desk(
            self.issuing_key, self.market, self.grid, self.repository, self.privacy.limit_classes_w
        )

    def firmware_desk(self, review: Callable[[str], object] = lambda _: None) -> FirmwareDesk:
        """The rules of attestations; `review` is told whose meter attested another firmware."""
        return FirmwareDesk(self.desk, self.repository, review)

    @property
    def certificate(self) -> Certificate:
        """The CSM-DB's own certificate; renewed when the database is opened."""
        certificate = self.repository.certificate_of(self.id)
        assert certificate is not None
        return certificate

    def add_claim(
        self,
        roles: list[str] | tuple[str, ...],
        max_import_w: int,
        max_export_w: int,
        feeder: str,
        validator: str = "",
        *,
        days: int = CLAIM_DAYS,
        actor: str = OPERATOR,
    ) -> str:
        """
        Let somebody enrol.

        Args:
            roles: what the home may be; `prosumer` buys and sells
            max_import_w, max_export_w: limits of the connection [W]
            validator: identity of the validator the home hosts, or empty
            days: how long the code can be used [d]
            actor: who does it, for the audit log

        Returns:
            The one-time code. It is not kept: only its hash is.

        Raises:
            ConfigError: roles, limits or the validator's identity are wrong.
        """
        check_roles(tuple(roles))
        if not (0 <= max_import_w <= CONNECTION_MAX_W and 0 <= max_export_w <= CONNECTION_MAX_W):
            raise ConfigError(f"limits: expected 0…{CONNECTION_MAX_W} W")
        if validator and not is_id(validator):
            raise ConfigError(f"validator: expected an identity 'hg1…', got {validator!r}")
        code = make_code(self.rng.bytes(10))
        now_ms = self.clock.now_ms()
        claim = Claim(
            code_hash=hash_code(code),
            roles=tuple(roles),
            max_import_w=max_import_w,
            max_export_w=max_export_w,
            feeder=feeder,
            validator=validator,
            expires_ms=now_ms + days * DAY_MS,
        )
        with self.repository.atomic():
            self.repository.add_claim(claim)
            self.repository.audit(now_ms, actor, "add-claim", "OK", "", subject=claim.code_hash)
        return code

    def issue_service_certificate(
        self,
        public_key: bytes,
        roles: list[str] | tuple[str, ...],
        name: str = "",
        actor: str = OPERATOR,
    ) -> Certificate:
        """
        A certificate for an aggregator, analytics, validator or observer.

        Raises:
            ConfigError: unknown roles, or the key of a home.
        """
        return self.desk.certify_service(public_key, tuple(roles), name, self.clock.now_ms(), actor)

    def license_validator(self, public_key: bytes, controller: str, days: int) -> ValidatorLicence:
        """
        Permit a key to validate from now on.

        Raises:
            ConfigError: the controller has no short name.
        """
        if not 1 <= len(controller) <= MAX_CONTROLLER_CHARS:
            raise ConfigError(f"controller: 1 to {MAX_CONTROLLER_CHARS} characters")
        now_ms = self.clock.now_ms()
        given = ValidatorLicence(
            validator=id_of(public_key),
            key=to_text(public_key),
            controller=controller,
            not_before_ms=now_ms,
            not_after_ms=now_ms + days * DAY_MS,
        )
        with self.repository.atomic():
            self.repository.audit(
                now_ms, OPERATOR, "licence", "OK", f"{days} d", subject=given.validator
            )
        return seal(given, self.issuing_key, self.market)

    def ban(self, participant: str, reason: str, actor: str = OPERATOR) -> None:
        """
        Refuse everything that somebody asks from now on (an empty reason lifts the ban), and
        revoke what was granted.

        A ban by advisories stays; `csmdb.advisories` lifts it.

        Raises:
            ConfigError: nobody has this identity.
        """
        now_ms = self.clock.now_ms()
        with self.repository.atomic():
            self.repository.set_ban(participant, reason, time_ms=now_ms)
            self.repository.audit(
                now_ms,
                actor,
                "ban" if reason else "unban",
                "OK",
                "",
                subject=participant,
                personal={"reason": reason} if reason else None,
            )
            revocations.follow(self, participant, revocations.OPERATOR)

    def close(self) -> None:
        """Release the database."""
        self.repository.close()

    def __enter__(self) -> CsmDb:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def create(
    folder: Path,
    market: str,
    *,
    slot_length_s: int = DEFAULT_SLOT_S,
    storage_url: str = "",
    clock: Clock | None = None,
    rng: Rng | None = None,
) -> CsmDb:
    """
    Make keys and database in a new (or empty) folder.

    Args:
        storage_url: of an empty database; without, SQLite in the folder

    Raises:
        ConfigError: there is a CSM-DB already, or market, slot length or database are not usable.
    """
    if (folder / ISSUING_KEY).exists():
        raise ConfigError(f"{folder}: there is a CSM-DB already")
    try:
        topics.build(market, topics.AUCTION)
        SlotGrid(slot_length_s)
    except (TopicError, ValueError) as error:
        raise ConfigError(str(error)) from None
    folder.mkdir(parents=True, exist_ok=True)
    if storage_url:
        write_config(folder, storage_url)
        with closing(open_storage(folder)) as storage:
            check_empty(storage, f"{folder / CONFIG}: storage.url")
    issuing, box = SigningKey(os.urandom(KEY_BYTES)), BoxKey(os.urandom(KEY_BYTES))
    facts = {
        "market": market,
        "slotLengthS": slot_length_s,
        "id": issuing.id,
        "issuingKey": to_text(issuing.public),
        "boxKey": to_text(box.public),
    }
    (folder / FACTS).write_text(json.dumps(facts, indent=2) + "\n")
    write_secret(folder / BOX_KEY, box.seed)
    write_secret(folder / ISSUING_KEY, issuing.seed)
    return open_csmdb(folder, clock=clock, rng=rng)


def check_empty(storage: Storage, where: str) -> None:
    """
    Raise unless nothing was ever written to a database.

    Raises:
        ConfigError: something was.
    """
    if next(storage.query("SELECT seq FROM audit LIMIT 1"), None) is not None:
        raise ConfigError(f"{where}: this database holds a CSM-DB; give an empty one")


def open_csmdb(folder: Path, *, clock: Clock | None = None, rng: Rng | None = None) -> CsmDb:
    """
    Open what `create` made.

    Raises:
        ConfigError: no CSM-DB there, damaged, or its keys can be read by others.
    """
    try:
        facts = json.loads((folder / FACTS).read_text())
        market, grid = str(facts["market"]), SlotGrid(int(facts["slotLengthS"]))
    except FileNotFoundError:
        raise ConfigError(f"{folder}: no CSM-DB here; make one with `csmdb init`") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{folder / FACTS}: {error}") from None
    issuing = read_key(folder / ISSUING_KEY)
    box = BoxKey(read_secret(folder / BOX_KEY))
    if facts.get("id") != issuing.id:
        raise ConfigError(f"{folder / FACTS}: id is not that of {ISSUING_KEY}")
    csmdb = CsmDb(
        folder=folder,
        market=market,
        grid=grid,
        issuing_key=issuing,
        box=box,
        repository=SqlRepository(open_storage(folder), issuing),
        clock=clock or clock_from_environment(),
        rng=rng or SystemRng(),
        privacy=load_config(folder).privacy,
    )
    _renew_own_certificate(csmdb)
    return csmdb


def _renew_own_certificate(csmdb: CsmDb) -> None:
    """A year's certificate, made anew when a month or less is left."""
    known = csmdb.repository.certificate_of(csmdb.id)
    if known is None or known.not_after_ms < csmdb.clock.now_ms() + CLAIM_DAYS * DAY_MS:
        known = csmdb.issue_service_certificate(csmdb.issuing_key.public, ["csmdb"], "csmdb")
        (csmdb.folder / CERTIFICATE).write_text(dump_text(known) + "\n")
