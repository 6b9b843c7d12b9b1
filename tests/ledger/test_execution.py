"""The state machine: blocks in order, due work once, bundles atomic by operation, money counted."""

import random

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.chain_builder import (
    FIRST_SLOT,
    START_MS,
    SUPERVISOR,
    Chain,
    asset,
    auction,
    auction_bid,
    bid,
    deposit,
    events_of,
    key,
    make_genesis,
    receipt,
    register,
    slot_ms,
)

from ledger import merkle, types
from ledger.contracts import accounts
from ledger.execution import ChainError, Ledger, contract_of, money_uc
from ledger.genesis import Membership
from ledger.state import verify_proof
from ledger.store import LedgerStore
from wire.canonical import encode

ANN, BOB, EVE = key("ann"), key("bob"), key("eve")
SLOT = FIRST_SLOT + 2


@pytest.fixture
def chain():
    chain = Chain()
    chain.settle_in(ANN, BOB)
    return chain


def order(slot=SLOT, energy_wh=100):
    return bid("buy", slot, energy_wh, 1000)


# --- transactions ---------------------------------------------------------------------------------


def test_a_bundle_uses_one_nonce_and_a_refused_operation_undoes_only_itself(chain):
    before = chain.ledger.next_nonce(ANN.id)
    codes = chain.codes(START_MS + 60_000, ANN, order(), order(energy_wh=0), order(energy_wh=7))
    assert codes == ["OK", "QUANTITY_OUT_OF_RANGE", "OK"]
    assert chain.ledger.next_nonce(ANN.id) == before + 1
    position = chain.ledger.query(f"position/{SLOT:012d}/{ANN.id}")
    assert position["buyLockedWh"] == 107


def test_what_an_operation_wrote_before_its_refusal_is_taken_back(chain):
    """An auction opens its slot before it finds out that it cannot be paid."""
    before = len(chain.ledger.state), chain.ledger.next_due_ms()
    dear = auction("dear", "reverse", SLOT, 10**9, 10**9, "as-bid")
    assert chain.codes(START_MS + 60_000, SUPERVISOR, dear) == ["INSUFFICIENT_FUNDS"]
    assert (len(chain.ledger.state), chain.ledger.next_due_ms()) == before


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_wrong_nonce_has_no_effect_but_a_receipt(chain, shift):
    nonce = chain.ledger.next_nonce(ANN.id)
    state = dict(chain.ledger.state.scan(""))
    result = chain.block(START_MS + 60_000, chain.tx(ANN, order(), nonce=nonce + shift))
    assert (result.receipts[0].code, result.receipts[0].codes) == ("WRONG_NONCE", ())
    assert dict(chain.ledger.state.scan("")) == state


def test_an_expired_transaction_uses_its_nonce_only(chain):
    nonce = chain.ledger.next_nonce(ANN.id)
    tx = chain.tx(ANN, order(FIRST_SLOT + 9), expires_slot=FIRST_SLOT)
    result = chain.block(slot_ms(FIRST_SLOT + 1), tx)
    assert result.receipts[0].code == "EXPIRED"
    assert chain.ledger.next_nonce(ANN.id) == nonce + 1
    assert chain.account(ANN)[1] == 0


def test_a_transaction_in_its_last_slot_is_in_time(chain):
    tx = chain.tx(ANN, order(FIRST_SLOT + 9), expires_slot=FIRST_SLOT)
    assert chain.block(slot_ms(FIRST_SLOT + 1) - 1, tx).receipts[0].code == "OK"


def test_an_unknown_sender_leaves_no_trace(chain):
    size = len(chain.ledger.state)
    result = chain.block(START_MS + 60_000, chain.tx(EVE, order()))
    assert result.receipts[0].code == "UNKNOWN_SENDER"
    assert len(chain.ledger.state) == size


