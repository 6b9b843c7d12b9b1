"""
Execution: the replicated state machine.

A block is executed in this order, the same on every node:

1. begin-block work that is due at the block's time, in order of its due time: gate closures (double
   auction, flexibility auctions), offers that expire, settlements; then rows are forgotten whose
   time has passed;
2. the transactions, in block order. A transaction is a bundle: its nonce is used once, and each of
   its operations is applied by itself and gets its own code; a refused one changes nothing;
3. when the block seals its epoch: rewards, and the validators of the epoch after next;
4. money and energy are counted: Σ balances + Σ locks + Σ escrow + pool = deposits − withdrawals.

Everything is integer and pure but for the store, which gets the block in one transaction.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ledger import merkle, types
from ledger.contracts import (
    accounts,
    assets,
    attestation,
    bans,
    delivery,
    escrow,
    evidence,
    exchange,
    flexibility,
    governance,
    grants,
    keys,
    offers,
    parameters,
    revocations,
    rewards,
    scheduling,
    sealed,
    seed,
    slots,
    validators,
)
from ledger.contracts import operations as ops
from ledger.contracts.context import Context, make_context
from ledger.genesis import Genesis, genesis_bytes
from ledger.poe import Candidate
from ledger.smt import Proof
from ledger.state import State
from ledger.store import GENESIS, BlockRecord, LedgerStore, StoredBlock
from wire.canonical import encode, encode_checked
from wire.certificates import AddressGrant, ValidatorLicence
from wire.errors import HearthgridError, Refusal, WireError
from wire.keys import KEY_BYTES, from_text
from wire.transactions import Transaction

OK = "OK"
RECENT_ROOTS = 1024
RECENT_SETS = 8

_CONTRACTS = {
    "cleared": "market", "auction-opened": "market", "auction-cleared": "market",
    "settled": "market", "trued-up": "market", "bid-accepted": "market", "receipt": "market",
    "bid-committed": "market", "bid-revealed": "market", "bid-forfeited": "market",
    "offer-posted": "market", "offer-accepted": "market", "offer-rescinded": "market",
    "offer-expired": "market",
    "schedule-submitted": "market", "session-closed": "market", "adjustment-opened": "market",
    "interconnection-closed": "market", "zone-assigned": "market",
    "change-proposed": "market", "change-supported": "market", "change-approved": "market",
    "change-lapsed": "market",
    "escrow-offered": "market", "escrow-accepted": "market", "escrow-revealed": "market",
    "escrow-ended": "market", "banned": "market", "reinstated": "market",
    "bid-withdrawn": "market",
    "asset-deposited": "wallet", "financial-deposited": "wallet", "account-closed": "wallet",
    "balance": "wallet", "asset-added": "wallet", "address-registered": "wallet", "tx": "wallet",
    "cpf": "poe", "validator": "poe", "validators": "poe", "evidence": "poe", "seed": "poe",
    "rewards": "poe", "participation": "poe",
}  # fmt: skip

_HANDLERS: dict[type[ops.Operation], Callable[[Context, Any], Refusal | None]] = {
    ops.RegisterAddress: grants.register_address,
    ops.Revoke: revocations.revoke,
    ops.BidOffer: exchange.bid_offer,
    ops.DeliveryReceipt: delivery.deliver,
    ops.AttestCpf: attestation.attest,
    ops.DeployAuction: flexibility.deploy_auction,
    ops.AuctionBid: flexibility.auction_bid,
    ops.CommitBid: sealed.commit_bid,
    ops.RevealBid: sealed.reveal_bid,
    ops.AddEnergyAsset: assets.add_energy_asset,
    ops.AddFinancialBalance: accounts.add_financial_balance,
    ops.PostOffer: offers.post_offer,
    ops.RescindOffer: offers.rescind_offer,
    ops.AcceptOffer: offers.accept_offer,
    ops.DepositEnergyAsset: assets.deposit_energy_asset,
    ops.DepositFinancialBalance: accounts.deposit_financial_balance,
    ops.MakeOffer: escrow.make_offer,
    ops.AcceptEscrow: escrow.accept,
    ops.RevealEscrow: escrow.reveal,
    ops.GiveUp: escrow.give_up,
    ops.SubmitSchedule: scheduling.submit,
    ops.AssignZone: scheduling.assign_zone,
    ops.CloseInterconnection: scheduling.close_interconnection,
    ops.OpenAdjustment: scheduling.open_adjustment,
    ops.ProposeChange: governance.propose,
    ops.ApproveChange: governance.approve,
    ops.JoinValidator: validators.join,
    ops.LeaveValidator: validators.leave,
    ops.Accuse: evidence.accuse,
    ops.CommitSeed: seed.commit,
    ops.RevealSeed: seed.reveal,
    ops.FundRewards: rewards.fund,
    ops.SetParticipation: rewards.set_participation,
    ops.SetPayee: rewards.set_payee,
}


class ChainError(HearthgridError):
    """A block, or what is stored of one, is not what the chain's rules make of it."""

    def __init__(self, height: int, what: str) -> None:
        self.height = height
        super().__init__(f"block {height}: {what}")


