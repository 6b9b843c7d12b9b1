"""
What people do in the simulator's market while the ledger is under attack: signed operations.

Homes register, are given energy and money, bid for every slot, send their meters' receipts (some
late, some never), take part in flexibility auctions and attest how well validators balance. One of
them, Eve, signs two transactions with each of her nonces and shows them to different validators,
and accuses validators that did nothing. What is submitted depends on the seed and on what the chain
has executed, on nothing else: no clock, no random number of the system.
"""

from __future__ import annotations

import hashlib
from random import Random
from typing import TYPE_CHECKING, Any

import msgspec

from ledger.contracts.evidence import evidence_operation
from ledger.duties import Seeds
from ledger.genesis import Genesis, GenesisValidator, Rewards, Supervisor, seal_genesis
from ledger.types import Vote, VoteKind
from wire import certificates
from wire.certificates import AddressGrant, ValidatorGrant, ValidatorLicence
from wire.cpf import Q16
from wire.envelope import new_req_id
from wire.keys import SigningKey, to_text
from wire.metering import CpfAttestation, Receipt, record_json, sign_record
from wire.transactions import Transaction, make_transaction

if TYPE_CHECKING:
    from sim.consensus_ledger import LedgerWorld

NAME = "sim"
FIRST_SLOT = 1_978_560
SLOT_MS = 900_000
SPEED = 300
"""Market seconds in a second: a slot takes three, its gate closes one before it begins."""
SLOT_S = SLOT_MS / 1000 / SPEED
HOMES = 4
ONION_LAYERS = 12
"""Few, so that some are used up and begun again."""
SUPERVISOR_UC = 10**12
DEPOSIT_UC = 50_000_000
POOL_UC = 1_000_000
ASSET_WH = 4_000
LAST_SLOT = FIRST_SLOT + 200
LONG_LIFE_SLOTS = 150


def key(name: str) -> SigningKey:
    """A key that depends on its name only."""
    return SigningKey(hashlib.sha256(f"hearthgrid sim {name}".encode()).digest())


ISSUER, SUPERVISOR, EVE = key("issuer"), key("supervisor"), key("eve")


