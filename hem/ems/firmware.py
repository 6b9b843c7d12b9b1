"""
The EMS's half of an update: look for firmware, fetch it, hand it over, see that it is attested.

    every `check_every_s`, when banned, when the DSO says so, or `hem firmware install`:
        plate ─► repository (child process) ─► what fits, above what is installed
        fetch ─► hand over to the gateway, which verifies and writes ─► wait
    whenever the plate differs from our certificate:
        nonce of the CSM-DB ─► the gateway attests ─► CSM-DB ─► a new certificate

Attesting needs no repository: a meter that its maker updated is attested, too. A ban stops none of
this, for a patched meter is how it ends. What is refused is counted, written down for `hem firmware
status`, and asked for again only at the next look.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import msgspec
import structlog

from hem.config import Firmware as FirmwareConfig
from hem.ems.enrolment import Enrolment
from hem.ems.firmware_status import (
    FOLDER,
    LOCK,
    FirmwareView,
    Wish,
    take_wish,
    write_view,
)
from hem.firmware_client import (
    File,
    Question,
    RepositoryAwayError,
    choose,
    consult,
    find,
    image_path,
    metadata_files,
)
from hem.gateway.client import GatewayClient, GatewayError
from hem.locks import lock_within
from runtime.csmdb_client import CsmDbClient, CsmDbRefusedError
from runtime.metrics import count_refusal
from runtime.ports import BusDownError, Clock
from wire.enrolment import ATTEST_FIRMWARE, FIRMWARE_NONCE
from wire.errors import FirmwareRefusedError, Refusal, WireError
from wire.firmware import Plate, Target, check_fits

LOOK_S = 2.0
"""How often a wish or a nudge is looked for [real s]."""
ATTEST_EVERY_S = 60.0
"""How often the plate is compared with the certificate [real s]."""
BANNED_LOOK_S = 600.0
"""A banned home looks at least so often: its meter's maker may be at work on it [real s]."""
PROGRESS_S = 1.0
LOCK_WAIT_S = 60.0
UNDER_WAY = ("writing", "starting")
LOST_PATIENCE_S = 900.0
"""A gateway that says nothing of an installation for so long has lost it [real s]."""

log = structlog.get_logger(component="hem")

Line = Callable[[], AbstractAsyncContextManager[CsmDbClient]]
Consult = Callable[[Question], Awaitable[list[File]]]