@dataclass(frozen=True, slots=True)
class TxReceipt:
    """What became of a transaction."""

    txid: bytes
    sender: str
    code: str
    """"OK" when the bundle was executed, else why it was not."""
    codes: tuple[str, ...]
    """One for each operation of an executed bundle: "OK" or a refusal's name."""

    def to_json(self) -> dict[str, Any]:
        """The form that is hashed and stored."""
        return {
            "txid": self.txid.hex(),
            "sender": self.sender,
            "code": self.code,
            "codes": list(self.codes),
        }


@dataclass(frozen=True, slots=True)
class BlockResult:
    """What became of a block."""

    height: int
    block_hash: bytes
    receipts: list[TxReceipt]
    events: list[dict[str, Any]]
    """In the order they happened; see `contract_of`."""
    state_root: bytes
    receipts_root: bytes


def contract_of(event_name: str) -> str:
    """The contract (topic leaf) under which an event is published."""
    return _CONTRACTS[event_name]


class Ledger:
    """
    The state machine of one chain. Open it with `Ledger.open`.

    Not safe for threads; every method is quick but `execute`, which writes to the store.
    """

    def __init__(self, genesis: Genesis, store: LedgerStore, state: State) -> None:
        self.genesis = genesis
        self.store = store
        self.state = state
        tip = store.tip
        self._height = tip.height if tip else 0
        self._tip_hash = tip.hash if tip else types.genesis_hash(genesis.chain_id)
        self._time_ms = tip.header.time_ms if tip else genesis.start_ms
        self._covered = tip.header.exec_height if tip else 0
        self._epoch = _epoch_after(tip.header) if tip else 0
        self._sets: dict[int, types.ValidatorSet] = {}
        self._roots: dict[int, tuple[bytes, bytes]] = {}
        if tip is None:
            self._roots[0] = (state.root(), merkle.EMPTY_ROOT)
        else:
            self._roots[tip.height] = (tip.state_root, tip.receipts_root)

    @classmethod
    def open(cls, genesis: Genesis, store: LedgerStore) -> Ledger:
        """
        The ledger as the store left it; a new one in an empty store.

        Raises:
            ChainError: the store belongs to another genesis, or its rows do not make its root.
        """
        wanted = genesis_bytes(genesis)
        found = store.meta(GENESIS)
        if found is None:
            rows = genesis_rows(genesis)
            store.write_genesis(wanted, {key: encode(row) for key, row in rows.items()})
            return cls(genesis, store, State(rows.items()))
        if found != wanted:
            raise ChainError(0, "the store belongs to another genesis")
        state = State(store.state_rows())
        ledger = cls(genesis, store, state)
        if state.root() != ledger.state_root(ledger.executed_height):
            raise ChainError(ledger.executed_height, "the stored state does not make its root")
        ledger._check_all_money()
        return ledger

    # --- reading ----------------------------------------------------------------------------------

    @property
    def executed_height(self) -> int:
        """Height of the last executed block; 0 before the first."""
        return self._height

    @property
    def tip_hash(self) -> bytes:
        """Hash of the last executed block, or the genesis hash."""
        return self._tip_hash

    @property
    def time_ms(self) -> int:
        """Market time of the last executed block."""
        return self._time_ms

    @property
    def epoch(self) -> int:
        """The running epoch: that of the next block."""
        return self._epoch

    @property
    def slot(self) -> int:
        """Slot of the last executed block."""
        return self.genesis.grid.slot_at(self._time_ms)

    def state_root(self, height: int) -> bytes:
        """Root of the state after executing `height`."""
        return self._roots_of(height)[0]

    @property
    def covered_height(self) -> int:
        """Up to here receipts are under the root of a header: the last block's `exec_height`."""
        return self._covered

    def receipts_root(self, after: int, height: int) -> bytes:
        """
        RFC 6962 root of the receipts of the blocks above `after` up to `height`, in order.

        A header answers for the blocks that its parent did not, so every receipt is under the root
        of exactly one header, however far execution lags behind.
        """
        if height == after + 1:
            return self._roots_of(height)[1]
        blocks = range(after + 1, height + 1)
        return merkle.root([encode(one) for n in blocks for one in self.store.receipts(n)])

    def next_due_ms(self) -> int | None:
        """Earliest market time at which a gate closure or a settlement is due."""
        key = self.state.first(keys.DUE)
        return None if key is None else int(key.split("/")[1])

    def query(self, key: str) -> Any | None:
        """A row of the executed state (see `ledger.contracts.keys`)."""
        return self.state.get(key)

    def prove(self, key: str) -> Proof:
        """Proof of a row against `state_root(executed_height)`."""
        return self.state.prove(key)

    def next_nonce(self, address: str) -> int:
        """The nonce that the next executed transaction of an address must have."""
        return int(accounts.read(self.state, address)["nonce"])

    def sender_key(self, tx: Transaction) -> bytes | None:
        """
        The public key that must have signed a transaction: of a registered sender, or from the
        grant in its first operation; None when the sender is unknown.
        """
        known = grants.sender_key(self.state, self.genesis, tx.sender)
        return known if known is not None else first_key(self.genesis, tx)

    def is_executed(self, txid: bytes) -> bool:
        """True when a transaction is in an executed block."""
        return self.store.executed_at(txid) is not None

    def check_admission(self, tx: Transaction, now_ms: int) -> Refusal | None:
        """
        Would it be useless to propose this transaction? (Signature: the mempool's business.)

        Args:
            tx: parsed
            now_ms: market time

        Returns:
            EXPIRED (or its sender has had its time), REPLAYED (this very transaction was
            executed), WRONG_NONCE (another one with its nonce was), or None.
        """
        if self.is_executed(tx.txid):  # whatever became of it: some codes leave the nonce unused
            return Refusal.REPLAYED
        if self._is_of_the_past(tx, self.genesis.grid.slot_at(now_ms)):
            return Refusal.EXPIRED
        return self.check_turn(tx, now_ms)

    def _is_of_the_past(self, tx: Transaction, slot: int) -> bool:
        """
        Is it the registration of an address that was forgotten with its nonces?

        Who has pruned the block with it would propose it again, and others refuse that block.
        """
        if not self.genesis.fresh_addresses or grants.is_known(self.state, self.genesis, tx.sender):
            return False
        grant = first_grant(self.genesis, tx)
        return grant is not None and not grants.introduces(self.genesis, grant, slot)

    def check_turn(self, tx: Transaction, now_ms: int) -> Refusal | None:
        """`check_admission` of one that is known not to be in a block."""
        if tx.nonce < self.next_nonce(tx.sender):
            return Refusal.WRONG_NONCE
        if tx.expires_slot < self.genesis.grid.slot_at(now_ms):
            return Refusal.EXPIRED
        return None

    def schedule_inputs(self, slot: int | None = None) -> dict[str, tuple[int, bool]]:
        """
        (cpf_q16, eligible) of the running epoch's validators as of the executed state.

        Args:
            slot: as seen in this slot; by default that of the last executed block
        """
        names = [name for name, _, _ in validators.members(self.state, self._epoch) or ()]
        return attestation.schedule_inputs(self.state, names, self.slot if slot is None else slot)

    def candidates(self) -> list[Candidate]:
        """The running epoch's validators, by index, as its schedule sees them after its base."""
        inputs = self.schedule_inputs()
        return [
            Candidate(
                id=name,
                controller=controller,
                cpf_q16=inputs[name][0] if inputs[name][1] else 0,
                banned=validators.banned(self.state, name),
            )
            for name, _, controller in validators.members(self.state, self._epoch) or ()
        ]

    def seed(self) -> bytes:
        """What lots are drawn from (`ledger.contracts.seed`)."""
        return bytes.fromhex(self.state.get(keys.SEED) or "")

    def validator_set(self, epoch: int) -> types.ValidatorSet | None:
        """
        The validators of an epoch, as of the executed state.

        Known are the running epoch, the next, and `membership.evidenceEpochs` in all before.
        """
        members = validators.members(self.state, epoch)
        if members is None:
            return None
        found = self._sets.get(epoch)
        if found is None:
            found = types.ValidatorSet(
                tuple(name for name, _, _ in members),
                tuple(from_text(key, KEY_BYTES) for _, key, _ in members),
            )
            self._sets[epoch] = found
            self._sets.pop(min(self._sets) if len(self._sets) > RECENT_SETS else -1, None)
        return found

    def controllers(self, epoch: int) -> dict[str, str]:
        """Who runs the validators of an epoch; empty when it is not known."""
        return {name: who for name, _, who in validators.members(self.state, epoch) or ()}

    # --- executing --------------------------------------------------------------------------------

    def execute(
        self, header: types.Header, txs: Sequence[Transaction], certificate_bytes: bytes
    ) -> BlockResult:
        """
        Execute a final block and store it.

        Args:
            header: of height `executed_height + 1`, on top of `tip_hash`
            txs: its transactions, signatures checked before
            certificate_bytes: its encoded `Finality`; empty when a descendant's covers it

        Raises:
            ChainError: the block does not belong here, its roots are not mine (this node or the
                quorum is wrong), or an invariant broke. Nothing was changed.
        """
        self._check_header(header, txs)
        self.state.begin()
        try:
            result, events = self._apply(header, txs)
            self._check_money(header.height)
            block = StoredBlock(
                height=header.height,
                hash=result.block_hash,
                header_bytes=types.encode(header),
                certificate=certificate_bytes,
                txids=tuple(tx.txid for tx in txs),
                state_root=result.state_root,
                receipts_root=result.receipts_root,
            )
            self.store.write_block(
                BlockRecord(
                    block=block,
                    bodies=[(tx.txid, tx.raw) for tx in txs],
                    receipts=[receipt.to_json() for receipt in result.receipts],
                    events=events,
                    writes=self.state.encoded_changes(),
                )
            )
        except BaseException:
            self.state.rollback()
            raise
        self.state.commit()
        self._height, self._tip_hash, self._time_ms = header.height, block.hash, header.time_ms
        self._covered = header.exec_height
        self._epoch = _epoch_after(header)
        self._roots[header.height] = (result.state_root, result.receipts_root)
        self._roots.pop(header.height - RECENT_ROOTS, None)
        return result

    def _apply(
        self, header: types.Header, txs: Sequence[Transaction]
    ) -> tuple[BlockResult, dict[str, list[dict[str, Any]]]]:
        ctx = make_context(self.genesis, self.state, header.height, header.time_ms, header.epoch)
        version = ctx.parameters(ctx.slot).code_version
        if version != parameters.CODE_VERSION:
            raise ChainError(
                header.height,
                f"slot {ctx.slot} needs version {version} of the contracts; this program has "
                f"{parameters.CODE_VERSION}: install the program that the parties agreed to",
            )
        try:
            begin_block(ctx)
            receipts = [apply(ctx, tx, index) for index, tx in enumerate(txs)]
            rewards.count_block(ctx, header.proposer, header.n_tx)
            if header.seal:
                rewards.at_seal(ctx)
                validators.at_seal(ctx)
        except AssertionError as error:
            raise ChainError(header.height, f"an invariant broke: {error}") from error
        _announce_balances(ctx)
        leaves = [encode_checked(receipt.to_json()) for receipt in receipts]
        result = BlockResult(
            height=header.height,
            block_hash=types.header_hash(header),
            receipts=receipts,
            events=ctx.events,
            state_root=self.state.root(),
            receipts_root=merkle.root(leaves),
        )
        by_contract: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for event in ctx.events:
            by_contract[contract_of(event["event"])].append(event)
        return result, by_contract

    def _check_header(self, header: types.Header, txs: Sequence[Transaction]) -> None:
        height = header.height
        if height != self._height + 1:
            raise ChainError(height, f"executed height is {self._height}")
        if header.parent_hash != self._tip_hash:
            raise ChainError(height, "it is not on top of the block before")
        if header.epoch != self._epoch:
            raise ChainError(
                height, f"it is of epoch {header.epoch}, after a block of {self._epoch}"
            )
        if header.chain_id != self.genesis.chain_id:
            raise ChainError(height, f"it is of chain {header.chain_id!r}")
        if header.time_ms <= self._time_ms and height > 1:
            raise ChainError(height, "its time is not after the block before")
        txids = [tx.txid for tx in txs]
        if header.n_tx != len(txids) or header.tx_root != merkle.root(txids):
            raise ChainError(height, "its transactions are not those of its root")
        if header.exec_height >= height:
            raise ChainError(height, "it claims roots of the future")
        if header.exec_height < self._covered:
            raise ChainError(height, "its roots are older than the block before's")
        if header.state_root != self.state_root(header.exec_height):
            raise ChainError(height, f"its state root after {header.exec_height} is not mine")
        if header.receipts_root != self.receipts_root(self._covered, header.exec_height):
            raise ChainError(height, f"its receipts root after {header.exec_height} is not mine")

    def _check_money(self, height: int) -> None:
        """Money is conserved: what the block's writes changed is what was deposited."""
        moved_uc = deposited_uc = 0
        for key, (before, after) in self.state.changes().items():
            moved_uc += accounts.money_in(key, after) - accounts.money_in(key, before)
            if key == keys.TOTALS:
                deposited_uc = _deposits_uc(after) - _deposits_uc(before)
        if moved_uc != deposited_uc:
            raise ChainError(height, f"money: {moved_uc} µ¤ appeared, {deposited_uc} deposited")
        supervisor = accounts.read(self.state, self.genesis.supervisor.address)
        if supervisor["balanceUc"] < 0:
            raise ChainError(height, "the supervisor's balance is negative")

    def _check_all_money(self) -> None:
        held_uc = money_uc(self.state)
        deposits_uc = _deposits_uc(self.state.get(keys.TOTALS))
        if held_uc != deposits_uc:
            raise ChainError(self._height, f"money: {held_uc} µ¤ held, {deposits_uc} deposited")

    def _roots_of(self, height: int) -> tuple[bytes, bytes]:
        found = self._roots.get(height)
        if found is None and height == 0:
            found = (State(genesis_rows(self.genesis).items()).root(), merkle.EMPTY_ROOT)
            self._roots[0] = found
        if found is None:
            block = self.store.get_block(height)
            if block is None:
                raise ChainError(height, "it has not been executed")
            found = (block.state_root, block.receipts_root)
        return found


