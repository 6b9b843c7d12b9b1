"""`hem device test`: what a live device says is judged, a battery is held and given back."""

from __future__ import annotations

import asyncio
import json
import os
import sys

import pytest
from register_server import device_of, fixture, served
from support.chain_builder import make_genesis

from hem.gateway.template import load_template, template_ids
from hem.locks import lock
from ledger.genesis import genesis_bytes
from wire.keys import SigningKey, to_text

KEY = SigningKey(bytes(32))
HEAD = """# The owner's own words.
[home]
name = "home-01"
claim_code = "x"
data_dir = "data"
[broker]
port = 1883
[market]
name = "demo"
genesis = "genesis.json"
csmdb = "{id}"
csmdb_key = "{key}"
csmdb_box = "{key}"
[gateway]
socket = "gw.sock"
timeout_s = 5
"""


@pytest.fixture
def home(tmp_path):
    """Writes a provisioning file with these devices; gives its path."""

    def written(*devices):
        key = to_text(KEY.public)
        (tmp_path / "genesis.json").write_bytes(genesis_bytes(make_genesis(dso_box_key=key)))
        rows = []
        for device in devices:
            rows.append("[[devices]]")
            rows += [f"{name} = {json.dumps(value)}" for name, value in device.items()]
        file = tmp_path / "provisioning.toml"
        file.write_text(HEAD.format(id=KEY.id, key=key) + "\n".join(rows) + "\n")
        return file

    return written


async def hem(*arguments):
    """`hem …` as a process: exit code, output, errors."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "hem.cli", *map(str, arguments),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=dict(os.environ),
    )  # fmt: skip
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


def of(identity, port, name="it"):
    given = fixture(identity).get("parameters", {})
    return {"name": name, "kind": "template", "template": identity, "port": port, **given}


def checks_of(report):
    return {check["name"]: check["level"] for check in report["checks"]}


async def test_all_devices_of_a_file_are_read_and_judged_and_not_written_to(home):
    async with (
        device_of("sungrow-sh") as (_, hybrid, port),
        device_of("eastron-sdm630") as (_, meter, other),
    ):
        file = home(of("sungrow-sh", port, "hybrid"), of("eastron-sdm630", other, "meter"))
        code, out, _ = await hem("device", "test", file, "--json")
        assert all(r.writes == [] for r in [*hybrid.values(), *meter.values()])
        first, second = json.loads(out)
        assert (code, first["ok"], second["ok"]) == (0, True, True)
        assert first["values"] == fixture("sungrow-sh")["expected"]
        assert second["values"] == fixture("eastron-sdm630")["expected"]
        assert checks_of(first) == dict.fromkeys(
            ("answers", "complete", "limits", "counters", "nameplate", "latency"), "ok"
        )
        code, out, _ = await hem("device", "test", file, "meter")
        assert code == 0
        assert "grid: -1,820 W" in out
        assert "import: 8,500 Wh" in out
        assert "hybrid" not in out


@pytest.mark.parametrize(
    ("address", "words", "name", "said"),
    [
        (52, "7FC0 0000", "complete", "not available: grid"),
        (52, "4974 2400", "limits", "1000000 W is beyond gateway.max_power_w 43500 W"),
    ],
)
async def test_a_value_that_is_missing_or_beyond_the_connection_fails(
    home, address, words, name, said
):
    async with device_of("eastron-sdm630") as (_, devices, port):
        devices[1].put("input", address, words)
        code, out, _ = await hem("device", "test", home(of("eastron-sdm630", port)), "--json")
    (report,) = json.loads(out)
    assert (code, report["ok"]) == (1, False)
    assert checks_of(report)[name] == "fail"
    assert said in out


async def test_a_counter_that_goes_back_fails(home):
    template = load_template("eastron-sdm630")
    async with device_of(template.id) as (_, devices, _port):
        registers = devices[1]
        values = iter(["4108 0000", "4108 0000", "4000 0000"])
        act = registers.act

        async def counting_down(function, start, address, count, words, new):
            if address <= 72 < address + count:
                registers.put("input", 72, next(values, "4000 0000"))
            return await act(function, start, address, count, words, new)

        registers.act = counting_down
        async with served(devices) as port:
            code, out, _ = await hem("device", "test", home(of(template.id, port)), "--json")
    assert code == 1
    assert "import went back" in out


async def test_a_device_that_does_not_answer_fails_and_the_others_are_told(home):
    async with device_of("eastron-sdm630") as (_, _devices, port):
        file = home(of("eastron-sdm630", 9, "away"), of("eastron-sdm630", port, "here"))
        code, out, _ = await hem("device", "test", file)
    assert code == 1
    assert "away (eastron-sdm630): FAILED" in out
    assert "no connection to 127.0.0.1:9" in out
    assert "here (eastron-sdm630): ok" in out


async def test_a_wrong_parameter_is_said(home):
    device = of("sungrow-sh", 502) | {"max_charge_w": 1}
    code, out, _ = await hem("device", "test", home(device))
    assert code == 1
    assert "max_charge_w lies between 100 and 30000 W" in out


async def test_a_name_that_is_none_is_one_line(home):
    code, out, err = await hem("device", "test", home(of("sungrow-sh", 502)), "meter")
    assert (code, out) == (2, "")
    assert "no device is named 'meter'; there are it" in err


async def test_nothing_is_asked_while_the_gateway_runs(home):
    """Many devices take one client, and two who command a battery undo each other's work."""
    file = home(of("sungrow-sh", 502))
    folder = file.parent / "data" / "gateway"
    folder.mkdir(parents=True)
    gateway = lock(folder / "lock")
    try:
        code, out, err = await hem("device", "test", file)
    finally:
        os.close(gateway)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "the gateway is running on it; stop it first" in err


@pytest.mark.slow
@pytest.mark.parametrize(
    "identity",
    [
        identity
        for identity in template_ids()
        if identity in {"sungrow-sh", "huawei-sun2000", "solaredge-battery"}
    ],
)
async def test_a_battery_is_held_and_given_back_and_told_before(home, identity):
    """One with flash registers, one with minutes, one with seconds as its own timer."""
    async with device_of(identity) as (template, devices, port):
        registers = devices[template.device_id]
        code, out, err = await hem(
            "device", "test", home(of(identity, port)), "it", "--control", "--json"
        )
        for row in fixture(identity)["neutral"]["registers"]:
            assert registers.get(row["address"], len(row["words"].split())) == row["words"], row
        assert registers.writes, "it was held"
    (report,) = json.loads(out)
    assert (code, report["ok"]) == (0, True), report
    assert {"held", "keeps it", "neutral"} <= set(checks_of(report))
    assert "the battery is charged with 200 W for 4 s" in err


async def test_control_of_a_battery_that_does_not_answer_says_why_it_was_not_held(home):
    """The report is what somebody needs who tries a battery and sees nothing happen."""
    code, out, err = await hem("device", "test", home(of("sungrow-sh", 9)), "--control", "--json")
    (report,) = json.loads(out)
    assert (code, checks_of(report)) == (1, {"answers": "fail"})
    assert "none was held" in err


async def test_control_of_a_home_without_a_battery_is_one_line(home):
    async with device_of("eastron-sdm630") as (_, _devices, port):
        code, _, err = await hem("device", "test", home(of("eastron-sdm630", port)), "--control")
    assert code == 2
    assert "--control needs one" in err
