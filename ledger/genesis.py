"""
The genesis: what all parties of a market agreed on before its first block.

`genesis.json` is a JSON object (camelCase keys). Its `chainId` is made from the hash of everything
else in it, so that two markets that differ in one rule can never be taken for each other:

    chainId = "hg-" ‖ market ‖ "-" ‖ first 16 hex digits of SHA-256(JCS(genesis without chainId))

Money in integer µ¤, energy in Wh, times in UTC milliseconds.
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import msgspec

from wire.canonical import decode, encode
from wire.errors import ConfigError, MalformedError, TopicError
from wire.keys import KEY_BYTES, from_text, id_of, is_good_key
from wire.rotation import MAX_ADDRESS_SLOTS, MAX_AHEAD_SLOTS, Rotation
from wire.slots import MIN_SLOT_S, SlotGrid
from wire.topics import CONSENSUS_CERT, build
from wire.units import MAX_SAFE_INT

MAX_PRICE_UC_PER_KWH = 1_000_000_000
"""The largest price that any order or tariff may name [µ¤/kWh]."""
MAX_GENESIS_BYTES = 256 * 1024
MAX_VALIDATORS = 100
MAX_ZONES = 64
MAX_DEPOSIT_UC = 10**9
"""The largest deposit behind a sealed bid [µ¤]."""
MAX_FEE_UC = 10**9
MAX_BAN_SLOTS = 100_000
CPF_STALE_SLOTS = 4
"""An attestation whose window ended longer ago does not make a validator eligible [slots]."""

_ZONE = re.compile(r"[a-z0-9-]{1,32}")


class _Section(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True
):
    """A JSON object of the genesis."""


class Prices(_Section, frozen=True, kw_only=True):
    """The grid supervisor's tariff [µ¤/kWh]."""

    retail_uc_per_kwh: int = 300_000
    """What consumption beyond the contracted energy costs."""
    feed_in_uc_per_kwh: int = 80_000
    """What is paid for energy left over."""
    imbalance_uc_per_kwh: int = 300_000
    """What a seller pays for the part of its sale that it did not deliver."""


class Supervisor(_Section, frozen=True, kw_only=True):
    """The grid supervisor, aggregator and DSO desk: the counterparty of all residuals."""

    address: str
    """`id_of(key)`."""
    key: str
    """Public key, base64url."""
    balance_uc: int
    """Money it starts with; counted as a deposit."""


class GenesisValidator(_Section, frozen=True, kw_only=True):
    """A validator of the first epoch."""

    id: str
    """`id_of(key)`."""
    key: str
    """Public key, base64url."""
    controller: str
    """Who runs it: the weights of one controller are bounded together."""
    onion: str = ""
    """Commitment to its seeds (`ledger.onion`), 32 bytes base64url; empty: no say in lots."""


class Membership(_Section, frozen=True, kw_only=True):
    """How the validators change; see `ledger.membership`."""

    max_validators: int = 31
    """Of more candidates, a standing set of this size, slowly rotated."""
    evidence_epochs: int = 96
    """How many epochs back two conflicting votes are punished; so long past sets are kept."""
    ban_epochs: int = 2_688
    """How long a ban lasts; not shorter, or old evidence would count twice."""


class Rewards(_Section, frozen=True, kw_only=True):
    """The incentive of those who lead, from a funded pool; see `ledger.contracts.rewards`."""

    per_block_uc: int = 0
    """For each block with transactions, to who led it with a CPF of 1 [µ¤]; 0: no rewards."""
    max_blocks: int = 4
    """Paid to one validator in one epoch."""


class Poe(_Section, frozen=True, kw_only=True):
    """Rules of Proof of Energy; see `ledger.poe` and `wire.cpf`."""

    window_slots: int = 8
    """Closed slots over which a CPF is taken."""
    kappa_milli: int = 1000
    """κ · 1000: how steeply imbalance is punished."""
    min_energy_wh: int = 200
    """Least energy turned over in a window to be eligible."""
    min_production_wh: int = 100
    """Least energy produced in a window to be eligible."""
    base: int = 16_384
    """Weight that every validator has beside its CPF (CPF = 1 is 65,536)."""
    mode: Literal["smooth", "strict"] = "smooth"


