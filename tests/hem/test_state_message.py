"""What a home tells of itself where its addresses change."""

from hem.ems.state_message import state_to_tell

STATE = {
    "devices": {"meter": "ok", "battery": "lost"}, "load_w": 700, "pv_w": 0, "battery_w": 250,
    "grid_w": 450, "soc_permille": 400, "import_wh": 12_345, "export_wh": 1, "generation_wh": 2,
    "battery": {"capacity_wh": 5_000}, "time_ms": 1,
}  # fmt: skip


def test_a_household_that_says_nothing_tells_its_health_and_nothing_measured():
    """Powers or registers, added up over a slot, are the receipt of its address on the chain."""
    assert state_to_tell(STATE, shares_powers=False) == {"devices": STATE["devices"]}


def test_what_the_gateway_will_tell_one_day_is_not_shared_before_somebody_thinks_of_it():
    assert state_to_tell({**STATE, "heat_pump_w": 900}, shares_powers=False).keys() == {"devices"}


def test_who_shares_them_tells_powers_registers_and_charge():
    assert state_to_tell(STATE, shares_powers=True).keys() == STATE.keys() - {"battery", "time_ms"}