class Firmware:
    """
    Keeps the firmware of one home's meter.

    Args:
        config: where it comes from; None: nothing is installed, only attested
        data_dir: the home's
        line: opens a line to the CSM-DB
        renewed: told that there is a new certificate
    """

    def __init__(
        self,
        config: FirmwareConfig | None,
        data_dir: Path,
        gateway: GatewayClient,
        enrolment: Enrolment,
        line: Line,
        clock: Clock,
        renewed: Callable[[], None] = lambda: None,
        consult: Consult = consult,
    ) -> None:
        self._config, self._data_dir = config, data_dir
        self._gateway, self._enrolment, self._line = gateway, enrolment, line
        self._clock, self._renewed, self._consult = clock, renewed, consult
        self.view = FirmwareView()
        self._nudged = self._banned = False
        self._not_again = ""
        """A version whose attestation was refused: not sent again before the next look."""
        self._said = ""

    def nudge(self) -> None:
        """Look for firmware soon."""
        self._nudged = True

    def set_banned(self, *, is_banned: bool) -> bool:
        """
        Look now, and often while we are banned.

        Returns:
            Whether that is news.
        """
        is_news = is_banned != self._banned
        self._banned = is_banned
        self._nudged = self._nudged or (is_news and is_banned)
        return is_news

    async def run(self) -> None:
        """Look, install and attest for ever; cancel to stop."""
        now_s = self._clock.monotonic_s
        looked_s, attest_at_s = float("-inf"), now_s()
        while True:
            wish = take_wish(self._data_dir)
            if wish is not None or self._nudged or now_s() >= looked_s + self._every_s():
                self._nudged, self._not_again = False, ""
                await self.look(wish)
                looked_s = attest_at_s = now_s()
            if now_s() >= attest_at_s:
                await self.attest()
                attest_at_s = now_s() + ATTEST_EVERY_S
            await asyncio.sleep(LOOK_S)

    def _every_s(self) -> float:
        every_s = self._config.check_every_s if self._config is not None else 21_600
        return min(every_s, BANNED_LOOK_S) if self._banned else every_s

    async def look(self, wish: Wish | None = None) -> FirmwareView:
        """Look for firmware; install what fits, where nobody has to be asked. Never raises."""
        try:
            async with _alone(self._data_dir):
                await self._look(wish)
        except (GatewayError, RepositoryAwayError, TimeoutError, OSError) as error:
            self._show(state="away", detail=str(error) or "no answer")
        except (FirmwareRefusedError, WireError) as error:
            self._refuse(error.refusal, str(error))
        return self.view

    async def _look(self, wish: Wish | None) -> None:
        plate = await plate_of(self._gateway)
        certificate = self._enrolment.certificate
        attested = certificate.meter[0].firmware if certificate and certificate.meter else ""
        self._show(installed=plate.firmware, attested=attested)
        if self._config is None:
            self._show(state="current")
            return
        files = await self._consult(question_of(self._config, self._data_dir))
        if wish is not None and wish.name:
            file, target = find(files, wish.name)
            check_fits(target, plate)
        else:
            best = choose(files, plate)
            if best is None:
                self._show(state="current", available="", file="")
                return
            file, target = best
        self._show(state="available", available=target.version, file=file.name)
        status = await self._gateway.firmware_status()
        refused = status["state"] == "failed" and status["version"] == target.version
        if status["state"] in UNDER_WAY:  # from before a restart of ours
            await self._wait()
        elif wish is not None or (self._config.install == "automatic" and not refused):
            await self._install(self._config, file, target)
        elif refused:  # trying again every few hours would wear the meter out
            self._refuse(Refusal.METER_REFUSED, f"{target.version}: {status['why']}")

    async def _install(self, config: FirmwareConfig, file: File, target: Target) -> None:
        """Fetch, hand over, and wait until the gateway is through with it."""
        log.info("installing firmware", version=target.version, file=file.name)
        self._show(state="installing")
        await self._consult(question_of(config, self._data_dir, file.name))
        state = self._data_dir / FOLDER
        for path in metadata_files(state):
            await self._gateway.hand_over(path.name, path.read_bytes())
        await self._gateway.hand_over(file.name, image_path(state, file.name).read_bytes())
        try:
            await self._gateway.install_firmware(file.name)
        except GatewayError as error:
            if error.code in Refusal.__members__:
                raise FirmwareRefusedError(Refusal(error.code), str(error)) from None
            raise
        await self._wait()

    async def _wait(self) -> None:
        """Until the gateway is through with what it writes."""
        heard_s = self._clock.monotonic_s()
        while True:
            try:
                status = await self._gateway.firmware_status()
            except GatewayError:  # it may be starting anew; it goes on by itself
                if self._clock.monotonic_s() - heard_s > LOST_PATIENCE_S:
                    raise
            else:
                heard_s = self._clock.monotonic_s()
                if status["state"] not in UNDER_WAY:
                    break
            await asyncio.sleep(PROGRESS_S)
        if status["state"] == "done":
            self._show(state="installed", installed=status["version"], available="", file="")
        else:
            self._refuse(Refusal.METER_REFUSED, f"{status['version']}: {status['why']}")

    async def attest(self) -> bool:
        """
        Let the gateway attest a plate that our certificate does not show. Never raises.

        Returns:
            Whether certificate and plate agree now.
        """
        certificate = self._enrolment.certificate
        if certificate is None or not certificate.meter:
            return False
        try:
            plate = await plate_of(self._gateway)
            known = certificate.meter[0].firmware
            if plate.firmware == known:
                return True
            if plate.firmware == self._not_again:
                return False
            self._not_again = plate.firmware
            await self._attest()
        except CsmDbRefusedError as error:
            refusal = Refusal.__members__.get(error.reason, Refusal.NOT_ALLOWED)
            self._refuse(refusal, f"the CSM-DB does not take the attestation: {error}")
            return False
        except (GatewayError, TimeoutError, BusDownError) as error:
            self._not_again = ""
            self._say(f"attestation not sent, tried again: {error or 'no answer'}")
            return False
        except WireError as error:
            self._refuse(error.refusal, str(error))
            return False
        log.info("firmware attested", version=plate.firmware, before=known)
        self._not_again = ""
        self._show(installed=plate.firmware, attested=plate.firmware)
        return True

    async def _attest(self) -> None:
        async with self._line() as csmdb:
            nonce = str((await csmdb.ask(FIRMWARE_NONCE, {}))["nonce"])
            record = await self._gateway.attest_firmware(nonce)
            await csmdb.ask(ATTEST_FIRMWARE, {"attestation": record})
            if await self._enrolment.renew_certificate(csmdb):
                self._renewed()

    # --- saying it ------------------------------------------------------------------------------

    def _show(self, **facts: str) -> None:
        now_ms = self._clock.wall_ms()
        kept = {"refusal": "", "detail": "", **facts} if "state" in facts else facts
        self.view = msgspec.structs.replace(self.view, checked_ms=now_ms, **kept)
        try:
            write_view(self._data_dir, self.view)
        except OSError as error:
            self._say(f"firmware status not written: {error}")

    def _refuse(self, refusal: Refusal, detail: str) -> None:
        count_refusal("hem-firmware", refusal)
        self._say(detail)
        self._show(state="refused", refusal=refusal.value, detail=detail[:300])

    def _say(self, reason: str) -> None:
        """Once for each reason."""
        if reason != self._said:
            self._said = reason
            log.warning("firmware", reason=reason[:300])