class Market:
    """
    Everybody who is not a validator.

    Args:
        world: to submit to
        founders: validators of the genesis
        joining: another validator gets a licence, and a founder leaves
    """

    def __init__(self, world: LedgerWorld, founders: int, *, joining: bool) -> None:
        self._world = world
        self._rng = Random(f"{world.plan.seed}/market")
        self.validators = [key(f"validator {number}") for number in range(founders + joining)]
        self.homes = [key(f"home {number}") for number in range(HOMES)]
        self.seeds = {one.id: Seeds(one, ONION_LAYERS) for one in self.validators}
        self.genesis = self._make_genesis(founders)
        self.must: dict[bytes, float] = {}
        """What honest senders submitted, and when [s]: all of it has to become final."""
        self._nonces: dict[str, int] = {}
        self._endowed: set[str] = set()
        self._late: list[tuple[SigningKey, int]] = []
        """Homes and slots of receipts that were not sent in time."""
        self._votes: dict[tuple[int, int, int], dict[VoteKind, Vote]] = {}
        """What honest validators said, for Eve."""

    def _make_genesis(self, founders: int) -> Genesis:
        chosen = self.validators[:founders]
        return seal_genesis(
            Genesis(
                market=NAME,
                start_ms=FIRST_SLOT * SLOT_MS,
                issuing_key=to_text(ISSUER.public),
                supervisor=Supervisor(
                    address=SUPERVISOR.id,
                    key=to_text(SUPERVISOR.public),
                    balance_uc=SUPERVISOR_UC,
                ),
                validators=tuple(
                    GenesisValidator(
                        id=one.id,
                        key=to_text(one.public),
                        controller=f"home {number}",
                        onion=to_text(self.seeds[one.id].tip),
                    )
                    for number, one in enumerate(chosen)
                ),
                rewards=Rewards(per_block_uc=100),
                delta0_ms=150,
            )
        )

    def licence(self, validator: SigningKey) -> str:
        """What lets a validator join: the text of its licence."""
        licence = ValidatorLicence(
            validator=validator.id,
            key=to_text(validator.public),
            controller=f"party of {validator.id[:12]}",
            not_before_ms=0,
            not_after_ms=LAST_SLOT * SLOT_MS,
        )
        return certificates.dump_text(certificates.seal(licence, ISSUER, NAME))

    # --- Time -------------------------------------------------------------------------------------

    def open(self) -> None:
        """Put everybody's day on the calendar."""
        world, rng = self._world, self._rng
        for home in (*self.homes, EVE):
            world.after(rng.uniform(0.05, 0.5), lambda home=home: self._register(home))  # type: ignore[misc]
        world.after(
            0.6, lambda: self._send(SUPERVISOR, {"op": "fund-rewards", "amountUc": POOL_UC})
        )
        for number in range(int(world.plan.submit_s / SLOT_S) + 1):
            start_s, slot = number * SLOT_S, FIRST_SLOT + number
            world.after(start_s + 0.2, lambda slot=slot: self._open_auction(slot + 1))  # type: ignore[misc]
            world.after(start_s + 0.4, lambda slot=slot: self._attest(slot - 1))  # type: ignore[misc]
            for home in self.homes:
                at_s = start_s + rng.uniform(0.3, 1.6)
                world.after(at_s, lambda home=home, slot=slot: self._tick(home, slot))  # type: ignore[misc]
            world.after(start_s + rng.uniform(0.3, 2.5), self._cheat)

    def executed(self, events: list[dict[str, Any]]) -> None:
        """A block was executed for the first time anywhere: react to it."""
        for event in events:
            if event["event"] == "address-registered":
                self._endow(event["address"])
            elif event["event"] == "asset-added":
                self._endowed.add(event["address"])
            elif event["event"] == "auction-opened":
                for home in self.homes:
                    if home.id in self._endowed and self._rng.random() < 0.6:
                        self._send(home, self._auction_bid(event["auction"]))

    def heard(self, vote: Vote) -> None:
        """An honest validator spoke."""
        said = self._votes.setdefault((vote.epoch, vote.view, vote.validator), {})
        said[vote.kind] = vote

    # --- Homes ------------------------------------------------------------------------------------

    def _register(self, home: SigningKey) -> None:
        grant = AddressGrant(
            address=home.id,
            key=to_text(home.public),
            meter_key=to_text(home.derive("meter").public),
            can_buy=True,
            can_sell=True,
            max_buy_wh=5_000,
            max_sell_wh=5_000,
            start_slot=FIRST_SLOT,
            end_slot=LAST_SLOT,
        )
        sealed = certificates.dump(certificates.seal(grant, ISSUER, NAME))
        self._send(home, {"op": "register-address", "grant": sealed})
        self._send(home, {"op": "set-participation", "mode": "RE+TE"})

    def _tick(self, home: SigningKey, slot: int) -> None:
        """What a home does once in a slot."""
        rng = self._rng
        if home.id not in self._endowed:
            return
        self._send(home, *(self._bid(slot + 1) for _ in range(rng.randint(1, 3))))
        if slot > FIRST_SLOT and rng.random() < 0.8:
            self._send(home, self._receipt(home, slot - 1))
        elif slot > FIRST_SLOT:
            self._late.append((home, slot - 1))
        for late in [one for one in self._late if one[1] < slot - 2 and one[0] is home]:
            self._late.remove(late)
            self._send(home, self._receipt(*late))

    def _bid(self, slot: int) -> dict[str, Any]:
        rng = self._rng
        return {
            "op": "bid-offer", "side": rng.choice(("buy", "sell")), "slot": slot,
            "energyWh": rng.randint(1, 2_500), "priceUcPerKwh": rng.randint(60_000, 320_000),
        }  # fmt: skip

    def _auction_bid(self, name: str) -> dict[str, Any]:
        rng = self._rng
        return {
            "op": "auction-bid", "auction": name, "energyWh": rng.randint(1, 1_000),
            "priceUcPerKwh": rng.randint(60_000, 320_000),
        }  # fmt: skip

    def _receipt(self, home: SigningKey, slot: int) -> dict[str, Any]:
        said = Receipt(
            address=home.id, slot=slot, net_wh=self._rng.randint(-3_000, 3_000), reading="0" * 64
        )
        signed = sign_record(said, home.derive("meter"), self.genesis.chain_id)
        return {"op": "receipt", "receipt": record_json(signed)}

    def _attest(self, end_slot: int) -> None:
        """The validators' meters speak; a home brings it to the chain."""
        if self.homes[0].id not in self._endowed:
            return
        operations = []
        for place, validator in enumerate(self.validators):
            meter = validator.derive("meter")
            grant = ValidatorGrant(
                validator=validator.id, meter_key=to_text(meter.public),
                start_slot=FIRST_SLOT - 10, end_slot=LAST_SLOT,
            )  # fmt: skip
            drawn = self._rng.randint(0, Q16)
            claimed = self._world.claims.get(place)
            window = self.genesis.poe.window_slots
            said = CpfAttestation(
                validator=validator.id, start_slot=end_slot - window + 1, end_slot=end_slot,
                cpf_q16=drawn if claimed is None else claimed, eligible=True,
            )  # fmt: skip
            signed = sign_record(said, meter, self.genesis.chain_id)
            sealed = certificates.dump(certificates.seal(grant, ISSUER, NAME))
            operations.append({"op": "cpf", "grant": sealed, "attestation": record_json(signed)})
        self._send(self.homes[0], *operations)

    # --- The supervisor ---------------------------------------------------------------------------

    def _endow(self, address: str) -> None:
        """Give a new address energy and, unless it is Eve's, money."""
        operations: list[dict[str, Any]] = [
            {
                "op": "add-energy-asset", "address": address, "kind": kind, "energyWh": ASSET_WH,
                "startSlot": FIRST_SLOT, "endSlot": LAST_SLOT,
            }
            for kind in ("production", "consumption")
        ]  # fmt: skip
        if address != EVE.id:
            money = {"op": "add-financial-balance", "address": address, "amountUc": DEPOSIT_UC}
            operations.append(money)
        self._send(SUPERVISOR, *operations)

    def _open_auction(self, slot: int) -> None:
        buys = slot % 2 == 0
        self._send(
            SUPERVISOR,
            {
                "op": "deploy-auction", "auction": f"flex-{slot}",
                "template": "reverse" if buys else "forward", "slot": slot, "energyWh": 1_500,
                "priceUcPerKwh": 300_000 if buys else 80_000,
                "pricing": self._rng.choice(("as-bid", "uniform")),
            },
        )  # fmt: skip

    # --- Eve --------------------------------------------------------------------------------------

    def _cheat(self) -> None:
        """Two transactions with one nonce, for different ears; both accuse the innocent."""
        if EVE.id not in self._endowed:
            return
        slot = self._world.slot
        expires = slot + self._rng.randint(0, 1)
        nonce = self._next_nonce(EVE)
        for part in (0, 1):
            operations = [self._bid(slot + 1), *self._slander()]
            self._world.submit(self._sign(EVE, nonce, expires, operations), part)

    def _slander(self) -> list[dict[str, str]]:
        """Votes that do not conflict, and votes that were never given."""
        found = [said for said in self._votes.values() if VoteKind.FINALIZE in said]
        if not found:
            return []
        said = self._rng.choice(found)
        final = said[VoteKind.FINALIZE]
        notarize = said.get(VoteKind.NOTARIZE, final)
        forged = msgspec.structs.replace(final, block_hash=hashlib.sha256(b"never").digest())
        return [evidence_operation(notarize, final), evidence_operation(final, forged)]

    # --- Transactions -----------------------------------------------------------------------------

    def _send(self, sender: SigningKey, *operations: dict[str, Any]) -> None:
        """Sign and submit; this one must become final."""
        expires = FIRST_SLOT + LONG_LIFE_SLOTS
        tx = self._sign(sender, self._next_nonce(sender), expires, list(operations))
        self.must[tx.txid] = self._world.now_s
        self._world.submit(tx)

    def _next_nonce(self, sender: SigningKey) -> int:
        nonce = self._nonces.get(sender.id, 0)
        self._nonces[sender.id] = nonce + 1
        return nonce

    def _sign(
        self, sender: SigningKey, nonce: int, expires: int, operations: list[dict[str, Any]]
    ) -> Transaction:
        now_ms = self._world.market_ms
        req_id = new_req_id(now_ms, self._rng.randbytes(10))
        chain_id = self.genesis.chain_id
        return make_transaction(sender, chain_id, nonce, expires, operations, req_id, now_ms)


def deposited_uc(tx: Transaction, codes: tuple[str, ...]) -> int:
    """What an executed transaction brought onto the chain, less what it took off [µ¤]."""
    total_uc = 0
    for operation, code in zip(tx.operations, codes, strict=False):
        if code == "OK" and operation["op"] == "add-financial-balance":
            total_uc += operation["amountUc"]
        elif code == "OK" and operation["op"] == "deposit-financial-balance":
            total_uc -= operation["amountUc"]
    return total_uc