class Dso(_Section, frozen=True, kw_only=True):
    """The distribution system operator, where it is not the supervisor's desk."""

    address: str
    """`id_of(key)`."""
    key: str
    """Public key, base64url."""


class Escrow(_Section, frozen=True, kw_only=True):
    """Nazari's escrowed trade; see `market.escrow`."""

    fee_uc: int = 1_000
    """What making and accepting an offer costs each [µ¤]."""
    guarantee_permille: int = 100
    """The least guarantee, of what is paid for the energy."""
    penalty_permille: int = 300
    """Nazari's p: the part of a guarantee that a failure costs."""
    max_penalties: int = 2
    """Nazari's k: one more, and the address is banned."""
    ban_slots: int = 96
    """How long a banned address may neither sell nor buy."""


class Auctions(_Section, frozen=True, kw_only=True):
    """How bids are made; see `ledger.contracts.sealed`."""

    sealed: bool = False
    """The double auction of every slot takes sealed bids only."""
    reveal_s: int = 120
    """How long before gate closure bids are revealed; until then they are committed."""
    bid_deposit_uc: int = 100_000
    """Locked behind a commitment, and lost when it is not revealed [µ¤]."""


class Zone(_Section, frozen=True, kw_only=True):
    """A part of the feeder behind one interconnection."""

    name: str
    """[a-z0-9-], unique."""
    rating_w: int
    """What the interconnection carries, either way."""


NO_LIMIT_W = 10**9


class Feeder(_Section, frozen=True, kw_only=True):
    """The grid model that forward schedules are checked against; see `market.congestion`."""

    rating_w: int = NO_LIMIT_W
    """What the feeder takes from or gives to the grid above it."""
    congestion: Literal["curtail", "split"] = "curtail"
    """What happens when it would be more: schedules are cut in proportion, or priced by zone."""
    zones: tuple[Zone, ...] = ()


class Governance(_Section, frozen=True, kw_only=True):
    """Who has to agree to a change of the parameters; see `ledger.contracts.governance`."""

    participants_permille: int = 500
    """Of the connection points whose meters spoke: the share that has to approve."""


class Privacy(_Section, frozen=True, kw_only=True):
    """How long a home trades under one address; see `wire.rotation`, ADR 0013."""

    address_slots: int = 0
    """An address is for so many slots; 0: for as long as its grant."""
    ahead_slots: int = 2
    """It is registered at the latest so many slots before its first one."""


