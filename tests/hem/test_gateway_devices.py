"""Engineering values come out right; one broken device never stops the others (real sockets)."""

import asyncio
import time
from contextlib import asynccontextmanager
from fractions import Fraction
from pathlib import Path

import pytest
from support.patience import PATIENCE_S

from hem.config import Device
from hem.gateway.devices import Site
from hem.gateway.links import Connection, link_for
from hem.gateway.modbus import DeviceLostError, DeviceRefusedError
from hem.gateway.roles import Inverter
from hem.gateway.sunspec import Snapshot, discover, model_points, read
from hem.gateway.sunspec_device import SunSpecSource
from runtime.clock import SystemClock
from sim.battery_physics import WMS_PER_WH, BatteryFacts, HomePhysics
from sim.sunspec_server import BATTERY_ID, INVERTER_ID, METER_ID, HomeDevices

HOUR_MS = 3_600_000
NOON_MS = 1_780_315_200_000


class FrozenClock(SystemClock):
    """Market time that moves when told; real time is real."""

    def __init__(self, now_ms):
        self.market_ms = now_ms

    def now_ms(self):
        return self.market_ms


class Notes:
    """A log that remembers."""

    def __init__(self):
        self.lines = []

    def info(self, event, **facts):
        self.lines.append((event, facts.get("device")))

    warning = info


@asynccontextmanager
async def home(load_w=1500, pv_w=4000, battery=None, soc_wh=5000):
    clock = FrozenClock(NOON_MS)
    physics = HomePhysics(
        NOON_MS,
        60_000,
        lambda ms: load_w,
        lambda ms: pv_w,
        battery,
        Fraction(soc_wh * WMS_PER_WH),
    )
    devices = HomeDevices("home-01", physics, clock, has_pv=True)
    port = await devices.start("127.0.0.1", 0)
    try:
        yield clock, devices, port
    finally:
        await devices.stop()


def config(port, name, kind, device_id):
    return Device(name=name, kind=kind, port=port, device_id=device_id)


def all_of(port):
    return [
        config(port, "meter", "sunspec-meter", METER_ID),
        config(port, "pv", "sunspec-inverter", INVERTER_ID),
        config(port, "battery", "sunspec-battery", BATTERY_ID),
    ]


FACTS = BatteryFacts(10_000, 5_000, 4_000, 900, 900)


async def test_every_value_of_a_site_is_read_right():
    async with home(battery=FACTS) as (clock, _devices, port):
        site = Site(all_of(port), 1.0, notes := Notes())
        clock.market_ms += HOUR_MS
        state = await site.poll(0.0)
        # Surplus 2500 W charges the battery at 90 %: nothing crosses the connection.
        assert (state.grid_w, state.pv_w, state.battery_w, state.load_w) == (0, 4000, -2500, 1500)
        assert (state.import_wh, state.export_wh, state.generation_wh) == (0, 0, 4000)
        assert state.soc_permille == 725
        assert state.battery is not None
        assert state.battery.capacity_wh == 10_000
        assert (state.battery.max_charge_w, state.battery.max_discharge_w) == (5_000, 4_000)
        assert state.devices == {"meter": "ok", "pv": "ok", "battery": "ok"}
        assert site.meter.nameplate == {
            "vendor": "Simulated",
            "model": "HG-METER-3P",
            "firmware": "1.0",
            "serial": "home-01-m",
        }
        assert notes.lines == []
        site.close()


async def test_a_command_reaches_the_battery_and_export_is_negative():
    async with home(battery=FACTS) as (clock, _devices, port):
        site = Site(all_of(port), 1.0, Notes())
        await site.poll(0.0)
        assert await site.battery.command(3_333, 60, 0.0) == 3_333
        clock.market_ms += HOUR_MS
        state = await site.poll(0.0)
        assert state.battery_w == 3_333
        assert state.grid_w == 1500 - 4000 - 3333
        assert (state.import_wh, state.export_wh) == (0, 5_833)
        assert await site.battery.command(-99_999, 60, 0.0) == -5_000
        assert (await site.poll(0.0)).grid_w == 1500 - 4000 + 5000
        await site.battery.restore_neutral(0.0)
        assert (await site.poll(0.0)).battery_w == -2500
        site.close()