def test_registration_and_first_order_fit_into_one_bundle():
    chain = Chain()
    result = chain.block(START_MS + 1, chain.tx(EVE, register(EVE), order()))
    assert result.receipts[0].codes == ("OK", "INSUFFICIENT_ASSET")


def test_receipts_root_is_rfc_6962_over_the_receipts(chain):
    result = chain.block(START_MS + 60_000, chain.tx(ANN, order()), chain.tx(BOB, order()))
    leaves = [encode(r.to_json()) for r in result.receipts]
    assert result.receipts_root == merkle.root(leaves)
    assert chain.store.receipts(result.height) == [r.to_json() for r in result.receipts]


# --- events ---------------------------------------------------------------------------------------


def test_events_are_stored_by_contract_and_every_name_has_one(chain):
    result = chain.block(START_MS + 60_000, chain.tx(ANN, order()))
    stored = chain.store.events(result.height)
    assert sorted(map(encode, stored)) == sorted(map(encode, result.events))
    assert {contract_of(e["event"]) for e in chain.store.events(result.height, "market")} == {
        "market"
    }
    (tx,) = events_of(result, "tx")
    assert (tx["code"], tx["codes"]) == ("OK", ["OK"])


def test_a_changed_balance_is_told_once_with_its_last_value(chain):
    result = chain.block(
        START_MS + 60_000, chain.tx(ANN, order(), order()), chain.tx(SUPERVISOR, deposit(ANN, 5))
    )
    (balance,) = events_of(result, "balance")
    assert (balance["address"], balance["balanceUc"], balance["lockedUc"]) == (
        ANN.id, *chain.account(ANN),
    )  # fmt: skip


def test_event_heights_chain_backwards(chain):
    heights = [chain.block(START_MS + 60_000 + i, chain.tx(ANN, order())).height for i in range(3)]
    assert chain.store.previous_event_height("market", heights[2]) == heights[1]
    assert chain.store.previous_event_height("market", heights[0]) == 0
    assert chain.store.event_heights("market", heights[0], 10) == heights[1:]


# --- due work -------------------------------------------------------------------------------------


def test_next_due_is_the_gate_then_the_settlement_then_nothing(chain):
    assert chain.ledger.next_due_ms() is None
    chain.block(START_MS + 60_000, chain.tx(ANN, order()))
    assert chain.ledger.next_due_ms() == slot_ms(SLOT, -300)
    assert events_of(chain.block(slot_ms(SLOT, -301)), "cleared") == []
    assert len(events_of(chain.block(slot_ms(SLOT, -300)), "cleared")) == 1
    assert chain.ledger.next_due_ms() == slot_ms(SLOT + 2)
    chain.block(slot_ms(SLOT + 2))
    assert chain.ledger.next_due_ms() is None


def test_a_jump_over_many_slots_does_all_due_work_in_order(chain):
    slots = [SLOT + n for n in (0, 1, 4, 30)]
    for slot in slots:
        chain.block(
            chain.ledger.time_ms + 1,
            chain.tx(ANN, bid("buy", slot, 100, 200_000)),
            chain.tx(BOB, bid("sell", slot, 100, 100_000)),
        )
    result = chain.block(slot_ms(SLOT + 60))
    assert [e["slot"] for e in events_of(result, "cleared")] == slots
    assert [e["slot"] for e in events_of(result, "settled")] == slots
    assert chain.ledger.next_due_ms() is None


def test_many_small_steps_end_in_the_state_of_one_jump():
    ends = []
    for steps in (range(-300, 3 * 900, 100), (3 * 900 - 100,)):
        chain = Chain()
        chain.settle_in(ANN, BOB)
        chain.block(
            START_MS + 60_000,
            chain.tx(ANN, bid("buy", SLOT, 100, 200_000), bid("buy", SLOT + 1, 50, 10)),
            chain.tx(BOB, bid("sell", SLOT, 90, 100_000), bid("sell", SLOT + 1, 60, 9)),
        )
        for offset_s in steps:
            chain.block(slot_ms(SLOT, offset_s))
        # but for the sets of validators, of which every seal makes one
        ends.append([row for row in chain.ledger.state.scan("") if row[0][:11] != "validators/"])
    assert ends[0] == ends[1]


