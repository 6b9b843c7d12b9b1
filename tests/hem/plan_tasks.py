"""Tasks for tests of planning: random ones, tiny ones, and the best plan by trying everything."""

from functools import cache

from hypothesis import strategies as st

from hem.controller.battery import Battery
from hem.controller.plan import Car, Deferrable, Outlook, Task, Worth
from hem.controller.planning import Step, assemble

FIRST = 1_000
prices = st.integers(-100_000, 400_000)


@st.composite
def outlooks(draw, slots):
    limits = st.sampled_from([10**8, 10**8, 2_000, 700, 300, 0])
    import_limit_wh, export_limit_wh = draw(limits), draw(limits)
    negative = draw(st.booleans())
    price = prices if negative else st.integers(0, 400_000)
    loads_wh = st.integers(0, draw(st.sampled_from([100, 1_000])))
    suns_wh = st.integers(0, draw(st.sampled_from([0, 300, 2_000])))
    return tuple(
        Outlook(
            load_wh=draw(loads_wh),
            pv_wh=draw(suns_wh),
            import_price_uc_per_kwh=draw(price),
            export_price_uc_per_kwh=draw(price),
            import_limit_wh=import_limit_wh,
            export_limit_wh=export_limit_wh,
        )
        for _ in range(slots)
    )


@st.composite
def batteries(draw):
    low, high = sorted(draw(st.tuples(st.integers(0, 1000), st.integers(0, 1000))))
    return Battery(
        capacity_wh=draw(st.integers(1, 12_000)),
        max_charge_w=draw(st.integers(0, 6_000)),
        max_discharge_w=draw(st.integers(0, 6_000)),
        charge_permille=draw(st.sampled_from([1000, 949, 700])),
        discharge_permille=draw(st.sampled_from([1000, 949, 700])),
        soc_min_permille=low,
        soc_max_permille=high,
    )


@st.composite
def deferrables(draw, slots, name):
    earliest = draw(st.integers(-2, slots))
    return Deferrable(
        name=name,
        profile_wh=tuple(draw(st.lists(st.integers(0, 900), min_size=1, max_size=4))),
        earliest_slot=FIRST + earliest,
        end_slot=FIRST + earliest + draw(st.integers(0, slots + 2)),
    )


@st.composite
def cars(draw, slots):
    places = draw(st.sets(st.integers(-1, slots + 1)))
    least_wh = draw(st.sampled_from([0, 1, 345]))
    need_wh = draw(st.integers(0, 4_000))
    return Car(
        plugged_slots=tuple(FIRST + place for place in sorted(places)),
        ready_slot=FIRST + draw(st.integers(0, slots + 1)),
        need_wh=need_wh,
        soon_wh=draw(st.integers(0, need_wh)),
        min_charge_wh=least_wh,
        max_charge_wh=least_wh + draw(st.integers(0, 2_500)),
        charge_permille=draw(st.sampled_from([1000, 900, 333])),
    )


@st.composite
def tasks(draw, slots_max=24):
    slots = draw(st.integers(1, slots_max))
    battery = draw(st.none() | batteries())
    falling = sorted(draw(st.lists(st.integers(0, 400_000), max_size=4)), reverse=True)
    names = "abc"[: draw(st.integers(0, 3))]
    return Task(
        first_slot=FIRST,
        slot_seconds=draw(st.sampled_from([900, 3600])),
        slots=draw(outlooks(slots)),
        battery=battery,
        soc_wh=draw(st.integers(0, battery.capacity_wh)) if battery else 0,
        degradation_uc_per_kwh=draw(st.sampled_from([0, 60_000])),
        worth=tuple(
            Worth(energy_wh=draw(st.integers(0, 4_000)), price_uc_per_kwh=price)
            for price in falling
        ),
        loads=tuple(draw(deferrables(slots, name)) for name in names),
        car=draw(st.none() | cars(slots)),
        can_curtail=draw(st.booleans()),
    )


@st.composite
def tiny_tasks(draw, losses=False):
    """Few slots, a battery of a few Wh, ample limits, at most one load."""
    slots = draw(st.integers(1, 4))
    efficiency = draw(st.sampled_from([900, 949])) if losses else 1000
    battery = Battery(
        capacity_wh=draw(st.integers(1, 12)),
        max_charge_w=draw(st.integers(0, 6)),
        max_discharge_w=draw(st.integers(0, 6)),
        charge_permille=efficiency,
        discharge_permille=efficiency,
        soc_min_permille=draw(st.sampled_from([0, 250])),
    )
    load = draw(st.none() | deferrables(slots, "a"))
    energies = st.integers(0, 6)
    return Task(
        first_slot=FIRST,
        slot_seconds=3600,
        slots=tuple(
            Outlook(
                load_wh=draw(energies),
                pv_wh=draw(energies),
                import_price_uc_per_kwh=1_000 * draw(st.integers(-50, 400)),
                export_price_uc_per_kwh=1_000 * draw(st.integers(-50, 400)),
            )
            for _ in range(slots)
        ),
        battery=battery,
        soc_wh=draw(st.integers(battery.floor_wh, battery.capacity_wh)),
        degradation_uc_per_kwh=draw(st.sampled_from([0, 60_000])),
        worth=(Worth(energy_wh=12, price_uc_per_kwh=1_000 * draw(st.integers(0, 400))),),
        loads=(load,) if load else (),
    )


def cheapest_uc(task):
    """The cost of the best plan in whole Wh [µ¤], by trying every start and every step."""
    load = task.loads[0] if task.loads else None
    choices = [{}]
    if load:
        choices = [{load.name: slot} for slot in load.starts(FIRST, len(task.slots))] or [{}]
    return min(_cheapest_steps(task, starts) for starts in choices)


def _cheapest_steps(task, starts):
    battery = task.battery

    @cache
    def from_here(at, soc_wh):
        if at == len(task.slots):
            return 0, ()
        most_wh = battery.charge_limit_wh(soc_wh, task.slot_seconds)
        least_wh = battery.discharge_limit_wh(soc_wh, task.slot_seconds)
        found = []
        for power_wh in range(-least_wh, most_wh + 1):
            step = Step(max(power_wh, 0), max(-power_wh, 0))
            after_wh = battery.after(soc_wh, step.charge_wh, step.discharge_wh)
            rest_uc, rest = from_here(at + 1, after_wh)
            alone = _alone(task, starts, at, step, after_wh)
            found.append((alone + rest_uc, (step, *rest)))
        return min(found, key=lambda one: one[0])

    steps = from_here(0, task.soc_wh)[1]
    return assemble(task, starts, (), steps, "rules").cost_uc


def _alone(task, starts, at, step, after_wh):
    """What a slot costs [µ¤/1000], and in the last one less what is left."""
    each = task.slots[at]
    flexible_wh = 0
    for load in task.loads:
        if load.name in starts and 0 <= FIRST + at - starts[load.name] < len(load.profile_wh):
            flexible_wh = load.profile_wh[FIRST + at - starts[load.name]]
    grid_wh = each.load_wh + flexible_wh + step.charge_wh - step.discharge_wh - each.pv_wh
    price = each.import_price_uc_per_kwh if grid_wh > 0 else each.export_price_uc_per_kwh
    cost = grid_wh * price + step.discharge_wh * task.degradation_uc_per_kwh
    if at + 1 == len(task.slots):
        (part,) = task.worth
        left_wh = after_wh - task.battery.floor_wh
        cost -= min(left_wh, part.energy_wh) * part.price_uc_per_kwh
    return cost
