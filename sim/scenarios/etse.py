"""
ETSE's illustrative scenario: n1 is short of energy, n3 and n5 offer, n3's meter is out of date.

n1's policy: below 50 Ah buy up to 60 Ah, at no more than £60/MWh. It holds 48 Ah, so it asks for
12 Ah; n3 offers them at 45, n5 at 50. Amperes become energy at the 48 V of a usual home battery
(the paper names no voltage): 12 Ah are 576 Wh. A £ is a ¤ here.

What plays the paper's security layer is the CSM-DB: while a participant's meter is out of date its
operator bans it, and whoever is banned gets no grant for an address, without which nobody offers
anything. So n3 is kept out before its offer, where the paper marks the offer itself invalid.

The paper does not say what n1 pays. The auction is the uniform-price double auction: the price lies
halfway between the dearest offer taken and the lowest price at which somebody left out, or n1's
own limit, would have come in.

Source: Lombardi et al. (2018), "Illustrative scenario".
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from csmdb.records import Refused
from csmdb.repository import SqlRepository
from csmdb.setup import CsmDb
from csmdb.sqlite import SqliteStorage
from runtime.rng import SystemRng
from sim.scenarios import Outcome, Tell, expect, scenario
from sim.scenarios.balances import read
from sim.scenarios.delivery import both, deliver, gained, settle
from sim.stage import Actor, Stage, meter_of
from wire.certificates import AddressGrant
from wire.keys import BoxKey, SigningKey, to_text
from wire.units import cost_uc

VOLTS = 48
LOW_AH, FULL_AH, STORED_AH = 50, 60, 48
CAP, N3_ASKS, N5_ASKS = 60_000, 45_000, 50_000
"""£60, 45 and 50 per MWh [µ¤/kWh]."""
CONNECTION_W = 10_000
AUCTION = "etse-n1"
PAPER = "ETSE (Lombardi et al. 2018), illustrative scenario"
NOT_SHOWN = (
    "n3 is kept out by an operator's ban before its offer is on the ledger. An advisory that names "
    "its meter, and a standing offer that is taken out, are in vulnerable-meter."
)


@dataclass(frozen=True)
class Node:
    """A participant with the keys of its EMS and of one address."""

    name: str
    ems: SigningKey
    address: SigningKey


class Desk:
    """A CSM-DB under the stage's issuing key, on a database of its own."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        folder.mkdir(parents=True)
        key = stage.issuer.key
        self.csmdb = CsmDb(
            folder, stage.genesis.market, stage.genesis.grid, key, BoxKey(key.derive("box").seed),
            SqlRepository(SqliteStorage(folder / "csmdb.sqlite"), key), stage.clock, SystemRng(),
        )  # fmt: skip

    def enrol(
        self, name: str, vendor: str = "Made up", model: str = "M1", firmware: str = "1.0"
    ) -> Node:
        """Make a participant with a certified meter."""
        csmdb = self.csmdb
        root = csmdb.issuing_key.derive(f"etse {name}")
        node = Node(name, root.derive("ems"), root.derive("address"))
        claim = csmdb.add_claim(["prosumer"], CONNECTION_W, CONNECTION_W, "feeder-1")
        asked = {
            "claimCode": claim,
            "key": to_text(node.ems.public),
            "boxKey": to_text(BoxKey(root.derive("box").seed).public),
            "meter": {
                "type": "sunspec", "serial": f"SN-{name}", "vendor": vendor, "model": model,
                "firmware": firmware, "meter_key": to_text(root.derive("meter").public),
            },
        }  # fmt: skip
        done = csmdb.desk.enroll(node.ems.id, asked, csmdb.clock.now_ms())
        expect(f"{name} is enrolled", False, isinstance(done, Refused))
        return node

    def ask(self, node: Node) -> AddressGrant | Refused:
        """A participant asks for a grant for its address."""
        row = {
            "key": to_text(node.address.public),
            "meterKey": to_text(meter_of(node.address).public),
        }
        now_ms = self.csmdb.clock.now_ms()
        answer = self.csmdb.desk.grant_addresses(node.ems.id, {"addresses": [row]}, now_ms)
        return answer if isinstance(answer, Refused) else answer[0]

    async def join(self, stage: Stage, node: Node, wh: int) -> Actor:
        """A participant with a grant registers its address."""
        grant = self.ask(node)
        if isinstance(grant, Refused):
            expect(f"{node.name} gets a grant", "OK", grant.refusal.value)
        assert isinstance(grant, AddressGrant)
        return await stage.home(
            node.name, key=node.address, grant=grant, production_wh=wh, consumption_wh=wh
        )


@scenario(
    "etse-updated",
    paper=PAPER,
    claim="n1 lacks 12 Ah; n3, the cheaper, is out of date, is updated, and wins.",
)
async def updated(stage: Stage, tell: Tell) -> Outcome:
    """The first ending."""
    return await _play(stage, tell, can_update=True)