def test_state_stays_bounded_as_slots_pass():
    chain = Chain(genesis=make_genesis(membership=Membership(evidence_epochs=2)))
    chain.settle_in(ANN, BOB)
    sizes = []
    for number in range(8):
        now_ms = chain.ledger.time_ms + 60_000
        slot = chain.genesis.grid.slot_at(now_ms) + 2
        chain.block(
            now_ms,
            chain.tx(ANN, bid("buy", slot, 100, 200_000)),
            chain.tx(BOB, bid("sell", slot, 100, 100_000)),
            chain.tx(SUPERVISOR, auction(f"flex-{number}", "reverse", slot, 1, 1, "as-bid")),
        )
        chain.block(now_ms + 1, chain.tx(ANN, auction_bid(f"flex-{number}", 1, 1)))
        chain.block(slot_ms(slot + 40))
        sizes.append(len(chain.ledger.state))
    assert max(sizes[3:]) == sizes[3], "rows of old slots are dropped as new ones come"


def test_an_ended_grant_is_forgotten_but_not_the_nonce(chain):
    nonce = chain.ledger.next_nonce(ANN.id)
    chain.block(slot_ms(FIRST_SLOT + 400 + 100))
    assert chain.ledger.query(f"grant/{ANN.id}") is None
    assert chain.ledger.query(f"asset/{ANN.id}") is None
    assert chain.ledger.next_nonce(ANN.id) == nonce
    assert chain.account(ANN) == (100_000_000, 0)
    again = register(ANN, start_slot=FIRST_SLOT + 500, end_slot=FIRST_SLOT + 600)
    assert chain.codes(slot_ms(FIRST_SLOT + 501), ANN, again) == ["OK"]


# --- blocks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"height": 9}, "executed height"),
        ({"parent_hash": b"x" * 32}, "on top"),
        ({"chain_id": "other"}, "chain"),
        ({"epoch": 1}, "epoch 1"),
        ({"tx_root": b"x" * 32}, "transactions"),
        ({"n_tx": 2}, "transactions"),
        ({"state_root": b"x" * 32}, "state root"),
        ({"receipts_root": b"x" * 32}, "receipts root"),
        ({"exec_height": 3}, "future"),
        ({"time_ms": START_MS}, "time"),
    ],
)
def test_a_block_that_does_not_belong_here_changes_nothing(chain, change, named):
    tx = chain.tx(ANN, order())
    before = chain.ledger.executed_height, chain.ledger.state.root()
    with pytest.raises(ChainError, match=named):
        header = msgspec.structs.replace(chain.header(START_MS + 60_000, [tx]), **change)
        chain.ledger.execute(header, [tx], b"")
    assert (chain.ledger.executed_height, chain.ledger.state.root()) == before
    chain.block(START_MS + 60_000, tx)


def test_roots_may_lag_behind(chain):
    """A header answers for the receipts that its parent left open: of no block, or of several."""
    for executed, blocks in ((1, []), (1, []), (4, [2, 3, 4])):
        leaves = [encode(one) for number in blocks for one in chain.store.receipts(number)]
        header = chain.header(
            START_MS + 60_000 + chain.ledger.executed_height, [],
            exec_height=executed, state_root=chain.ledger.state_root(executed),
            receipts_root=merkle.root(leaves),
        )  # fmt: skip
        chain.execute(header, [], chain.finality(header))
    assert chain.ledger.covered_height == 4
    back = chain.header(
        START_MS + 70_000, [], exec_height=3, state_root=chain.ledger.state_root(3),
        receipts_root=merkle.EMPTY_ROOT,
    )  # fmt: skip
    with pytest.raises(ChainError, match="older than"):
        chain.ledger.execute(back, [], b"")