def genesis_rows(genesis: Genesis) -> dict[str, Any]:
    """The state at height 0."""
    supervisor = genesis.supervisor
    return {
        keys.account(supervisor.address): {
            **accounts.NEW_ACCOUNT,
            "balanceUc": supervisor.balance_uc,
        },
        keys.TOTALS: {**accounts.NEW_TOTALS, "depositsUc": supervisor.balance_uc},
        **seed.genesis_rows(genesis),
        **validators.genesis_rows(genesis),
    }


def begin_block(ctx: Context) -> None:
    """Do what is due at the block's time, in order of due time; then forget what is past."""
    for prefix, do in ((keys.DUE, _do_due), (keys.DROP, _forget)):
        while (key := ctx.state.first(prefix)) is not None:
            _, due_ms, what, name = key.split("/")
            if int(due_ms) > ctx.time_ms:
                break
            do(ctx, what, name)
            ctx.state.delete(key)


def _do_due(ctx: Context, work: str, name: str) -> None:
    if work == keys.GATE:
        sealed.forfeit(ctx, int(name))
        exchange.close(ctx, int(name))
        flexibility.close(ctx, int(name))
        scheduling.close(ctx, int(name))
    elif work == keys.ADJUST:
        scheduling.close(ctx, int(name))
    elif work == keys.EXPIRE:
        offers.expire(ctx, name)
    elif work == keys.TRADE:
        escrow.at_deadline(ctx, name)
    else:
        delivery.settle_slot(ctx, int(name))


