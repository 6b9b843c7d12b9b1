"""
Every template reads its fixture right from a real server, and its battery can be held and given
back.

The words in the fixtures were worked out from the makers' tables, not by our decoder.
"""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import asynccontextmanager

import pytest
from register_server import device_of, fixture

from hem.config import Device
from hem.gateway.devices import Site
from hem.gateway.modbus import DeviceLostError, DeviceRefusedError
from hem.gateway.template import NEEDS, SAMPLE_NAMES, load_template, template_ids
from runtime.store import MemoryStore

HOLDABLE = [identity for identity in template_ids() if load_template(identity).hold]
ALTERNATIVES = [
    (identity, capability)
    for identity in template_ids()
    for capability in fixture(identity).get("as", {})
]
SAID = {"grid": "grid_w", "pv": "pv_w", "battery": "battery_w"}


class Notes:
    """A log that remembers."""

    def __init__(self):
        self.lines = []

    def info(self, event, **facts):
        self.lines.append((event, facts.get("why")))

    warning = info


class Unplugged:
    """A link nobody answers on."""

    async def read(self, *_):
        raise DeviceLostError("no answer in time")

    write = read


def configured(identity, port, **more):
    given = fixture(identity).get("parameters", {}) | more
    return Device(name="it", kind="template", template=identity, port=port, **given)


class Watched:
    """A lease book with a watchdog behind it (the real ones: `test_gateway_leases`)."""

    def __init__(self):
        self.leases = {}

    async def put(self, lease):
        self.leases[lease.device] = lease

    async def clear(self, device):
        self.leases.pop(device, None)


def site_of(identity, port, notes=None, **more):
    return Site([configured(identity, port, **more)], 2.0, notes or Notes(), leases=Watched())


def only(site):
    (device,) = site.devices
    return device


@asynccontextmanager
async def polled(identity, notes=None, **more):
    """A site whose one device was read once, and the registers behind it."""
    async with device_of(identity) as (template, devices, port):
        site = site_of(identity, port, notes, **more)
        await site.poll(0.0)
        yield site, devices[template.device_id]
        site.close()


@pytest.mark.parametrize("identity", template_ids())
async def test_a_device_is_read_as_its_fixture_says(identity):
    expected = fixture(identity)["expected"]
    async with device_of(identity) as (template, _devices, port):
        site = site_of(identity, port, notes := Notes())
        state = await site.poll(0.0)
        assert (state.devices, notes.lines) == ({"it": "ok"}, [])
        sample = await only(site).source.read()
        assert {n: v for n in SAMPLE_NAMES if (v := getattr(sample, n)) is not None} == expected
        assert set(sample.details) == {"vendor", "model", "firmware", "serial"}
        assert sample.details["vendor"] == template.vendor
        for capability in only(site).source.capabilities:
            if capability in SAID:
                assert getattr(state, SAID[capability]) == expected[SAID[capability]]
        site.close()


@pytest.mark.parametrize(("identity", "capability"), ALTERNATIVES)
async def test_a_meter_can_be_put_elsewhere(identity, capability):
    expected = fixture(identity)["as"][capability]
    async with polled(identity, use=(capability,)) as (site, _registers):
        sample = await only(site).source.read()
        assert {n: v for n in SAMPLE_NAMES if (v := getattr(sample, n)) is not None} == expected


@pytest.mark.parametrize(
    ("identity", "case"),
    [
        pytest.param(identity, case, id=f"{identity}-{case['missing']}")
        for identity in template_ids()
        for case in fixture(identity)["not_available"]
    ],
)
async def test_what_is_not_available_is_no_number(identity, case):
    async with device_of(identity) as (template, devices, port):
        registers = devices[template.device_id]
        before = dict(registers.tables[case["table"]])
        registers.put(case["table"], case["address"], case["words"])
        assert set(registers.tables[case["table"]]) == set(before), "the case is a register"
        site = site_of(identity, port)
        state = await site.poll(0.0)
        sample = await only(site).source.read()
        missing = case["missing"]
        assert getattr(sample, missing) is None
        others = {n: v for n, v in fixture(identity)["expected"].items() if n != missing}
        assert {n: v for n in others if (v := getattr(sample, n)) is not None} == others
        if missing in {"pv_w", "battery_w", "soc_permille"}:  # the site can do without
            assert state.devices == {"it": "ok"}
            assert (state.pv_w == 0) or missing != "pv_w"
            assert (state.soc_permille == -1) or missing != "soc_permille"
        else:
            assert state.devices == {"it": "lost"}
        site.close()