async def test_the_device_ends_the_lease_by_itself():
    async with home(battery=FACTS) as (_clock, devices, port):
        site = Site(all_of(port), 1.0, Notes())
        await site.poll(0.0)
        await site.battery.command(1_000, 1, 0.0)
        assert (await site.poll(0.0)).battery_w == 1_000
        site.close()  # nobody is left to restore it
        await asyncio.sleep(1.1)
        fresh = Site(all_of(port)[:1], 1.0, Notes())
        assert (await fresh.poll(0.0)).grid_w == 0
        assert devices.images[BATTERY_ID].get(124, "StorCtl_Mod") == 0
        fresh.close()


@pytest.mark.parametrize("shown", [0xFFFF, 0])
async def test_a_battery_of_124_whose_timer_is_not_there_is_not_held(shown):
    """The timer is optional: a battery that drops it would go on for ever if we died."""
    async with home(battery=FACTS) as (_clock, devices, port):
        battery = devices.images[BATTERY_ID]
        devices._commanded = lambda: battery.set(124, InOutWRte_RvrtTms=shown)
        site = Site(all_of(port), PATIENCE_S, Notes())
        await site.poll(0.0)
        with pytest.raises(DeviceRefusedError, match="no reversion timer"):
            await site.battery.command(2_000, 60, 0.0)
        assert battery.get(124, "StorCtl_Mod") == 0, "it is given back at once"
        site.close()


async def test_a_battery_of_124_that_does_not_go_back_is_no_success():
    """Neutral is read back: what was written and not done is told."""
    async with home(battery=FACTS) as (_clock, devices, port):
        battery = devices.images[BATTERY_ID]
        site = Site(all_of(port), PATIENCE_S, Notes())
        await site.poll(0.0)
        await site.battery.command(2_000, 60, 0.0)
        devices._commanded = lambda: battery.set(124, StorCtl_Mod=3)
        with pytest.raises(DeviceRefusedError, match="not in its own mode"):
            await site.battery.restore_neutral(1.0)
        assert site.battery.holds(2.0), "nor may a guest write to it"
        site.close()


async def test_a_setpoint_left_by_another_is_undone_on_arrival_but_ours_is_kept():
    async with home(battery=FACTS) as (_clock, _devices, port):
        first = Site(all_of(port), 1.0, Notes())
        await first.poll(0.0)
        await first.battery.command(2_000, 60, 0.0)
        first.battery.device.lose(DeviceLostError("a blink"), 0.0)
        assert (await first.poll(99.0)).battery_w == 2_000
        second = Site(all_of(port), 1.0, Notes())
        await second.poll(0.0)
        assert (await second.poll(0.0)).battery_w == -2_500
        first.close()
        second.close()


async def test_a_setpoint_changed_by_someone_else_is_noticed_once():
    async with home(battery=FACTS) as (_clock, _devices, port):
        site = Site(all_of(port), 1.0, notes := Notes())
        await site.poll(0.0)
        await site.battery.command(2_000, 60, 0.0)
        intruder = link_for(Connection(host="127.0.0.1", port=port), 1.0)
        chain = await discover(intruder, BATTERY_ID)
        block = next(block for block in chain if block.model == 124)
        address = block.address + model_points(124)["OutWRte"].offset
        await intruder.write(BATTERY_ID, address, [123])
        await site.poll(0.0)
        await site.poll(0.0)
        assert notes.lines == [("battery setpoint changed by someone else", "battery")]
        intruder.close()
        site.close()