def _forget(ctx: Context, kind: str, name: str) -> None:
    if kind + "/" == keys.SLOT:
        slots.drop_slot(ctx, int(name))
    elif kind + "/" == keys.ESCROW:
        escrow.drop(ctx, name)
    elif kind + "/" == keys.CHANGE:
        governance.lapse(ctx, name)
    elif kind + "/" == keys.BAN:
        revocations.drop(ctx, name)
    else:
        grants.drop_grant(ctx, name)


def apply(ctx: Context, tx: Transaction, index: int) -> TxReceipt:
    """
    Apply one transaction.

    UNKNOWN_SENDER and WRONG_NONCE leave no trace but the receipt; EXPIRED uses the nonce up.
    """
    ctx.sender, ctx.tx_index, ctx.op_index = tx.sender, index, 0
    ctx.registration = None
    codes: list[str] = []
    code = _open_bundle(ctx, tx)
    if code == OK:
        for op_index, operation in enumerate(tx.operations):
            ctx.op_index = op_index
            codes.append(_apply_operation(ctx, tx, operation))
        accounts.count(ctx.state, operations=len(codes))
    ctx.emit("tx", txid=tx.txid.hex(), sender=tx.sender, code=code, codes=codes)
    return TxReceipt(tx.txid, tx.sender, code, tuple(codes))


