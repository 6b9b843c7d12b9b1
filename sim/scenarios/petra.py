"""
PETra's trading workflow with a partial trade, message by message.

    withdrawAssets        asked of the DSO in private; the DSO checks what is safe
    failedWithdrawal      its private no
    addEnergyAsset, addFinancialBalance  -> AssetAdded, balance
    postOffer             -> OfferPosted
    acceptOffer           -> OfferAccepted: the overlap is exchanged, the rest goes back
    depositEnergyAsset, depositFinancial -> AssetDeposited, FinancialDeposited

The assets are those on which a splitting goes wrong easily: 300 Wh in each of four slots, of which
somebody takes 100 Wh in each of the two in the middle. 300, 200, 200 and 300 Wh must be left.

The DSO's decision is `aggregator.withdrawals.decide`; asked here without its message, which has
nothing to do with the ledger (docs/adr/0005: it goes over the participant's own lane).

Source: Kvaternik et al. (2017), section 4.2 and Figure 2.
"""

from __future__ import annotations

from typing import Any

from aggregator.withdrawals import Failed, SafetyPolicy, Standing, decide, operations
from sim.scenarios import Outcome, Tell, expect, scenario
from sim.scenarios.balances import read
from sim.scenarios.delivery import both, deliver, gained, settle
from sim.stage import Actor, Stage
from wire.withdrawal import WantedAsset, Withdrawal

CONNECTION_W = 6_000
ACCOUNT_UC = 10_000_000
"""What a participant has with the DSO."""
MONEY_UC = 1_000_000
"""What the buyer withdraws of it."""
OFFERED_WH, TAKEN_WH, PRICE = 300, 100, 200_000
SLOTS, FROM, TO = 4, 1, 2
"""Slots of the offer, and the first and last of them that are taken."""
REST_WH = (300, 200, 200, 300)
PAID_UC = 40_000


class _Dso:
    """The DSO's private desk."""

    def __init__(self, stage: Stage, tell: Tell) -> None:
        self.stage, self.tell = stage, tell
        self.count = 0

    async def withdraw(
        self, home: Actor, amount_uc: int, kind: str, energy_wh: int, first: int, last: int
    ) -> str:
        """Decide on a withdrawal and, when it is safe, put it on the ledger; OK or a reason."""
        self.count += 1
        asset = WantedAsset(kind=kind, energy_wh=energy_wh, start_slot=first, end_slot=last)  # type: ignore[arg-type]
        asked = Withdrawal(
            withdrawal=f"w-{self.count}", address=home.id, amount_uc=amount_uc, assets=[asset]
        )
        standing = Standing(
            roles=frozenset({"prosumer"}), banned="", feeder="feeder-1",
            max_import_w=CONNECTION_W, max_export_w=CONNECTION_W, holds_address=True,
            registered=self.stage.state(f"grant/{home.id}") is not None,
            balance_uc=ACCOUNT_UC, own=(), on_feeder=(),
        )  # fmt: skip
        grid = self.stage.genesis.grid
        slot = grid.slot_at(self.stage.clock.now_ms())
        answer = decide(
            asked, standing, home.name, SafetyPolicy(), slot, grid.length_s, energy=True
        )
        self.tell(f"{home.name} -> DSO  withdrawAssets({energy_wh} Wh {kind}, {amount_uc:,} µ¤)")
        if isinstance(answer, Failed):
            self.tell(f"DSO -> {home.name}  failedWithdrawal({answer.refusal.value})")
            return answer.refusal.value
        sent = [operation for _, operation in operations(asked, str(self.count))]
        event = await self.stage.supervisor.submit(*sent)
        expect("the DSO's transaction", ["OK"] * len(sent), event["codes"])
        self.tell(f"DSO  {', '.join(operation['op'] for operation in sent)}: final")
        return "OK"