async def test_values_not_available_are_not_taken_for_numbers():
    async with home(battery=FACTS) as (_clock, devices, port):
        site = Site(all_of(port), 1.0, Notes())
        hide = devices.refresh

        def refresh():
            hide()
            devices.images[INVERTER_ID].set(103, W=None)
            devices.images[BATTERY_ID].set(802, SoC=None)
            devices.images[METER_ID].set(203, W=None)

        devices.refresh = refresh
        state = await site.poll(0.0)
        assert state.pv_w == 0  # an inverter asleep
        assert state.soc_permille == 500  # model 124 knows it too
        assert state.devices == {"meter": "lost", "pv": "ok", "battery": "ok"}
        site.close()


@pytest.mark.parametrize(
    ("registers", "expected"),
    [([0x8000, 0], None), ([0xFFFB, 0], -5), ([123, 1], 1230), ([123, 0xFFFE], "1.23")],
)
def test_scale_factor_and_not_available_of_a_signed_point(registers, expected):
    points = model_points(203)
    model = [0] * 107
    model[points["W"].offset], model[points["W_SF"].offset] = registers
    number = Snapshot({203: model}).number("203:W")
    assert number == expected if not isinstance(expected, str) else str(number) == expected


def test_a_64_bit_and_a_float_point_and_a_fall_back():
    points = model_points(213)
    model = [0] * 126
    offset = points["W"].offset
    model[offset : offset + 2] = [0xC2F7, 0x0000]  # -123.5
    assert Snapshot({213: model}).number("203:W", "213:W") == -123.5
    model[offset : offset + 2] = [0x7FC0, 0]  # not a number: not available
    assert Snapshot({213: model}).number("203:W", "213:W") is None
    points = model_points(701)
    model = [0] * 155
    offset = points["TotWhInj"].offset
    model[offset : offset + 4] = [0, 1, 0, 0]
    assert Snapshot({701: model}).number("701:TotWhInj") == 2**32


class Wall:
    """A fake link: registers in a dictionary."""

    def __init__(self, registers):
        self.registers, self.reads = registers, []

    async def read(self, device_id, address, count):
        self.reads.append((address, count))
        wanted = range(address, address + count)
        if not all(a in self.registers for a in wanted):
            raise DeviceRefusedError("illegal address")
        return [self.registers[a] for a in wanted]


def image(base, *words):
    return dict(enumerate([0x5375, 0x6E53, *words], base))


@pytest.mark.parametrize("base", [40_000, 50_000, 0])
async def test_discovery_finds_the_marker_wherever_it_is(base):
    wall = Wall(image(base, 1, 2, 7, 7, 64_999, 1, 5, 0xFFFF, 0))
    chain = await discover(wall, 1)
    assert [(b.model, b.address - base, b.size) for b in chain] == [(1, 2, 4), (64_999, 6, 3)]


@pytest.mark.parametrize(
    "registers",
    [{}, dict.fromkeys(range(40_000, 40_010), 0), image(0, *[0, 0] * 200), image(0, 1, 60_000)],
    ids=["nothing", "no marker", "models of no length for ever", "past the end"],
)
async def test_what_is_not_a_chain_is_refused(registers):
    with pytest.raises(DeviceRefusedError):
        await discover(Wall(registers), 1)


async def test_neighbouring_models_are_read_in_one_request_and_long_ones_in_several():
    words = [802, 62, *[1] * 62, 124, 24, *[2] * 24, 701, 153, *[3] * 153, 0xFFFF, 0]
    wall = Wall(image(40_000, *words))
    chain = await discover(wall, 1)
    wall.reads.clear()
    snapshot = await read(wall, 1, chain, (802, 124, 701))
    assert wall.reads == [(40_002, 90), (40_092, 125), (40_217, 30)]
    assert snapshot.number("124:WChaMax") is not None