def first_grant(genesis: Genesis, tx: Transaction) -> AddressGrant | None:
    """The grant with which a transaction introduces its own sender; None when it does not."""
    operation = tx.operations[0]
    if operation.get("op") != "register-address":
        return None
    try:
        grant = grants.load_grant(genesis, operation.get("grant"))
    except WireError:
        return None
    return grant if grant.address == tx.sender else None


def first_licence(genesis: Genesis, tx: Transaction) -> ValidatorLicence | None:
    """The licence with which a validator introduces itself; None when the sender does not."""
    operation = tx.operations[0]
    if operation.get("op") != "join-validator":
        return None
    try:
        licence = validators.load_licence(genesis, operation.get("licence"))
    except WireError:
        return None
    return licence if licence.validator == tx.sender else None


def first_key(genesis: Genesis, tx: Transaction) -> bytes | None:
    """The key in that grant or licence."""
    found = first_grant(genesis, tx) or first_licence(genesis, tx)
    return None if found is None else from_text(found.key)


def money_uc(state: State) -> int:
    """All money of the state [µ¤]: balances, locks, escrow and the pool."""
    return sum(
        accounts.money_in(key, value)
        for prefix in (keys.ACCOUNT, keys.SLOT, keys.POOL)
        for key, value in state.scan(prefix)
    )


