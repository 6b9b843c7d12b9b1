"""
TMI's aggregator auction: an aggregator that is short of its schedule bids for energy.

Prosumers' offers below the aggregator's price are taken in increasing order of price until the
quantity is reached; money is released when the smart meters have verified delivery.

Source: Siano et al. (2019), section V-C.
"""

from __future__ import annotations

from sim.scenarios import Outcome, Tell, expect, scenario
from sim.scenarios.balances import read
from sim.scenarios.delivery import both, deliver, gained, settle
from sim.stage import Stage
from wire.units import cost_uc

SHORT_WH, CAP = 1_500, 280_000
OFFERS = {
    "p1": (700, 200_000),
    "p2": (500, 120_000),
    "p3": (300, 300_000),
    "p4": (800, 150_000),
    "p5": (600, 260_000),
}
"""Energy [Wh] and price [µ¤/kWh], in the order in which they come."""
TAKEN = [("p2", 500, 120_000), ("p4", 800, 150_000), ("p1", 200, 200_000)]
"""Cheapest first, the last in part; p5 is not needed, p3 is dearer than the aggregator's price."""
AUCTION = "tmi-short"


@scenario(
    "tmi-aggregator-auction",
    paper="TMI (Siano et al. 2019), section V-C",
    claim="An aggregator short of 1.5 kWh takes the cheapest offers; money moves after delivery.",
)
async def aggregator_auction(stage: Stage, tell: Tell) -> Outcome:
    """A reverse auction, pay-as-bid."""
    homes = {
        name: await stage.home(name, production_wh=wh, consumption_wh=0)
        for name, (wh, _) in OFFERS.items()
    }
    slot = stage.slot0
    before = await read(*homes.values(), stage.supervisor)
    deploy = {
        "op": "deploy-auction", "auction": AUCTION, "template": "reverse", "slot": slot,
        "energyWh": SHORT_WH, "priceUcPerKwh": CAP, "pricing": "as-bid",
    }  # fmt: skip
    expect("the auction is opened", ["OK"], (await stage.supervisor.submit(deploy))["codes"])
    tell(f"The aggregator is short of {SHORT_WH} Wh and bids {CAP / 10**6:.2f} ¤/kWh.")
    for name, (wh, price) in OFFERS.items():
        offer = {
            "op": "auction-bid", "auction": AUCTION, "energyWh": wh, "priceUcPerKwh": price,
        }  # fmt: skip
        expect(f"{name}'s offer", ["OK"], (await homes[name].submit(offer))["codes"])
        tell(f"{name} offers {wh} Wh at {price / 10**6:.2f} ¤/kWh.")

    await stage.to_ms(stage.genesis.gate_ms(slot) + 1_000)
    [cleared] = stage.events("auction-cleared")
    taken = [
        (stage.name_of(one["address"]), one["energyWh"], one["priceUcPerKwh"])
        for one in cleared["awards"]
    ]
    expect("offers taken, in increasing price", TAKEN, taken)
    for name, wh, price in taken:
        tell(f"Taken: {name}, {wh} Wh at {price / 10**6:.2f} ¤/kWh.")
    for one in cleared["rejected"]:
        tell(f"Not taken: {stage.name_of(one['address'])}, {one['energyWh']} Wh ({one['reason']}).")

    sold_wh = {name: wh for name, wh, _ in taken}
    owed_uc = {name: cost_uc(wh, price) for name, wh, price in taken}
    await stage.to_slot(slot + 1, 5)
    waiting = await read(*homes.values())
    homes_before = {name: before[name] for name in homes}
    expect("prosumers are paid before delivery [µ¤]", dict.fromkeys(homes, 0),
           gained(homes_before, waiting))  # fmt: skip
    tell("The slot is over, nobody has been paid.")
    await deliver(stage, slot, {home: -sold_wh.get(name, 0) for name, home in homes.items()})
    tell("Every meter has signed what it delivered.")
    await settle(stage, slot)
    after = await read(*homes.values(), stage.supervisor)
    paid = {name: owed_uc.get(name, 0) for name in homes}
    expect("paid after delivery [µ¤]", {**paid, "supervisor": -sum(owed_uc.values())},
           gained(before, after))  # fmt: skip
    tell(f"Settled: {sum(owed_uc.values()):,} µ¤ went to {', '.join(owed_uc)}.")
    return {
        "boughtWh": cleared["boughtWh"],
        "taken": [list(row) for row in taken],
        "balances": both(before, after),
    }