@scenario(
    "etse-banned",
    paper=PAPER,
    claim="n1 lacks 12 Ah; n3, the cheaper, cannot be updated, stays banned, and n5 wins.",
)
async def banned(stage: Stage, tell: Tell) -> Outcome:
    """The second ending."""
    return await _play(stage, tell, can_update=False)


async def _play(stage: Stage, tell: Tell, *, can_update: bool) -> Outcome:
    wh = wanted_ah() * VOLTS
    tell(
        f"n1 holds {STORED_AH} Ah, less than {LOW_AH}: it wants {wanted_ah()} Ah ({wh} Wh) at "
        f"{pounds(CAP)} or less."
    )
    desk = Desk(stage, stage.folder / "csmdb")
    n1, n3, n5 = (desk.enrol(name) for name in ("n1", "n3", "n5"))
    sellers = {"n5": (await desk.join(stage, n5, wh), N5_ASKS)}
    buyer = await desk.join(stage, n1, wh)

    desk.csmdb.ban(n3.ems.id, "meter firmware 1.0 is out of date")
    answer = desk.ask(n3)
    refusal = answer.refusal.value if isinstance(answer, Refused) else "OK"
    expect("n3 asks for a grant with an outdated meter", "BANNED", refusal)
    tell("n3's meter is out of date: the CSM-DB refuses it a grant (BANNED).")
    if can_update:
        desk.csmdb.ban(n3.ems.id, "")
        sellers = {"n3": (await desk.join(stage, n3, wh), N3_ASKS), **sellers}
        tell("n3 is updated: the ban is lifted, the CSM-DB grants its address.")
    else:
        tell("n3 cannot be updated: the auction goes on without it.")
    desk.csmdb.close()
    outcome = await _auction(stage, tell, buyer, sellers, wh)
    winner = "n3" if can_update else "n5"
    expect("the winner", winner, outcome["winner"])
    tell(f"{winner} wins. n1 holds {outcome['storedAh']} Ah.")
    tell(f"Not shown: {NOT_SHOWN}")
    return {**outcome, "notShown": NOT_SHOWN}


async def _auction(
    stage: Stage, tell: Tell, buyer: Actor, sellers: dict[str, tuple[Actor, int]], wh: int
) -> Outcome:
    """The auction of one slot, delivery, settlement."""
    slot = stage.slot0
    everybody = [buyer, *(actor for actor, _ in sellers.values())]
    before = await read(*everybody)
    deploy = {
        "op": "deploy-auction", "auction": AUCTION, "template": "double", "slot": slot,
        "energyWh": 0, "priceUcPerKwh": 0, "pricing": "uniform",
    }  # fmt: skip
    expect("the auction is opened", ["OK"], (await stage.supervisor.submit(deploy))["codes"])
    orders = [(buyer, "buy", CAP), *((actor, "sell", asks) for actor, asks in sellers.values())]
    for actor, side, price in orders:
        order = {
            "op": "auction-bid", "auction": AUCTION, "energyWh": wh, "priceUcPerKwh": price,
            "side": side,
        }  # fmt: skip
        expect(f"{actor.name}'s order", ["OK"], (await actor.submit(order))["codes"])
        tell(f"{actor.name} {'asks for' if side == 'buy' else 'offers'} {wh} Wh, {pounds(price)}.")
    await stage.to_ms(stage.genesis.gate_ms(slot) + 1_000)
    [cleared] = stage.events("auction-cleared")
    [sold] = [award for award in cleared["awards"] if award["side"] == "sell"]
    winner, price = stage.name_of(sold["address"]), sold["priceUcPerKwh"]
    expect("energy bought [Wh]", wh, cleared["boughtWh"])
    expect("n1 pays no more than its policy allows", True, price <= CAP)
    tell(f"The auction clears: {winner} sells {sold['energyWh']} Wh at {pounds(price)}.")

    await stage.to_slot(slot + 1, 5)
    net_wh = {actor: 0 for actor, _ in sellers.values()}
    net_wh[sellers[winner][0]] = -wh
    await deliver(stage, slot, {buyer: wh, **net_wh})
    await settle(stage, slot)
    after = await read(*everybody)
    paid_uc = cost_uc(wh, price)
    expected = {name: paid_uc if name == winner else 0 for name in sellers}
    expect("money [µ¤]", {"n1": -paid_uc, **expected}, gained(before, after))
    return {
        "winner": winner,
        "energyWh": wh,
        "priceUcPerKwh": price,
        "storedAh": STORED_AH + wh // VOLTS,
        "balances": both(before, after),
    }


def wanted_ah() -> int:
    """What n1's policy makes it ask for."""
    return FULL_AH - STORED_AH if STORED_AH < LOW_AH else 0


def pounds(price_uc_per_kwh: int) -> str:
    """A price as the paper writes it."""
    return f"£{price_uc_per_kwh / 1000:g}/MWh"