def state_digest(rows: Sequence[tuple[str, Any]]) -> str:
    """SHA-256 over canonical rows: a second, tree-less fingerprint for reports."""
    digest = hashlib.sha256()
    for key, value in rows:
        digest.update(encode([key, value]))
    return digest.hexdigest()


def _open_bundle(ctx: Context, tx: Transaction) -> str:
    """Is the sender known, the nonce next, the bundle in time? Uses the nonce up if so."""
    if not grants.is_known(ctx.state, ctx.genesis, tx.sender):
        ctx.registration = first_grant(ctx.genesis, tx)
        if not _introduced(ctx, tx):
            return Refusal.UNKNOWN_SENDER.value
    if tx.nonce != accounts.read(ctx.state, tx.sender)["nonce"]:
        return Refusal.WRONG_NONCE.value
    accounts.use_nonce(ctx.state, tx.sender)
    return Refusal.EXPIRED.value if ctx.slot > tx.expires_slot else OK


def _introduced(ctx: Context, tx: Transaction) -> bool:
    """Does a sender without a row show a grant or licence that holds now?"""
    if ctx.registration is not None:
        return grants.introduces(ctx.genesis, ctx.registration, ctx.slot)
    licence = first_licence(ctx.genesis, tx)
    return licence is not None and licence.not_before_ms <= ctx.time_ms < licence.not_after_ms


