"""
Firmware for the site's meter: taken from the EMS, verified again, written, and attested.

The EMS fetches; the gateway believes none of it. It has its own root, its own trusted state and
runs the whole of the framework's checks over the files it was handed (`hem.firmware_client`), then
compares the file's purpose with the plate it reads itself. So a broken-into EMS can refuse a home
its update, and can put nothing into a meter that the makers did not sign for it, nor an older file.

    firmware_part      name, offset, data   into the inbox
    firmware_install   name                 verify, keep, begin to write
    firmware_status    -                    how far it is
    attest_firmware    nonce                the plate, read now, under the meter key

What is verified is kept with its digest, so writing goes on after a cut or a restart of ours: a job
ends when the plate shows the new version, or when the device refused it three times.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

import msgspec

from hem.firmware_client import File, Question, consult, find, image_path
from hem.gateway.connected import Log
from hem.gateway.devices import Site
from hem.gateway.firmware_writer import FirmwareWriter
from hem.gateway.modbus import DeviceError, DeviceLostError, DeviceRefusedError
from hem.gateway.protocol import RpcError
from hem.gateway.roles import Meter
from hem.gateway.template import DETAILS
from hem.gateway.template_device import TemplateSource
from wire.errors import FirmwareRefusedError, HearthgridError, Refusal
from wire.firmware import IMAGE_BYTES_MAX, Plate, Target, check_fits, is_file_name

INBOX, JOB = "inbox", "job.json"
INBOX_BYTES_MAX = 2 * IMAGE_BYTES_MAX
INBOX_FILES_MAX = 300
ATTEMPTS_MAX = 3
"""How often a device may refuse a file before it is given up."""
PAUSE_S = 5.0
"""Before a device that was lost is tried again [real s]."""
RESTART_LOOK_S = 0.5

Consult = Callable[[Question], Awaitable[list[File]]]


class Job(msgspec.Struct, kw_only=True):
    """A file on its way into the meter."""

    name: str
    version: str
    sha256: str
    length: int
    state: Literal["writing", "starting", "done", "failed"] = "writing"
    why: str = ""
    attempts: int = 0
    """How often the device refused it."""


class FirmwareKeeper:
    """
    The gateway's half of an update.

    Args:
        folder: our own, for inbox, trusted state and job
        root: the root metadata that is trusted; None: this home takes no firmware
        site: its meter is the one that is written to
        consult: asks the repository; the default does so in a process of its own
        pause_s: before a lost device is tried again [real s]
    """

    def __init__(
        self,
        folder: Path,
        root: Path | None,
        site: Site,
        log: Log,
        consult: Consult = consult,
        pause_s: float = PAUSE_S,
    ) -> None:
        self._folder, self._root, self._site, self._log = folder, root, site, log
        self._consult, self._pause_s = consult, pause_s
        self._job = self._kept()
        self._written = 0
        self._working: asyncio.Task[None] | None = None
        self._closing = False
        self._verifying = asyncio.Lock()

    # --- what the EMS may ask -------------------------------------------------------------------

    def take_part(self, name: str, offset: int, data: str) -> dict[str, int]:
        """
        Keep a part of a file that is handed over; the first one begins it anew.

        Raises:
            RpcError: NO_FIRMWARE, BAD_PARAMS (name, base64, a gap), OVERSIZED.
        """
        self._check_wanted()
        if not is_file_name(name):
            raise RpcError("BAD_PARAMS", "not a file's name")
        try:
            part = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError):
            raise RpcError("BAD_PARAMS", "data is not base64") from None
        inbox = self._folder / INBOX
        inbox.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = inbox / name
        if offset == 0:
            path.unlink(missing_ok=True)
        sizes = {each.name: each.stat().st_size for each in inbox.iterdir()}
        if sizes.get(name, 0) != offset:
            raise RpcError("BAD_PARAMS", f"{sizes.get(name, 0)} bytes are there, not {offset}")
        full = sum(sizes.values()) + len(part) > INBOX_BYTES_MAX
        if full or (len(sizes) >= INBOX_FILES_MAX and name not in sizes):
            shutil.rmtree(inbox)
            raise RpcError("OVERSIZED", "more than a repository's metadata and one file")
        with path.open("ab") as file:
            file.write(part)
        return {"size": offset + len(part)}

    async def install(self, name: str) -> dict[str, Any]:
        """
        Verify what was handed over, and begin to write it.

        Raises:
            RpcError: NO_FIRMWARE, NOT_INSTALLABLE, BUSY; or the refusal's name.
            DeviceLostError, DeviceRefusedError: the plate cannot be read.
        """
        self._check_wanted()
        async with self._verifying:
            if self._is_working():
                raise RpcError("BUSY", "a file is being written")
            try:
                file, target = await self._verified(name)
            except FirmwareRefusedError as error:
                self._log.warning("firmware refused", file=name[:100], why=str(error))
                raise RpcError(error.refusal.value, error.detail) from None
            except HearthgridError as error:
                if isinstance(error, DeviceError):
                    raise
                raise RpcError("UNAVAILABLE", str(error)) from None
            shutil.rmtree(self._folder / INBOX, ignore_errors=True)
            self._job = Job(
                name=name, version=target.version, sha256=file.sha256, length=file.length
            )
            self._keep()
            self.go_on()
        return self.status()

    def status(self) -> dict[str, Any]:
        """How far it is: `{state, version, written, length, why}`; state `none`: no file yet."""
        job = self._job
        if job is None:
            return {"state": "none", "version": "", "written": 0, "length": 0, "why": ""}
        written = job.length if job.state in ("starting", "done") else self._written
        return {
            "state": job.state,
            "version": job.version,
            "written": written,
            "length": job.length,
            "why": job.why,
        }

    async def plate(self) -> Plate:
        """
        The meter's plate as it is now.

        Raises:
            RpcError: NO_METER. DeviceLostError, DeviceRefusedError.
        """
        meter = self._meter()
        async with meter.device.turn:
            details = (await meter.device.source.read()).details
        meter.device.nameplate = dict(details)
        known = {name: details.get(name, "") for name in DETAILS}
        return Plate(type=meter.device.product, **known)

    def digest_of(self, version: str) -> str:
        """SHA-256 of the file we wrote, where the meter runs it; empty else."""
        job = self._job
        done = job is not None and job.state == "done" and job.version == version
        return job.sha256 if done and job is not None else ""

    # --- verifying ------------------------------------------------------------------------------

    async def _verified(self, name: str) -> tuple[File, Target]:
        assert self._root is not None
        state = self._folder
        inbox = self._folder / INBOX
        question = Question(root=str(self._root), state=str(state), inbox=str(inbox), wanted=name)
        file, target = find(await self._consult(question), name)
        writer = self._writer()
        if writer is None or writer.facts.by != target.installs_by:
            raise FirmwareRefusedError(
                Refusal.OTHER_DEVICE, "this meter's template does not say how it is written"
            )
        check_fits(target, await self.plate())
        await asyncio.to_thread(self._image, file.name, file.sha256)
        return file, target

    def _image(self, name: str, sha256: str) -> bytes:
        """The verified file. Raises FirmwareRefusedError: it is not what it was."""
        try:
            image = image_path(self._folder, name).read_bytes()
        except OSError:
            image = b""
        if hashlib.sha256(image).hexdigest() != sha256:
            raise FirmwareRefusedError(
                Refusal.WRONG_DIGEST, "the kept file is not the verified one"
            )
        return image

    # --- writing --------------------------------------------------------------------------------

    def go_on(self) -> None:
        """Write what is to be written, from where it stopped; at our start, and after a refusal."""
        job = self._job
        if job is not None and job.state in ("writing", "starting") and not self._is_working():
            self._working = asyncio.create_task(self._work(job))

    async def close(self) -> None:
        """Stop; the next start goes on."""
        self._closing = True
        if self._working is not None:
            self._working.cancel()
            await asyncio.gather(self._working, return_exceptions=True)

    def _is_working(self) -> bool:
        return self._working is not None and not self._working.done()

    async def _work(self, job: Job) -> None:
        try:
            image = await asyncio.to_thread(self._image, job.name, job.sha256)
            while not await self._try(job, image):
                self._check_open()
                await asyncio.sleep(self._pause_s)
        except FirmwareRefusedError as error:
            self._end(job, "failed", str(error))
        except Exception as error:  # nobody awaits us: the log and the status are who hears of it
            self._end(job, "failed", repr(error))

    async def _try(self, job: Job, image: bytes) -> bool:
        """One way through; True: it is over."""
        try:
            if await self._runs(job):
                self._end(job, "done")
                return True
            await self._transfer(job, image)
        except DeviceLostError as error:
            job.why = f"the meter is away: {error}"
            return False
        except (DeviceRefusedError, RpcError) as error:
            job.attempts += 1
            job.state, job.why = "writing", str(error)
            if job.attempts >= ATTEMPTS_MAX:
                self._end(job, "failed", str(error))
                return True
            self._keep()
            return False
        self._end(job, "done")
        return True

    async def _transfer(self, job: Job, image: bytes) -> None:
        """Write, let the device try it, and wait for the plate to say so."""
        writer = self._writer()
        if writer is None:
            raise DeviceRefusedError("the meter's template does not say how firmware is written")
        job.state = "writing"
        await writer.write(image, self._told)
        job.state, job.why = "starting", ""
        self._keep()
        with contextlib.suppress(DeviceLostError):  # it may restart before it has answered
            await writer.commit()
        await self._await_version(job, writer)

    async def _await_version(self, job: Job, writer: FirmwareWriter) -> None:
        """Raises DeviceRefusedError: the device did not take it."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + writer.facts.restart_s
        while loop.time() < until_s:
            self._check_open()
            with contextlib.suppress(DeviceLostError):
                if await self._runs(job):
                    return
                if await writer.standing() == "bad":
                    raise DeviceRefusedError("the meter found the file bad")
            await asyncio.sleep(min(RESTART_LOOK_S, self._pause_s))
        raise DeviceRefusedError(f"the meter does not run {job.version} after its restart")

    async def _runs(self, job: Job) -> bool:
        return (await self.plate()).firmware == job.version

    def _told(self, written: int) -> None:
        self._written = written
        self._check_open()

    def _check_open(self) -> None:
        """A cancellation may have met a Modbus request, which makes a lost answer of it."""
        if self._closing:
            raise asyncio.CancelledError

    def _end(self, job: Job, state: Literal["done", "failed"], why: str = "") -> None:
        job.state, job.why = state, why
        self._keep()
        if state == "done":
            self._log.info("firmware installed", version=job.version)
        else:
            self._log.warning("firmware not installed", version=job.version, why=why)

    # --- keeping --------------------------------------------------------------------------------

    def _keep(self) -> None:
        """Durable when this returns."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = self._folder / f"{JOB}.new"
        with draft.open("wb") as file:
            file.write(msgspec.json.encode(self._job))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self._folder / JOB)

    def _kept(self) -> Job | None:
        try:
            return msgspec.json.decode((self._folder / JOB).read_bytes(), type=Job)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            self._log.warning("a firmware job that was kept is lost", why=str(error))
            return None

    def _check_wanted(self) -> None:
        if self._root is None:
            raise RpcError("NO_FIRMWARE", "the provisioning file has no [firmware]")
        if self._writer() is None:
            raise RpcError("NOT_INSTALLABLE", "the meter's template says nothing of firmware")

    def _writer(self) -> FirmwareWriter | None:
        source = self._meter().device.source
        return source.firmware_writer() if isinstance(source, TemplateSource) else None

    def _meter(self) -> Meter:
        if self._site.meter is None:
            raise RpcError("NO_METER", "no device is configured as the grid's meter")
        return self._site.meter