@pytest.mark.parametrize("identity", HOLDABLE)
async def test_a_battery_is_held_within_its_limits_and_given_back(identity):
    """Hold, read back, limits, and neutral at the end, in the registers themselves."""
    facts = fixture(identity)
    async with device_of(identity) as (template, devices, port):
        registers = devices[template.device_id]
        site = site_of(identity, port)
        await site.poll(0.0)
        asked = [(case["ask_w"], case["get_w"]) for case in facts["hold"]]
        assert min(ask for ask, _ in asked) < 0 < max(ask for ask, _ in asked)
        assert any(ask != get for ask, get in asked), "one asks for too much"
        for case in facts["hold"]:
            accepted_w = await site.battery.command(case["ask_w"], case["lease_s"], 1.0)
            assert accepted_w == case["get_w"]
            for row in case["registers"]:
                count = len(row["words"].split())
                assert registers.get(row["address"], count) == row["words"], row
            await site.poll(2.0)
            source = only(site).source
            assert source.standing == "ours"
            assert not await source.is_neutral()
        await site.battery.restore_neutral(3.0)
        for row in facts["neutral"]["registers"]:
            assert registers.get(row["address"], len(row["words"].split())) == row["words"], row
        assert await source.is_neutral()
        registers.writes.clear()
        await site.battery.restore_neutral(4.0)
        assert registers.writes == [], "what is neutral is left alone"
        assert (await site.poll(5.0)).devices == {"it": "ok"}
        assert source.standing == "neutral"
        site.close()


@pytest.mark.parametrize("identity", HOLDABLE)
async def test_a_power_that_is_left_over_is_given_back_on_arrival(identity):
    case = fixture(identity)["hold"][0]
    async with device_of(identity) as (template, devices, port):
        first = site_of(identity, port)
        await first.poll(0.0)
        await first.battery.command(case["ask_w"], 60, 0.0)
        first.close()  # it dies here
        second = site_of(identity, port)
        await second.poll(0.0)
        for row in fixture(identity)["neutral"]["registers"]:
            found = devices[template.device_id].get(row["address"], len(row["words"].split()))
            assert found == row["words"]
        second.close()


@pytest.mark.parametrize(
    "identity", [i for i in HOLDABLE if any(w.readback for w in load_template(i).hold.write)]
)
async def test_a_setpoint_that_does_not_take_is_refused(identity):
    case = fixture(identity)["hold"][0]
    async with device_of(identity) as (template, devices, port):
        site = site_of(identity, port)
        await site.poll(0.0)
        tells = next(w for w in template.hold.write if w.tells)
        devices[template.device_id].deaf.add(tells.address)
        with pytest.raises(DeviceRefusedError, match="did not take the setpoint"):
            await site.battery.command(case["ask_w"], 60, 0.0)
        site.close()


async def test_half_a_setpoint_is_given_back_at_once():
    async with polled("goodwe-et") as (site, registers):
        await site.battery.command(-1_000, 60, 0.0)
        registers.deaf.add(47_512)  # from now on the power stays, only the mode moves
        with pytest.raises(DeviceRefusedError, match="power is 03E8 after 07D0 was written"):
            await site.battery.command(2_000, 60, 0.0)
        assert registers.get(47_511, 1) == "0001"


@pytest.mark.parametrize("identity", HOLDABLE)
async def test_whoever_has_our_notes_can_give_the_battery_back(identity):
    """The writes that another process is left with, in order, and what proves that they worked."""
    facts = fixture(identity)
    async with polled(identity) as (site, registers):
        source = only(site).source
        registers.writes.clear()
        await site.battery.command(facts["hold"][0]["ask_w"], 60, 0.0)
        held = [address for address, _ in registers.writes]
        notes, proof = source.neutral_writes(), source.neutral_proof()
        order = [address for address, _ in notes]
        again = [address for address in order if address in held]
        assert again == [address for address in reversed(held) if address in order]
        for address, words in notes:
            for i, word in enumerate(words):
                registers.tables["holding"][address + i] = word
        for row in facts["neutral"]["registers"]:
            assert registers.get(row["address"], len(row["words"].split())) == row["words"], row
        for address, words in proof:
            assert registers.get(address, len(words)) == " ".join(f"{w:04X}" for w in words)
        if proof:
            assert await source.is_neutral()


async def test_the_switch_that_was_thrown_last_is_thrown_back_first():
    async with polled("sungrow-sh") as (site, registers):
        await site.battery.command(-1_000, 60, 0.0)
        assert [address for address, _ in registers.writes] == [13_051, 13_050, 13_049]
        registers.writes.clear()
        await site.battery.restore_neutral(0.0)
        assert [address for address, _ in registers.writes] == [13_049, 13_050]


