"""
New keys for a home whose EMS key may have been seen: asked for under the old key, made here.

    1  the CSM-DB gives a one-time code for who takes our place (`succession-code`)
    2  new EMS and box keys lie beside the old ones
    3  they are enrolled with the code: from here on the old EMS key is revoked
    4  the certificate is kept, and the new keys take the place of the old ones

Every step may be repeated. After a power cut between two of them the home finishes by itself when
it starts: step 4 alone, or from step 3 on, as its old key may be revoked already. Addresses keep
their keys and grants and settle as before. The meter key stays.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import structlog

from hem.config import Provisioning
from hem.ems.enrolment import CERTIFICATE, Enrolment
from hem.ems.keyring import BOX_KEY, EMS_KEY
from hem.gateway.client import GatewayError
from runtime.bus import lane
from runtime.csmdb_client import CsmDbClient, CsmDbRefusedError
from runtime.door import Door, DoorBus
from runtime.keyfiles import read_secret, write_secret
from runtime.ports import Clock, Rng
from wire.certificates import Certificate, dump_text, load
from wire.enrolment import ENROLL, SUCCESSION_CODE
from wire.errors import CertificateError, ConfigError, Refusal
from wire.keys import KEY_BYTES, BoxKey, SigningKey, from_text, to_text

NEXT = ".next"
CODE = "rotation/code"
RETRY_S = 1.0

log = structlog.get_logger(component="hem")


class Rotation:
    """
    A rotation of one home's EMS and box keys.

    Args:
        enrolment: of the home, which does not run
        folder: where its keys are
    """

    def __init__(self, enrolment: Enrolment, folder: Path, rng: Rng) -> None:
        self._enrolment, self._store, self._folder = enrolment, enrolment.store, folder
        self._rng = rng

    @property
    def ems(self) -> SigningKey:
        """The EMS key that is to be, made when first asked for."""
        return SigningKey(self._seed(EMS_KEY))

    @property
    def box(self) -> BoxKey:
        """The box key that is to be."""
        return BoxKey(self._seed(BOX_KEY))

    @property
    def is_begun(self) -> bool:
        """There is a code, and no answer to it yet: the old key may be good or not."""
        return self._store.get(CODE) is not None

    def resume(self) -> Certificate | None:
        """The rest of step 4, where a power cut stopped it; None: it was not there."""
        kept = self._enrolment.certificate
        if kept is None or not self._path(EMS_KEY).exists() or kept.subject != self.ems.id:
            return None
        self._put_in_place()
        return kept

    async def ask_code(self, old: CsmDbClient) -> None:
        """
        Step 1, over a line of the old key; nothing where there is a code.

        Raises:
            CsmDbRefusedError: BANNED, REVOKED, … TimeoutError: no answer.
        """
        if self._store.get(CODE) is None:
            code = str((await old.ask(SUCCESSION_CODE, {}))["claimCode"])
            with self._store.atomic():
                self._store.put(CODE, code.encode())

    async def enrol(self, new: CsmDbClient, meter: dict[str, Any]) -> Certificate:
        """
        Steps 3 and 4, over a line of the new key.

        Args:
            meter: what is on its plate, and its key

        Raises:
            CsmDbRefusedError: CLAIM_USED, … TimeoutError: no answer.
        """
        code = self._store.get(CODE)
        assert code is not None, "the code is asked for first"
        asked = {"claimCode": code.decode(), "key": to_text(self.ems.public), "meter": meter}
        try:
            answer = await new.ask(ENROLL, asked)
        except CsmDbRefusedError as error:
            if error.reason == Refusal.EXPIRED.value:  # so it was never used: the old keys are good
                with self._store.atomic():
                    self._store.delete(CODE)
            raise
        known = self._enrolment
        certificate = load(Certificate, answer["certificate"], known.issuing_key, known.market)
        if certificate.subject != self.ems.id:
            raise CertificateError("certificate of another home", subject=certificate.subject)
        with self._store.atomic():
            self._store.put(CERTIFICATE, dump_text(certificate).encode())
            self._store.delete(CODE)
        self._put_in_place()
        return certificate

    def _put_in_place(self) -> None:
        for name in (BOX_KEY, EMS_KEY):  # the EMS key last: it says that the other is done
            if self._path(name).exists():
                self._path(name).replace(self._folder / name)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}{NEXT}"

    def _seed(self, name: str) -> bytes:
        path = self._path(name)
        if not path.exists():
            write_secret(path, self._rng.bytes(KEY_BYTES))
        return read_secret(path)


async def rotate(config: Provisioning, enrolment: Enrolment, clock: Clock, rng: Rng) -> Certificate:
    """
    Give a home new EMS and box keys; it does not run meanwhile, its gateway does.

    Raises:
        ConfigError: it is not enrolled.
        CsmDbRefusedError: BANNED, REVOKED, … TimeoutError: no answer; do it again.
    """
    keyring, rotation = enrolment.keyring, Rotation(enrolment, enrolment.keyring.folder, rng)
    found = rotation.resume()
    if found is not None:
        return found
    if enrolment.certificate is None:
        raise ConfigError(f"{config.home.data_dir}: not enrolled yet; there is nothing to replace")
    if not rotation.is_begun:  # a key that is revoked already would not be let in
        async with stranger_line(config, keyring.ems, keyring.box, clock, rng) as old:
            await rotation.ask_code(old)
    gateway = enrolment.gateway
    meter = {**await gateway.nameplate(), "meter_key": (await gateway.public_keys())["meter"]}
    async with stranger_line(config, rotation.ems, rotation.box, clock, rng) as new:
        return await rotation.enrol(new, meter)


def ems_key_at_start(enrolment: Enrolment, rng: Rng) -> SigningKey:
    """The EMS key; a new one, whose certificate is kept already, is put in its place first."""
    if Rotation(enrolment, enrolment.keyring.folder, rng).resume() is not None:
        log.info("new keys in place")
    return enrolment.keyring.ems


async def finish(config: Provisioning, enrolment: Enrolment, clock: Clock, rng: Rng) -> bool:
    """
    At a start: finish a rotation whose answer did not come; asks until there is one.

    Returns:
        Whether the home has new keys now. False: none was under way, or its code has ended unused.

    Raises:
        CsmDbRefusedError: BANNED, CLAIM_USED, …
    """
    rotation = Rotation(enrolment, enrolment.keyring.folder, rng)
    said = False
    while rotation.is_begun:
        try:
            await rotate(config, enrolment, clock, rng)
        except (TimeoutError, GatewayError) as error:
            if not said:
                log.warning("rotation of keys waits", reason=str(error) or "no answer")
            said = True
            await asyncio.sleep(RETRY_S)
        except CsmDbRefusedError as error:
            if error.reason != Refusal.EXPIRED.value:
                raise
            log.warning("rotation of keys given up: its code has ended; the old keys stay")
        else:
            return True
    return False


@asynccontextmanager
async def stranger_line(
    config: Provisioning, key: SigningKey, box: BoxKey, clock: Clock, rng: Rng
) -> AsyncIterator[CsmDbClient]:
    """A line to the CSM-DB for a key that shows no certificate: the door, or the broker's."""
    market, broker = config.market, config.broker
    keys = from_text(market.csmdb_key, KEY_BYTES), from_text(market.csmdb_box, KEY_BYTES)
    if broker.ca is not None:
        door = DoorBus(Door(broker.door, broker.ca), market.name, key.id)
        yield CsmDbClient(door, key, box, market.name, *keys, clock, rng)
        return
    bus = lane(key, market.name, None, broker.host, broker.port, clock, rng)
    client = CsmDbClient(bus, key, box, market.name, *keys, clock, rng)
    await bus.start()
    try:
        yield client
    finally:
        await bus.stop()