@scenario(
    "petra-sequence",
    paper="PETra (Kvaternik et al. 2017), section 4.2, Figure 2",
    claim="The trading workflow with a partial trade: the overlap changes hands, the rest goes "
    "back to its owners.",
)
async def sequence(stage: Stage, tell: Tell) -> Outcome:
    """Withdraw, post, accept in part, deliver, deposit."""
    nothing: dict[str, Any] = {"deposit_uc": 0, "production_wh": 0, "consumption_wh": 0}
    seller, buyer = await stage.home("seller", **nothing), await stage.home("buyer", **nothing)
    first = stage.slot0 + 1
    last = first + SLOTS - 1
    dso = _Dso(stage, tell)
    failed = await dso.withdraw(seller, 0, "production", CONNECTION_W // 4 + 1, first, last)
    expect("more than the connection carries", "EXPORT_LIMIT", failed)
    failed = await dso.withdraw(buyer, ACCOUNT_UC + 1, "consumption", TAKEN_WH, first, last)
    expect("more than the account holds", "INSUFFICIENT_FUNDS", failed)
    done = await dso.withdraw(seller, 0, "production", OFFERED_WH, first, last)
    expect("the seller's withdrawal", "OK", done)
    done = await dso.withdraw(buyer, MONEY_UC, "consumption", TAKEN_WH, first + FROM, first + TO)
    expect("the buyer's withdrawal", "OK", done)
    before = await read(seller, buyer)
    expect("assets added", 2, len(stage.events("asset-added")))

    accepted = await _trade(stage, tell, seller, buyer, first)
    await _give_back(stage, tell, seller, buyer, accepted)
    net_wh = {number: TAKEN_WH if FROM <= number <= TO else 0 for number in range(SLOTS)}
    for number, wh in net_wh.items():
        await stage.to_slot(first + number + 1, 5)
        if wh:
            await deliver(stage, first + number, {seller: -wh, buyer: wh})
    await settle(stage, first + TO)
    after = await read(seller, buyer)
    returned_uc = MONEY_UC - PAID_UC
    expect("money [µ¤]", {"seller": PAID_UC, "buyer": -MONEY_UC}, gained(before, after))
    tell(f"Delivered and settled: the seller has {PAID_UC:,} µ¤ for 200 Wh.")
    return {
        "tradedWh": accepted["energyWh"],
        "amountUc": accepted["amountUc"],
        "sellerLeftWh": list(REST_WH),
        "buyerReturnedUc": returned_uc,
        "balances": both(before, after),
    }


async def _trade(
    stage: Stage, tell: Tell, seller: Actor, buyer: Actor, first: int
) -> dict[str, Any]:
    """postOffer and acceptOffer; the event of the acceptance."""
    post = {
        "op": "post-offer", "kind": "production", "energyWh": OFFERED_WH, "startSlot": first,
        "endSlot": first + SLOTS - 1, "priceUcPerKwh": PRICE,
    }  # fmt: skip
    expect("postOffer", ["OK"], (await seller.submit(post))["codes"])
    [posted] = stage.events("offer-posted")
    tell(f"seller  postOffer -> OfferPosted: {OFFERED_WH} Wh in each of {SLOTS} slots")
    again = {**post, "energyWh": 1}
    code = (await seller.submit(again))["codes"]
    expect("the same energy offered twice", ["INSUFFICIENT_ASSET"], code)
    given = [{"energyWh": TAKEN_WH, "startSlot": first + FROM, "endSlot": first + TO}]
    accept = {"op": "accept-offer", "offer": posted["offer"], "assets": given}
    expect("acceptOffer", ["OK"], (await buyer.submit(accept))["codes"])
    [accepted] = stage.events("offer-accepted")
    rest = [
        row["energyWh"]
        for row in accepted["offerRest"]
        for _ in range(row["startSlot"], row["endSlot"] + 1)
    ]
    expect("exchanged [Wh]", TAKEN_WH * (TO - FROM + 1), accepted["energyWh"])
    expect("returned to the seller, by slot [Wh]", list(REST_WH), rest)
    expect("returned to the buyer", [], accepted["assetsRest"])
    expect("price of the exchange [µ¤]", PAID_UC, accepted["amountUc"])
    tell(
        f"buyer  acceptOffer -> OfferAccepted: {TAKEN_WH} Wh in each of the two middle slots for "
        f"{PAID_UC:,} µ¤; back to the seller by slot: {', '.join(map(str, rest))} Wh"
    )
    return accepted


async def _give_back(
    stage: Stage, tell: Tell, seller: Actor, buyer: Actor, accepted: dict[str, Any]
) -> None:
    """depositEnergyAsset and depositFinancial of all that is left."""
    back = [
        {"op": "deposit-energy-asset", "kind": "production", **row} for row in accepted["offerRest"]
    ]
    expect("depositEnergyAsset", ["OK"] * len(back), (await seller.submit(*back))["codes"])
    money = {"op": "deposit-financial-balance", "amountUc": MONEY_UC - PAID_UC}
    expect("depositFinancial", ["OK"], (await buyer.submit(money))["codes"])
    more = {**money, "amountUc": 1}
    expect("depositing it twice", ["INSUFFICIENT_FUNDS"], (await buyer.submit(more))["codes"])
    expect("energy deposited", len(back), len(stage.events("asset-deposited")))
    expect("money deposited", 1, len(stage.events("financial-deposited")))
    tell(f"seller  depositEnergyAsset × {len(back)} -> AssetDeposited")
    tell(f"buyer  depositFinancial({MONEY_UC - PAID_UC:,} µ¤) -> FinancialDeposited")