def _apply_operation(ctx: Context, tx: Transaction, operation: dict[str, Any]) -> str:
    """Apply one operation, or nothing of it."""
    mark = len(ctx.events)
    ctx.state.begin()
    try:
        read = ops.read_operation(operation)
        refusal = (
            bans.check_operation(ctx, read)
            or _check_template(ctx, operation)
            or _HANDLERS[type(read)](ctx, read)
        )
    except WireError as error:
        refusal = error.refusal
    if refusal is None:
        ctx.state.commit()
    else:
        ctx.state.rollback()
        del ctx.events[mark:]
    if operation["op"] == "bid-offer" and refusal is None:
        # of a refused one its transaction's codes say enough: anybody could send many
        ctx.emit(
            "bid-accepted",
            address=ctx.sender,
            slot=operation["slot"],
            code=OK,
            txid=tx.txid.hex(),
        )
    return OK if refusal is None else refusal.value


def _check_template(ctx: Context, operation: dict[str, Any]) -> Refusal | None:
    """Have the parties switched off the contract that an operation would begin something in?"""
    template = parameters.template_of(operation)
    if template is None or template in ctx.parameters(ctx.slot).templates:
        return None
    return Refusal.NOT_ALLOWED


def _announce_balances(ctx: Context) -> None:
    """One event for each account whose money the block changed, with its last values."""
    for key, (before, after) in ctx.state.changes().items():
        if not key.startswith(keys.ACCOUNT):
            continue
        old, new = before or accounts.NEW_ACCOUNT, after or accounts.NEW_ACCOUNT
        if (old["balanceUc"], old["lockedUc"]) != (new["balanceUc"], new["lockedUc"]):
            ctx.emit(
                "balance",
                address=key.removeprefix(keys.ACCOUNT),
                balanceUc=new["balanceUc"],
                lockedUc=new["lockedUc"],
            )


def _epoch_after(header: types.Header) -> int:
    return header.epoch + 1 if header.seal else header.epoch


def _deposits_uc(totals: dict[str, Any] | None) -> int:
    return 0 if totals is None else int(totals["depositsUc"] - totals["withdrawalsUc"])