def test_a_reopened_ledger_goes_on_where_it_was(tmp_path):
    path = tmp_path / "ledger.sqlite"
    first = Chain(LedgerStore(path))
    first.settle_in(ANN, BOB)
    first.block(START_MS + 60_000, first.tx(ANN, order()))
    facts = first.ledger.executed_height, first.ledger.tip_hash, first.ledger.state.root()
    first.store.close()
    second = Chain(LedgerStore(path))
    ledger = second.ledger
    assert (ledger.executed_height, ledger.tip_hash, ledger.state.root()) == facts
    assert ledger.state_root(1) == second.store.get_block(1).state_root
    assert len(events_of(second.block(slot_ms(SLOT, -300)), "cleared")) == 1


def test_a_store_of_another_genesis_is_refused(tmp_path):
    path = tmp_path / "ledger.sqlite"
    Chain(LedgerStore(path)).store.close()
    with pytest.raises(ChainError, match="another genesis"):
        Ledger.open(make_genesis(gate_lead_s=301), LedgerStore(path))


def test_money_out_of_nowhere_stops_the_block_by_its_height(chain, monkeypatch):
    """The invariant is not the contracts' own arithmetic: it sees what they wrote."""
    honest = accounts.use_nonce

    def minting(state, address):
        honest(state, address)
        accounts.move(state, address, 1)

    monkeypatch.setattr(accounts, "use_nonce", minting)
    height = chain.ledger.executed_height
    with pytest.raises(ChainError, match=rf"block {height + 1}: money"):
        chain.block(START_MS + 60_000, chain.tx(ANN, order()))
    assert chain.ledger.executed_height == height


def test_a_wallet_row_is_proven_against_the_state_root(chain):
    name = f"account/{ANN.id}"
    root = chain.ledger.state_root(chain.ledger.executed_height)
    proof = chain.ledger.prove(name)
    assert verify_proof(root, name, chain.ledger.query(name), proof)
    assert not verify_proof(root, name, {**chain.ledger.query(name), "balanceUc": 1}, proof)
    assert verify_proof(root, "account/nobody", None, chain.ledger.prove("account/nobody"))


def test_header_hash_links_the_blocks(chain):
    block = chain.store.get_block(2)
    assert block.header.parent_hash == chain.store.get_block(1).hash
    assert types.header_hash(block.header) == block.hash
    assert chain.store.block_by_hash(block.hash) == block


# --- conservation over anything that may happen ---------------------------------------------------