class Genesis(_Section, frozen=True, kw_only=True, dict=True):
    """A market's first agreement. Sections that may be left out have defaults of their own."""

    market: str
    chain_id: str = ""
    slot_length_s: int = 900
    gate_lead_s: int = 300
    """Bids for a slot are taken until so long before it starts."""
    grace_slots: int = 1
    """Slots between the end of a slot and its settlement."""
    start_ms: int
    """Market time of height 0."""
    issuing_key: str
    """Public key of the CSM-DB, base64url."""
    dso_box_key: str = ""
    """Public box key that readings are sealed to, base64url."""
    supervisor: Supervisor
    prices: Prices = Prices()
    validators: tuple[GenesisValidator, ...]
    poe: Poe = Poe()
    membership: Membership = Membership()
    rewards: Rewards = Rewards()
    delta0_ms: int = 200
    """Δ0 of consensus, the time a message is expected to take at most: real milliseconds."""
    dso: Dso | msgspec.UnsetType = msgspec.UNSET
    """Left out: the supervisor is the DSO."""
    auctions: Auctions | msgspec.UnsetType = msgspec.UNSET
    escrow: Escrow | msgspec.UnsetType = msgspec.UNSET
    feeder: Feeder | msgspec.UnsetType = msgspec.UNSET
    governance: Governance | msgspec.UnsetType = msgspec.UNSET
    privacy: Privacy | msgspec.UnsetType = msgspec.UNSET
    """Left out: an address serves as long as its grant is made longer."""

    @cached_property
    def grid(self) -> SlotGrid:
        """The market's slots."""
        return SlotGrid(self.slot_length_s)

    @cached_property
    def issuer(self) -> bytes:
        """The issuing key's 32 bytes."""
        return from_text(self.issuing_key, KEY_BYTES)

    @property
    def dso_address(self) -> str:
        """Who speaks as the DSO."""
        return self.supervisor.address if self.dso is msgspec.UNSET else self.dso.address

    @property
    def auction_rules(self) -> Auctions:
        """The section, or its defaults."""
        return Auctions() if self.auctions is msgspec.UNSET else self.auctions

    @property
    def escrow_rules(self) -> Escrow:
        """The section, or its defaults."""
        return Escrow() if self.escrow is msgspec.UNSET else self.escrow

    @property
    def feeder_rules(self) -> Feeder:
        """The section, or its defaults."""
        return Feeder() if self.feeder is msgspec.UNSET else self.feeder

    @property
    def governance_rules(self) -> Governance:
        """The section, or its defaults."""
        return Governance() if self.governance is msgspec.UNSET else self.governance

    @property
    def fresh_addresses(self) -> bool:
        """Whether homes change their address, so that an ended one has an account to close."""
        return self.rotation is not None

    @cached_property
    def rotation(self) -> Rotation | None:
        """When homes change their addresses; None: each keeps the one it has."""
        rules = Privacy() if self.privacy is msgspec.UNSET else self.privacy
        if not rules.address_slots:
            return None
        return Rotation(self.grid, rules.address_slots, rules.ahead_slots)

    def gate_ms(self, slot: int) -> int:
        """Bids for `slot` are taken in blocks before this time, unless the parties agreed to
        another lead (`ledger.contracts.parameters`); the first block at or after it clears the
        slot."""
        return self.grid.start_ms(slot) - self.gate_lead_s * 1000

    def settle_ms(self, slot: int) -> int:
        """The first block at or after this time settles `slot`."""
        return self.grid.end_ms(slot + self.grace_slots)


def load_genesis(path: Path) -> Genesis:
    """
    Read and check a genesis file.

    Raises:
        ConfigError: names file, key and remedy.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error}); give a genesis file") from None
    try:
        return genesis_from_json(json.loads(raw))
    except (ValueError, RecursionError, ConfigError, MalformedError) as error:
        raise ConfigError(f"{path}: not a genesis: {error}") from None


def write_genesis(genesis: Genesis, path: Path) -> Genesis:
    """Write the file with its chain id filled in; return what was written."""
    complete = seal_genesis(genesis)
    path.write_bytes(encode(genesis_json(complete)) + b"\n")
    return complete


def seal_genesis(genesis: Genesis) -> Genesis:
    """
    The genesis with its chain id.

    Raises:
        ConfigError: a rule of it cannot work.
    """
    complete = msgspec.structs.replace(genesis, chain_id=chain_id_of(genesis))
    _check(complete)
    return complete


def genesis_from_json(value: Any) -> Genesis:
    """
    Check a genesis object.

    Raises:
        ConfigError: a field is missing, wrong, or the chain id does not belong to the rest.
    """
    try:
        genesis = msgspec.convert(value, Genesis, strict=True)
    except msgspec.ValidationError as error:
        raise ConfigError(str(error)) from None
    expected = chain_id_of(genesis)
    if genesis.chain_id != expected:
        raise ConfigError(f"chainId: is {genesis.chain_id!r}, but its content makes {expected!r}")
    _check(genesis)
    return genesis


def sealed_json(value: dict[str, Any]) -> dict[str, Any]:
    """
    A genesis object with the chain id that its content makes; whether it can work is not checked.

    Raises:
        ConfigError: a field is missing or wrong.
    """
    try:
        genesis = msgspec.convert(value, Genesis, strict=True)
    except msgspec.ValidationError as error:
        raise ConfigError(str(error)) from None
    return genesis_json(msgspec.structs.replace(genesis, chain_id=chain_id_of(genesis)))


def genesis_json(genesis: Genesis) -> dict[str, Any]:
    """The genesis as a JSON object."""
    value = msgspec.to_builtins(genesis)
    assert type(value) is dict
    return value


def genesis_bytes(genesis: Genesis) -> bytes:
    """The genesis' canonical bytes."""
    return encode(genesis_json(genesis))


