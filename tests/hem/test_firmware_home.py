"""The home around its firmware: the DSO's nudge, a ban that is waited out, and a whole process."""

import asyncio
import json
import sys

import pytest
from support.brokers import REPOSITORY, make_key
from support.chain_builder import SUPERVISOR
from support.firmware import Makers
from support.homes import MARKET, Site
from support.http import serving
from support.patience import PATIENCE_S

from csmdb.firmware_http import build_app
from hem import service
from hem.ems.firmware_status import read_view
from runtime.csmdb_client import CsmDbRefusedError
from runtime.ports import Message
from runtime.rng import SystemRng
from sim.firmware_meter import FirmwareMeter, make_image
from wire import topics
from wire.firmware import make_check
from wire.keys import SigningKey


def nudge(home, key, whom=""):
    raw = make_check(
        whom or home.ems_key.id, key, "demo", home.clock.wall_ms(), SystemRng().bytes(10)
    )
    return Message(topics.build("demo", topics.COMMAND, home.ems_key.id), raw)


async def test_the_dso_may_ask_a_home_to_look_and_nobody_else(home):
    told = []
    home.firmware.nudge = lambda: told.append(1)
    await home.limits.take(nudge(home, SUPERVISOR))
    assert told == [1]
    await home.limits.take(nudge(home, SigningKey(b"x" * 32)))
    await home.limits.take(nudge(home, SUPERVISOR, "hg1" + "a" * 32))
    assert told == [1]


async def test_a_banned_home_waits_for_its_grant_and_another_refusal_ends_it(home, monkeypatch):
    monkeypatch.setattr(service, "BANNED_RETRY_S", 0.001)
    answers = ["BANNED", "BANNED", ""]

    async def obtain():
        reason = answers.pop(0)
        if reason:
            raise CsmDbRefusedError(reason, "")

    monkeypatch.setattr(home, "_obtain_grants", obtain)
    await home._admitted()
    assert answers == []
    answers.append("NOT_ALLOWED")
    with pytest.raises(CsmDbRefusedError, match="NOT_ALLOWED"):
        await home._admitted()


@pytest.mark.long
async def test_hem_run_is_nudged_installs_attests_and_its_commands_say_so(tmp_path):
    """Real processes of home and gateway, a real broker, repository over HTTP, a Modbus meter."""
    site = await Site.open(tmp_path)
    makers = Makers(tmp_path / "makers")
    meter = FirmwareMeter("RM-1", make_image("RM-1", "1.0.0"))
    await meter.start()
    try:
        with serving(build_app(makers.repository(), lambda: 0.0)) as url:
            home = await site.home("home-01", load_w=1_000)
            head = home.file.read_text().split("[[devices]]")[0]
            home.file.write_text(
                f'{head}[firmware]\nurl = "{url}"\nroot = "{makers.root}"\n'
                '[[devices]]\nname = "meter"\nkind = "template"\ntemplate = "hearthgrid-rm1"\n'
                f"port = {meter.port}\n"
            )
            await home.start()
            await until(lambda: read_view(home.folder / "data").state == "current")
            (participant,) = [
                row["id"] for row in site.csmdb.repository.list_participants()
                if site.csmdb.repository.meter_of(row["id"]) is not None
            ]  # fmt: skip
            makers.release("2.0.0", make_image("RM-1", "2.0.0"))
            code, view = await command(home, "check")
            assert (code, view["state"], view["available"]) == (0, "available", "2.0.0")
            dso = await site.lane(make_key("supervisor"), roles={"dso"})
            raw = make_check(
                participant, make_key("supervisor"), MARKET, site.authority.clock.wall_ms(),
                SystemRng().bytes(10),
            )  # fmt: skip
            await dso.publish(topics.build(MARKET, topics.COMMAND, participant), raw)
            rows = site.csmdb.repository
            await until(lambda: rows.meter_of(participant).firmware == "2.0.0")
            assert meter.version == "2.0.0"
            assert rows.certificate_of(participant).meter[0].firmware == "2.0.0"
            code, view = await command(home, "status")
            assert (view["installed"], view["attested"]) == ("2.0.0", "2.0.0")
            (makers.public / "metadata/timestamp.json").write_bytes(b"{}")
            code, view = await command(home, "check")
            assert (code, view["refusal"]) == (1, "MALFORMED")
            assert await home.stop() == 0
    finally:
        await meter.stop()
        await site.close()


async def command(home, *words):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "hem.cli", "firmware", *words, str(home.file), "--json",
        stdout=asyncio.subprocess.PIPE, cwd=REPOSITORY,
    )  # fmt: skip
    out, _ = await process.communicate()
    return process.returncode, json.loads(out)


async def until(condition):
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.05)