async def test_a_mute_device_does_not_block_the_others():
    mute = await asyncio.start_server(lambda r, w: r.read(), "127.0.0.1", 0)
    mute_port = mute.sockets[0].getsockname()[1]
    async with home() as (_clock, _devices, port):
        configs = [
            config(mute_port, "pv-2", "sunspec-inverter", 1),
            *all_of(port)[:2],
        ]
        site = Site(configs, 0.3, notes := Notes())
        start_s = time.monotonic()
        state = await site.poll(start_s)
        assert time.monotonic() - start_s < 5.0
        assert state.devices == {"meter": "ok", "pv-2": "lost", "pv": "ok"}
        assert state.pv_w == 4000
        start_s = time.monotonic()
        for _ in range(20):  # its pause: nobody waits for it
            await site.poll(start_s)
        assert time.monotonic() - start_s < 3.0, "twenty times 0.3 s if they waited"
        assert notes.lines == [("device lost", "pv-2")]
        site.close()
    mute.close()


async def test_a_loss_is_logged_once_and_so_is_the_return():
    async with home() as (_clock, devices, port):
        site = Site(all_of(port)[:2], 0.5, notes := Notes())
        await site.poll(0.0)
        await devices.stop()
        for second in range(10, 50, 10):
            state = await site.poll(float(second))
        assert state.devices == {"meter": "lost", "pv": "lost"}
        assert state.generation_wh is not None  # a register does not vanish with its device
        assert sorted(notes.lines) == [("device lost", "meter"), ("device lost", "pv")]
        notes.lines.clear()
        await devices.start("127.0.0.1", port)
        await site.poll(99.0)
        await site.poll(100.0)
        assert sorted(notes.lines) == [("device back", "meter"), ("device back", "pv")]
        site.close()


async def test_an_unknown_kind_is_disabled_with_a_reason_and_the_site_runs():
    async with home() as (_clock, _devices, port):
        odd = config(port, "warp", "warp-core", 9)
        spare = config(port, "meter-2", "sunspec-meter", METER_ID)
        site = Site([odd, *all_of(port)[:1], spare], 1.0, Notes())
        state = await site.poll(0.0)
        assert state.devices["meter"] == "ok"
        assert state.devices["warp"] == "disabled: unknown kind 'warp-core'"
        assert state.devices["meter-2"] == "disabled: the site already has 'meter' for grid"
        site.close()