HOMES = [key(f"home {i}") for i in range(4)]
ORDERS = st.builds(
    bid,
    st.sampled_from(["buy", "sell"]),
    st.integers(FIRST_SLOT, FIRST_SLOT + 12),
    st.integers(-1, 3_000),
    st.integers(-1, 400_000),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("order"), st.integers(0, 3), ORDERS),
        st.tuples(st.just("receipt"), st.integers(0, 3), st.integers(0, 12),
                  st.integers(-4000, 4000)),
        st.tuples(st.just("auction"), st.sampled_from(["reverse", "forward"]), st.integers(0, 12),
                  st.integers(1, 4000), st.integers(0, 400_000),
                  st.sampled_from(["as-bid", "uniform"])),
        st.tuples(st.just("auction-bid"), st.integers(0, 3), st.integers(0, 5),
                  st.integers(0, 3000), st.integers(0, 400_000)),
        st.tuples(st.just("deposit"), st.integers(0, 3), st.integers(0, 10**7)),
        st.tuples(st.just("asset"), st.integers(0, 3),
                  st.sampled_from(["production", "consumption"]), st.integers(0, 2000),
                  st.integers(0, 12), st.integers(0, 12)),
        st.tuples(st.just("time"), st.integers(1, 4 * 900_000)),
    ),
    min_size=5,
    max_size=60,
)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
def test_money_and_energy_are_conserved_whatever_is_ordered(steps):
    """Checks of every block stay silent, and the sums agree at the end, when all is settled."""
    chain = Chain()
    chain.settle_in(*HOMES)
    now_ms, auctions = START_MS + 1000, 0
    delivered: dict[int, list[int]] = {}
    for step in steps:
        now_ms = max(now_ms, chain.ledger.time_ms) + 1
        match step:
            case "order", home, op:
                chain.codes(now_ms, HOMES[home], op)
            case "receipt", home, slot, net_wh:
                op = receipt(HOMES[home], FIRST_SLOT + slot, net_wh, chain.chain_id)
                if chain.codes(now_ms, HOMES[home], op) == ["OK"]:
                    delivered.setdefault(FIRST_SLOT + slot, []).append(net_wh)
            case "auction", template, slot, energy, price, pricing:
                name = f"a{auctions}"
                auctions += 1
                op = auction(name, template, FIRST_SLOT + slot, energy, price, pricing)
                chain.codes(now_ms, SUPERVISOR, op)
            case "auction-bid", home, number, energy, price:
                chain.codes(now_ms, HOMES[home], auction_bid(f"a{number}", energy, price))
            case "deposit", home, amount:
                chain.codes(now_ms, SUPERVISOR, deposit(HOMES[home], amount))
            case "asset", home, kind, energy, start, end:
                op = asset(HOMES[home], kind, energy, FIRST_SLOT + start, FIRST_SLOT + end)
                chain.codes(now_ms, SUPERVISOR, op)
            case "time", ahead_ms:
                now_ms += ahead_ms
                chain.block(now_ms)
    chain.block(max(now_ms, slot_ms(FIRST_SLOT + 20)) + 1)
    state = chain.ledger.state
    totals = state.get("totals")
    assert money_uc(state) == totals["depositsUc"]
    assert all(row["lockedUc"] == 0 for _, row in state.scan("account/"))
    assert all(row["escrowUc"] == 0 and row["settled"] for _, row in state.scan("slot/"))
    positions = [row for _, row in state.scan("position/")]
    assert sum(row["boughtWh"] for row in positions) == sum(row["soldWh"] for row in positions)
    contracted_wh = sum(
        row["boughtWh"] - row["soldWh"]
        for name, row in state.scan("position/")
        if not name.endswith(SUPERVISOR.id)
    )
    receipts_wh = sum(row.get("netWh", 0) for row in positions)
    assert receipts_wh == sum(sum(nets) for nets in delivered.values())
    net_wh = sum(row.get("netWh", row.get("assumedNetWh", 0)) for row in positions)
    assert totals["residualWh"] == net_wh - contracted_wh
    assert chain.ledger.state.root() == Ledger.open(chain.genesis, chain.store).state.root()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.lists(ORDERS, min_size=2, max_size=14))
def test_the_order_of_a_batch_changes_only_ties(seed, orders):
    """Distinct prices: whoever comes first in the block, the same trades come out."""
    now_ms = START_MS + 60_000
    distinct = {op["priceUcPerKwh"]: op for op in orders}.values()
    ends = []
    for shuffled in (False, True):
        chain = Chain()
        chain.settle_in(*HOMES)
        batch = list(distinct)
        order_of = list(range(len(batch)))
        if shuffled:
            random.Random(seed).shuffle(order_of)
        txs = [chain.tx(HOMES[i % 4], batch[i], nonce=1 + i // 4) for i in sorted(order_of)]
        by_home = {home.id: [tx for tx in txs if tx.sender == home.id] for home in HOMES}
        turns = [HOMES[i % 4].id for i in order_of]
        chain.block(now_ms, *(by_home[home].pop(0) for home in turns))
        result = chain.block(slot_ms(FIRST_SLOT + 14))
        ends.append(
            [(e["slot"], e["priceUcPerKwh"], e["tradedWh"], sorted(map(str, e["awards"])))
             for e in events_of(result, "cleared")]
        )  # fmt: skip
    assert ends[0] == ends[1]