async def plate_of(gateway: GatewayClient) -> Plate:
    """
    The meter's plate.

    Raises:
        GatewayError: the gateway, or the meter behind it, does not answer.
    """
    found = await gateway.nameplate()
    try:
        return msgspec.convert(found, Plate)
    except msgspec.ValidationError as error:
        raise GatewayError("BAD_ANSWER", str(error)) from None


def question_of(config: FirmwareConfig, data_dir: Path, wanted: str = "") -> Question:
    """What the EMS asks its repository."""
    state = str(data_dir / FOLDER)
    return Question(root=str(config.root), state=state, url=config.url, wanted=wanted)


async def look_only(config: FirmwareConfig, data_dir: Path, gateway: GatewayClient) -> FirmwareView:
    """
    What is there for this home (`hem firmware check`); installs nothing.

    Raises:
        FirmwareRefusedError, RepositoryAwayError, GatewayError.
    """
    async with _alone(data_dir):
        plate = await plate_of(gateway)
        best = choose(await consult(question_of(config, data_dir)), plate)
    if best is None:
        return FirmwareView(state="current", installed=plate.firmware)
    file, target = best
    return FirmwareView(
        state="available", installed=plate.firmware, available=target.version, file=file.name
    )


@asynccontextmanager
async def _alone(data_dir: Path) -> AsyncIterator[None]:
    """Nobody else uses our trusted state. Raises TimeoutError: somebody does for long."""
    folder = data_dir / FOLDER
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = await asyncio.to_thread(lock_within, folder / LOCK, LOCK_WAIT_S)
    if descriptor is None:
        raise TimeoutError("another program looks for firmware")
    try:
        yield
    finally:
        os.close(descriptor)