async def test_nonsense_on_the_line_is_a_lost_device_and_no_crash():
    async def babble(reader, writer):
        while await reader.read(100):
            writer.write(b"\xff" * 300)

    server = await asyncio.start_server(babble, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    site = Site([config(port, "meter", "sunspec-meter", 1)], 0.2, Notes())
    assert (await site.poll(0.0)).devices == {"meter": "lost"}
    site.close()
    server.close()


HEX = "0123456789ABCDEF"
DUMPS = Path(__file__).parents[3] / "shared/data/modbus_devices/registers"


def dump_of_a_device(name):
    """A device's registers as recorded: base address and words, `----` where it refused to say."""
    path = DUMPS / name
    if not path.exists():
        pytest.skip(f"third-party register dumps are not at {DUMPS}")
    words, base = [], None
    for line in path.read_text().splitlines():
        if line.startswith("# HOLDING_REGISTER start"):
            base = int(line.split()[-1])
        words += [] if line.startswith("#") else line.split()
    return Wall({base + i: int(w, 16) for i, w in enumerate(words) if set(w) != {"-"}})


@pytest.mark.parametrize(
    ("name", "vendor", "power_w", "energy_wh"),
    [
        ("DeviceSMASunnyBoy36Dated20250518.hex", "SMA", 3_680, 30_388_530),
        ("EmulatedDER.hex", "DERSec", 9_800, 150),
    ],
)
async def test_recorded_inverters_are_understood(name, vendor, power_w, energy_wh):
    wall = dump_of_a_device(name)
    inverter = Inverter(config(1, "pv", "sunspec-inverter", 1), wall, notes := Notes())
    await inverter.poll(0.0)
    assert notes.lines == []
    assert inverter.nameplate["vendor"] == vendor
    assert (inverter.pv_w, inverter.generation_wh) == (power_w, energy_wh)


async def test_a_recorded_inverter_at_night_says_nothing_flows():
    wall = dump_of_a_device("DeviceSMASunnyBoy36Dated20250608.hex")
    inverter = Inverter(config(1, "pv", "sunspec-inverter", 1), wall, notes := Notes())
    await inverter.poll(0.0)
    assert notes.lines == []
    assert (inverter.pv_w, inverter.generation_wh) == (0, 30_847_780)


@pytest.mark.parametrize(
    ("name", "vendor", "pv_w", "generation_wh"),
    [
        ("DeviceSMASunnyBoy36Dated20250518.hex", "SMA", 3_680, 30_388_530),
        ("DeviceSMASunnyBoy36Dated20250608.hex", "SMA", None, 30_847_780),
        ("EmulatedDER.hex", "DERSec", 9_800, 150),
    ],
)
async def test_recorded_devices_say_themselves_what_they_are(name, vendor, pv_w, generation_wh):
    """Kind `sunspec`: storage models that nothing is connected to make no battery."""
    source = SunSpecSource(dump_of_a_device(name), 1)
    assert source.capabilities == frozenset()
    sample = await source.read()
    assert source.capabilities == {"pv"}
    assert sample.details["vendor"] == vendor
    assert (sample.pv_w, sample.generation_wh, sample.grid_w) == (pv_w, generation_wh, None)


async def test_a_recorded_device_that_is_not_sunspec_is_refused():
    path = DUMPS / "DeviceThermiaGenesisDated20250518.hex"
    if not path.exists():
        pytest.skip(f"third-party register dumps are not at {DUMPS}")
    holding = path.read_text().split("start hr:00000")[1].split("#")[0].split()
    words = {i: int(w, 16) for i, w in enumerate(holding) if set(w) <= set(HEX)}
    assert len(words) > 50
    with pytest.raises(DeviceRefusedError, match="not a SunSpec device"):
        await SunSpecSource(Wall(words), 1).read()


async def test_a_device_of_kind_sunspec_takes_the_roles_that_it_has():
    async with home(battery=FACTS) as (_clock, _devices, port):
        ids = {"m": METER_ID, "p": INVERTER_ID, "b": BATTERY_ID}
        configs = [config(port, name, "sunspec", device_id) for name, device_id in ids.items()]
        site = Site(configs, 1.0, notes := Notes())
        assert site.state().generation_wh is None, "one never met may be a generator"
        await site.poll(0.0)
        state = await site.poll(1.0)
        assert state.devices == {"m": "ok", "p": "ok", "b": "ok"}
        assert (state.grid_w, state.pv_w, state.battery_w) == (0, 4000, -2500)
        assert state.generation_wh is not None
        assert await site.battery.command(1_000, 60, 1.0) == 1_000
        assert (await site.poll(2.0)).battery_w == 1_000
        assert notes.lines == []
        site.close()


async def test_a_sunspec_device_that_was_never_met_keeps_readings_from_being_signed():
    async with home() as (_clock, _devices, port):
        never = Device(name="never", kind="sunspec", port=1)
        site = Site([*all_of(port)[:1], never], 0.3, Notes())
        state = await site.poll(0.0)
        assert state.devices == {"meter": "ok", "never": "lost"}
        assert state.generation_wh is None
        site.close()


async def test_a_hybrid_s_pv_is_what_the_battery_does_not_give():
    models = {
        103: [0] * 50, 802: [0] * 62, 124: [0] * 24,
    }  # fmt: skip
    for model, values in {
        103: {"W": 1_000, "WH": 7},
        802: {"WHRtg": 10, "WChaRteMax": 5, "WDisChaRteMax": 5, "W": 600, "SoC": 50},
        124: {"WChaMax": 5},
    }.items():
        for name, value in values.items():
            point = model_points(model)[name]
            models[model][point.offset + point.size - 3] = value
    words = [word for model, body in models.items() for word in (model, len(body), *body)]
    source = SunSpecSource(Wall(image(40_000, 1, 66, *[0] * 66, *words, 0xFFFF, 0)), 1)
    sample = await source.read()
    assert source.capabilities == {"pv", "battery"}
    assert (sample.pv_w, sample.battery_w, sample.generation_wh) == (400, 600, 7)