async def test_a_battery_without_registers_to_hold_it_by_is_read_only():
    async with device_of("deye-storage") as (_template, _devices, port):
        site = site_of("deye-storage", port)
        assert (await site.poll(0.0)).battery_w == 700
        with pytest.raises(DeviceRefusedError, match="no registers to hold"):
            await site.battery.command(1_000, 60, 0.0)
        assert site.battery.ok
        site.close()


async def test_a_setpoint_changed_by_someone_else_is_reported_once_and_the_end_of_a_lease_is_not():
    async with polled("foxess-h3", notes := Notes()) as (site, registers):
        await site.battery.command(-1_000, 60, 0.0)
        await site.poll(1.0)
        assert notes.lines == []
        registers.put("holding", 44_002, "0000 0001")
        await site.poll(2.0)
        await site.poll(3.0)
        assert notes.lines == [("battery setpoint changed by someone else", None)]
        await site.battery.command(-1_000, 60, 4.0)
        registers.put("holding", 44_000, "0000")  # the device's own timer ran out
        await site.poll(5.0)
        assert len(notes.lines) == 1


async def test_a_blink_does_not_take_our_power_for_a_stranger_s():
    async with polled("foxess-h3") as (site, registers):
        await site.battery.command(-1_000, 60, 0.0)
        only(site).lose(DeviceRefusedError("a blink"), 0.0)
        await site.poll(99.0)
        assert registers.get(44_000, 1) == "0001"


async def test_flash_is_written_when_something_changes_and_only_so_often():
    async with device_of("marstek-venus") as (_template, devices, port):
        site = site_of("marstek-venus", port)
        await site.poll(0.0)
        await site.battery.command(-500, 60, 0.0)
        devices[1].writes.clear()
        await site.battery.command(-500, 60, 0.0)
        assert len(devices[1].writes) == 3, "no flash: every renewal is a sign of life"
        site.close()
    async with device_of("goodwe-et") as (template, devices, port):
        site = site_of("goodwe-et", port)
        await site.poll(0.0)
        source, writes = only(site).source, devices[247].writes
        await source.hold(-500, 60)
        writes.clear()
        await source.hold(-500, 60)
        assert writes == []
        budget = template.hold.writes_per_day
        with pytest.raises(DeviceRefusedError, match="used up"):
            for power_w in range(100, 100 + 2 * budget):
                await source.hold(-power_w, 60)
        assert budget - 200 < len(writes) <= budget
        await source.restore_neutral()
        assert await source.is_neutral(), "giving back is always allowed"
        site.close()


async def test_a_period_in_flash_is_begun_anew_before_it_ends_and_not_at_every_renewal():
    """An unchanged renewal writes nothing, so a period would end under a power still held."""
    async with device_of("huawei-sun2000") as (template, devices, port):
        site = site_of("huawei-sun2000", port)
        await site.poll(0.0)
        source, writes = only(site).source, devices[template.device_id].writes
        source._monotonic_s = lambda: now_s
        rewound_s = []
        for now_s in range(0, 3_600, 25):
            writes.clear()
            await site.battery.command(-1_500, 45, now_s)
            written = [address for address, _ in writes]
            assert now_s == 0 or written in ([], [47_083, 47_100])
            rewound_s += [now_s] if 47_100 in written else []
        assert rewound_s == [0, 600, 1200, 1800, 2400, 3000]
        (minutes,) = (write.hold for write in template.hold.write if write.name == "minutes")
        assert template.hold.rewind_s + 45 < 60 * minutes
        await site.battery.restore_neutral(now_s)
        writes.clear()
        await site.battery.command(-1_500, 45, now_s)
        assert [address for address, _ in writes] == [47_083, 47_100], "a new period begins"
        site.close()


async def test_a_full_disk_refuses_setpoints_and_gives_the_battery_back(monkeypatch):
    """Writes that cannot be counted are not made, but for the one that ends them."""
    async with polled("goodwe-et") as (site, registers):
        source = only(site).source
        await site.battery.command(-500, 60, 0.0)

        def full(_store):
            raise sqlite3.OperationalError("database or disk is full")

        monkeypatch.setattr(MemoryStore, "atomic", full)
        assert not source.admits_foreign([1]), "nor is a guest's"
        with pytest.raises(DeviceRefusedError, match="cannot be counted: database or disk is full"):
            await site.battery.command(-900, 60, 0.0)
        assert registers.get(47_511, 1) == "0001"
        monkeypatch.undo()
        await site.battery.command(-500, 60, 0.0)
        monkeypatch.setattr(MemoryStore, "atomic", full)
        await site.battery.restore_neutral(1.0)
        assert registers.get(47_511, 1) == "0001"