def read_genesis_bytes(raw: bytes) -> Genesis:
    """
    The reverse of `genesis_bytes`.

    Raises:
        ConfigError, MalformedError: not a genesis in canonical form.
    """
    return genesis_from_json(decode(raw, MAX_GENESIS_BYTES))


def chain_id_of(genesis: Genesis) -> str:
    """The chain id that belongs to a genesis' content."""
    value = genesis_json(genesis)
    del value["chainId"]
    digest = hashlib.sha256(encode(value)).hexdigest()
    return f"hg-{genesis.market}-{digest[:16]}"


def max_reward_uc(genesis: Genesis) -> int:
    """
    The most that one validator may be paid in one epoch [µ¤]: less than a false balance costs.

    A home looks balanced without being so by burning what it would have sold at the feed-in price
    f. Burning Δ [Wh] lowers I, the imbalance of a window, by Δ at most, and c = CPF = exp(−κ·I/E)
    rises by at most κ·Δ/E ≤ max(κ, 1)·Δ/E_min: the slope of exp(−x) is 1 at most, and a home with
    E < E_min is not eligible.

    An epoch's reward is perBlock · (blocks led) · c, at most R = perBlock · maxBlocks. Blocks led
    grow with the weight w = base + c (in units of 1) at most in proportion, so the reward's slope
    in c is at most R·(1 + c/w) ≤ 2·R. One burnt slot is in W windows, and an attestation is used
    for S slots after its window, so it counts in at most W + S − 1 epochs (an epoch is not shorter
    than a slot). Nothing is gained by burning, if

        2·R · max(κ, 1) · (W + S − 1) / E_min  ≤  f / 1000        f [µ¤/kWh], E_min [Wh], R [µ¤]

    What this does not cover: the step at E_min itself (a home that really turned over almost E_min
    gets there by burning the little that lacks), and epochs of so few blocks that rank, not share,
    decides who leads them (a home almost as good as the best may burn a little to lead first).
    Both need a home that is nearly as good without.
    """
    poe = genesis.poe
    epochs = poe.window_slots + CPF_STALE_SLOTS - 1
    worth = poe.min_energy_wh * genesis.prices.feed_in_uc_per_kwh
    return worth // (2 * max(poe.kappa_milli, 1000) * epochs)