async def test_a_read_never_falls_between_the_writes_of_a_setpoint():
    """Half of a new setpoint is not the old one: it would be reported as somebody else's."""
    async with polled("sungrow-sh", notes := Notes()) as (site, _registers):
        await site.battery.command(-500, 60, 0.0)
        for turn in range(10):
            power_w = -1_000 if turn % 2 else 500
            await asyncio.gather(site.poll(turn), site.battery.command(power_w, 60, turn))
            await asyncio.gather(site.battery.command(-power_w, 60, turn), site.poll(turn))
        assert notes.lines == []


async def test_a_battery_lost_while_it_was_given_back_is_given_back_on_its_return():
    """Our lease is over then: what it still holds is nobody's."""
    async with polled("foxess-h3") as (site, registers):
        await site.battery.command(-1_000, 60, 0.0)
        link = only(site).source._link
        only(site).source._link = Unplugged()
        with pytest.raises(DeviceLostError):
            await site.battery.restore_neutral(1.0)
        only(site).source._link = link
        await site.poll(99.0)
        assert registers.get(44_000, 1) == "0000"


async def test_a_hybrid_is_one_device_with_one_connection_and_one_poll():
    async with device_of("sungrow-sh") as (_template, _devices, port):
        site = site_of("sungrow-sh", port)
        state = await site.poll(0.0)
        assert site.meter.device is site.battery.device is site.inverters[0].device
        assert (state.grid_w, state.pv_w, state.battery_w) == (2500, 3100, -1200)
        assert state.load_w == 2500 + 3100 - 1200
        assert len(site.devices) == 1
        site.close()


async def test_of_a_hybrid_only_what_is_wanted_is_used():
    async with device_of("sungrow-sh") as (_template, _devices, port):
        site = site_of("sungrow-sh", port, use=("pv", "battery"))
        state = await site.poll(0.0)
        assert site.meter is None
        assert (state.grid_w, state.import_wh) == (0, None)
        sample = await only(site).source.read()
        assert all(getattr(sample, name) is None for name in NEEDS["grid"])
        site.close()


async def test_a_hybrid_leaves_a_place_that_is_taken():
    async with device_of("sungrow-sh") as (_t, _d, port), device_of("eastron-sdm630") as meter:
        configs = [
            configured("eastron-sdm630", meter[2]).model_copy(update={"name": "meter"}),
            configured("sungrow-sh", port),
        ]
        site = Site(configs, 2.0, notes := Notes())
        state = await site.poll(0.0)
        assert state.devices == {"meter": "ok", "it": "ok"}
        assert (state.grid_w, state.pv_w) == (-1820, 3100)
        assert notes.lines == [("capability not used", "the site already has one for grid")]
        site.close()


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"template": "warp-core"}, "unknown template 'warp-core'"),
        ({"template": "eastron-sdm999"}, "did you mean eastron-sdm120 or"),
        ({"template": "sungrow-sh"}, "max_charge_w is missing"),
        (
            {"template": "sungrow-sh", "max_charge_w": 99_999_999, "max_discharge_w": 1_000},
            "max_charge_w lies between 100 and 30000 W, not at 99999999",
        ),
        (
            {"template": "marstek-venus", "max_charge_w": "lots"},
            "max_charge_w is a whole number, not 'lots'",
        ),
        ({"template": "marstek-venus", "speed": 3}, "speed is no parameter of marstek-venus"),
        ({"template": "sungrow-sg", "use": ("grid",)}, "sungrow-sg has no capability grid"),
        (
            {"template": "sma-sunny-boy", "connection": "rtu", "path": "/dev/ttyUSB0"},
            "sma-sunny-boy has no serial line",
        ),
        ({"template": "eastron-sdm630", "connection": "rtu"}, "path"),
    ],
)
async def test_a_device_that_is_set_up_wrong_is_disabled_and_the_site_runs(keys, why):
    async with device_of("shelly-pro-3em") as (_template, _devices, port):
        odd = Device(name="odd", kind="template", **keys)
        site = Site([odd, configured("shelly-pro-3em", port)], 2.0, Notes())
        state = await site.poll(0.0)
        assert state.devices["it"] == "ok"
        assert state.devices["odd"].startswith("disabled: ")
        assert why in state.devices["odd"]
        site.close()


async def test_a_register_that_smaller_products_lack_is_asked_for_once():
    async with device_of("alpha-ess-smile") as (_template, _devices, port):
        asked = []
        site = site_of("alpha-ess-smile", port)
        source = only(site).source
        read = source._link.read

        async def noted(unit, address, count, table):
            asked.append(address)
            return await read(unit, address, count, table)

        source._link.read = noted
        await site.poll(0.0)
        await site.poll(1.0)
        assert asked.count(1_063) == 1
        assert asked.count(1_055) == 2
        site.close()