def _check(genesis: Genesis) -> None:
    """What the types cannot say."""
    try:
        build(genesis.market, CONSENSUS_CERT)
    except TopicError as error:
        raise ConfigError(f"market: {error}") from None
    for name, public, identity in [
        ("supervisor", genesis.supervisor.key, genesis.supervisor.address),
        *((f"validator {v.id}", v.key, v.id) for v in genesis.validators),
        *(() if genesis.dso is msgspec.UNSET else [("dso", genesis.dso.key, genesis.dso.address)]),
    ]:
        if id_of(_signing_key(name, public)) != identity:
            raise ConfigError(f"{name}: the identity is not the hash of the key")
    for one in genesis.validators:
        if one.onion:
            _key(f"validator {one.id}: onion", one.onion)
    _signing_key("issuingKey", genesis.issuing_key)
    if genesis.dso_box_key:
        _key("dsoBoxKey", genesis.dso_box_key)
    if not 1 <= len({v.id for v in genesis.validators}) == len(genesis.validators):
        raise ConfigError("validators: name at least one, each once")
    bounds = {
        "slotLengthS": (genesis.slot_length_s, MIN_SLOT_S, 86_400),
        "gateLeadS": (genesis.gate_lead_s, 0, 86_400),
        "graceSlots": (genesis.grace_slots, 0, 96),
        "startMs": (genesis.start_ms, 0, MAX_SAFE_INT // 1000),
        "supervisor.balanceUc": (genesis.supervisor.balance_uc, 0, MAX_SAFE_INT // 16),
        "prices.retailUcPerKwh": (genesis.prices.retail_uc_per_kwh, 0, MAX_PRICE_UC_PER_KWH),
        "prices.feedInUcPerKwh": (genesis.prices.feed_in_uc_per_kwh, 0, MAX_PRICE_UC_PER_KWH),
        "prices.imbalanceUcPerKwh": (genesis.prices.imbalance_uc_per_kwh, 0, MAX_PRICE_UC_PER_KWH),
        "poe.windowSlots": (genesis.poe.window_slots, 1, 96),
        "poe.kappaMilli": (genesis.poe.kappa_milli, 0, 1_000_000),
        "poe.minEnergyWh": (genesis.poe.min_energy_wh, 0, 10**9),
        "poe.minProductionWh": (genesis.poe.min_production_wh, 0, 10**9),
        "poe.base": (genesis.poe.base, 0, 10**6),
        "membership.maxValidators": (
            genesis.membership.max_validators, len(genesis.validators), MAX_VALIDATORS
        ),
        "membership.evidenceEpochs": (genesis.membership.evidence_epochs, 2, 4096),
        "membership.banEpochs": (
            genesis.membership.ban_epochs, genesis.membership.evidence_epochs, 10**6
        ),
        "rewards.perBlockUc": (genesis.rewards.per_block_uc, 0, MAX_SAFE_INT // 10**6),
        "rewards.maxBlocks": (genesis.rewards.max_blocks, 1, 1000),
        "delta0Ms": (genesis.delta0_ms, 1, 60_000),
        **_market_bounds(genesis),
    }  # fmt: skip
    for name, (value, low, high) in bounds.items():
        if not low <= value <= high:
            raise ConfigError(f"{name}: {value} is outside {low}…{high}")
    most_uc = max_reward_uc(genesis)
    if genesis.rewards.per_block_uc * genesis.rewards.max_blocks > most_uc:
        raise ConfigError(
            f"rewards: perBlockUc × maxBlocks is more than {most_uc} µ¤, the worth of the energy "
            "that would have to be wasted for it"
        )


def _market_bounds(genesis: Genesis) -> dict[str, tuple[int, int, int]]:
    """Value and bounds of what the optional sections say."""
    escrow, feeder = genesis.escrow_rules, genesis.feeder_rules
    privacy = Privacy() if genesis.privacy is msgspec.UNSET else genesis.privacy
    names = [zone.name for zone in feeder.zones]
    if len(set(names)) < len(names) or not all(map(_ZONE.fullmatch, names)):
        raise ConfigError("feeder.zones: names are unique, of a-z, 0-9 and -")
    return {
        "auctions.revealS": (genesis.auction_rules.reveal_s, 1, 86_400),
        "auctions.bidDepositUc": (genesis.auction_rules.bid_deposit_uc, 0, MAX_DEPOSIT_UC),
        "escrow.feeUc": (escrow.fee_uc, 0, MAX_FEE_UC),
        "escrow.guaranteePermille": (escrow.guarantee_permille, 0, 10_000),
        "escrow.penaltyPermille": (escrow.penalty_permille, 0, 1000),
        "escrow.maxPenalties": (escrow.max_penalties, 0, 1000),
        "escrow.banSlots": (escrow.ban_slots, 1, MAX_BAN_SLOTS),
        "feeder.ratingW": (feeder.rating_w, 0, NO_LIMIT_W),
        **{f"feeder.zones.{zone.name}": (zone.rating_w, 0, NO_LIMIT_W) for zone in feeder.zones},
        "feeder.zones": (len(feeder.zones), 0, MAX_ZONES),
        "governance.participantsPermille": (
            genesis.governance_rules.participants_permille, 0, 1000
        ),
        "privacy.addressSlots": (privacy.address_slots, 0, MAX_ADDRESS_SLOTS),
        "privacy.aheadSlots": (privacy.ahead_slots, 2, MAX_AHEAD_SLOTS),
    }  # fmt: skip


def _key(name: str, text: str) -> bytes:
    try:
        return from_text(text, KEY_BYTES)
    except MalformedError as error:
        raise ConfigError(f"{name}: not 32 bytes in base64url ({error})") from None


def _signing_key(name: str, text: str) -> bytes:
    public = _key(name, text)
    if not is_good_key(public):
        raise ConfigError(f"{name}: WEAK_KEY, anybody could sign for it; make another")
    return public
