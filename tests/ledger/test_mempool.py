"""The mempool: checked once, bounded, in nonce order."""

import pytest
from support.chain_builder import (
    FIRST_SLOT,
    START_MS,
    SUPERVISOR,
    Chain,
    asset,
    bid,
    key,
    register,
    slot_ms,
)

from ledger.mempool import SENDER_OPERATIONS, Budget, Mempool
from wire.errors import Refusal, WireError
from wire.transactions import Transaction

NOW_MS = START_MS + 60_000
ANN, BOB = key("ann"), key("bob")


@pytest.fixture
def chain():
    chain = Chain()
    chain.settle_in(ANN, BOB)
    return chain


@pytest.fixture
def pool(chain):
    return Mempool(chain.ledger)


def take(pool, transactions, before=(), now_ms=NOW_MS):
    return pool.take(now_ms, Budget(transactions=transactions), before)


def order(chain: Chain, sender=ANN, **options) -> Transaction:
    return chain.tx(sender, bid("buy", FIRST_SLOT + 2, 100, 1000), **options)


def refusal(pool: Mempool, raw: bytes, now_ms: int = NOW_MS) -> Refusal:
    before = len(pool), pool.size_bytes
    with pytest.raises(WireError) as caught:
        pool.add(raw, now_ms)
    assert (len(pool), pool.size_bytes) == before, "a refused transaction leaves nothing"
    return caught.value.refusal


def test_a_good_transaction_waits_and_is_found(chain, pool):
    tx = order(chain)
    assert pool.add(tx.raw, NOW_MS) == tx
    assert pool.get(tx.txid) == tx
    assert pool.missing([tx.txid, b"x" * 32]) == [b"x" * 32]
    assert pool.size_bytes == len(tx.raw)


def test_a_second_delivery_is_the_same_transaction(chain, pool):
    tx = order(chain)
    assert pool.add(tx.raw, NOW_MS) is pool.add(tx.raw, NOW_MS)
    assert len(pool) == 1


def test_bad_signatures_unknown_senders_and_rubbish_are_refused_by_name(chain, pool):
    tx = order(chain)
    assert refusal(pool, b"rubbish") is Refusal.MALFORMED
    assert refusal(pool, order(chain, key("stranger")).raw) is Refusal.UNKNOWN_SENDER
    for place in (b'"energyWh":100', b'"signature":"'):
        at = tx.raw.index(place) + len(place) - (1 if place[-1:] != b'"' else 0)
        changed = bytearray(tx.raw)
        changed[at] = ord("7") if changed[at] != ord("7") else ord("8")
        assert refusal(pool, bytes(changed)) is Refusal.BAD_SIGNATURE


def test_nonces_used_taken_or_far_ahead_are_refused(chain, pool):
    used = order(chain, nonce=0)
    assert refusal(pool, used.raw) is Refusal.WRONG_NONCE
    tx = order(chain)
    pool.add(tx.raw, NOW_MS)
    twin = chain.tx(ANN, bid("buy", FIRST_SLOT + 2, 7, 7), nonce=tx.nonce)
    assert refusal(pool, twin.raw) is Refusal.WRONG_NONCE
    assert refusal(pool, order(chain, nonce=tx.nonce + 256).raw) is Refusal.WRONG_NONCE


def test_an_executed_transaction_is_replayed(chain, pool):
    tx = order(chain)
    pool.add(tx.raw, NOW_MS)
    chain.block(NOW_MS, tx)
    pool.remove([tx.txid])
    assert len(pool) == 0
    assert refusal(pool, tx.raw) is Refusal.REPLAYED


def test_expired_transactions_are_refused_and_dropped(chain, pool):
    tx = order(chain, expires_slot=FIRST_SLOT)
    assert refusal(pool, tx.raw, slot_ms(FIRST_SLOT + 1)) is Refusal.EXPIRED
    pool.add(tx.raw, NOW_MS)
    assert pool.drop_useless(NOW_MS) == []
    assert pool.drop_useless(slot_ms(FIRST_SLOT + 1)) == [tx]
    assert len(pool) == 0


def test_take_waits_for_the_missing_nonce(chain, pool):
    first, second, third = (order(chain) for _ in range(3))
    pool.add(third.raw, NOW_MS)
    pool.add(first.raw, NOW_MS)
    assert take(pool, 10) == [first]
    pool.add(second.raw, NOW_MS)
    assert take(pool, 10) == [first, second, third]
    assert take(pool, 2) == [first, second]


def test_take_counts_excluded_ones_as_executed(chain, pool):
    first, second = order(chain), order(chain)
    pool.add(first.raw, NOW_MS)
    pool.add(second.raw, NOW_MS)
    assert take(pool, 10, [first.txid]) == [second]
    assert take(pool, 10, [first.txid, second.txid]) == []


def test_senders_take_turns(chain, pool):
    anns = [order(chain) for _ in range(3)]
    bobs = [order(chain, BOB)]
    for tx in anns + bobs:
        pool.add(tx.raw, NOW_MS)
    assert take(pool, 2) == [anns[0], bobs[0]]


def test_a_registration_may_wait_with_what_follows_it(chain, pool):
    eve = key("eve")
    first, second = chain.tx(eve, register(eve)), order(chain, eve)
    assert refusal(pool, second.raw) is Refusal.UNKNOWN_SENDER
    pool.add(first.raw, NOW_MS)
    pool.add(second.raw, NOW_MS)
    assert take(pool, 10) == [first, second]
    chain.block(NOW_MS, first, second)


def test_another_transaction_with_an_executed_nonce_is_forgotten(chain, pool):
    mine = order(chain)
    theirs = chain.tx(ANN, bid("buy", FIRST_SLOT + 2, 7, 7), nonce=mine.nonce)
    pool.add(mine.raw, NOW_MS)
    assert pool.add_fetched(theirs.raw) == theirs
    assert pool.missing([theirs.txid]) == []
    chain.block(NOW_MS, theirs)
    pool.remove([theirs.txid])
    assert len(pool) == 0
    assert pool.get(theirs.txid) is None


def test_fetched_bodies_are_verified_bounded_and_never_proposed(chain):
    pool = Mempool(chain.ledger, max_fetched_bytes=2_000)
    txs = [order(chain) for _ in range(8)]
    for tx in txs:
        pool.add_fetched(tx.raw)
    kept = [tx for tx in txs if pool.get(tx.txid)]
    assert kept == txs[-len(kept) :]
    assert sum(len(tx.raw) for tx in kept) <= 2_000
    assert take(pool, 10) == []
    changed = txs[0].raw.replace(b'"energyWh":100', b'"energyWh":101')
    with pytest.raises(WireError):
        pool.add_fetched(changed)


def test_a_fetched_registration_vouches_for_a_fetched_follower(chain, pool):
    eve = key("eve")
    first, second = chain.tx(eve, register(eve)), order(chain, eve)
    with pytest.raises(WireError):
        pool.add_fetched(second.raw)
    pool.add_fetched(first.raw)
    assert pool.add_fetched(second.raw) == second


def test_the_pool_is_bounded_by_number_size_and_sender(chain):
    few = Mempool(chain.ledger, max_transactions=2)
    txs = [order(chain) for _ in range(4)]
    few.add(txs[0].raw, NOW_MS)
    few.add(txs[1].raw, NOW_MS)
    assert refusal(few, txs[2].raw) is Refusal.MEMPOOL_FULL
    small = Mempool(chain.ledger, max_bytes=len(txs[0].raw) * 2 + 10)
    small.add(txs[0].raw, NOW_MS)
    small.add(txs[1].raw, NOW_MS)
    assert refusal(small, txs[2].raw) is Refusal.MEMPOOL_FULL
    one = Mempool(chain.ledger, max_per_sender=2)
    one.add(txs[1].raw, NOW_MS)
    other = chain.tx(SUPERVISOR, asset(ANN, "production", 1, FIRST_SLOT, FIRST_SLOT))
    one.add(other.raw, NOW_MS)
    one.add(txs[0].raw, NOW_MS)
    assert refusal(one, txs[2].raw) in (Refusal.RATE_LIMITED, Refusal.WRONG_NONCE)


# --- Fair shares ----------------------------------------------------------------------------------


def big(chain: Chain, sender, operations=64) -> Transaction:
    return chain.tx(sender, *[bid("buy", FIRST_SLOT + 2, 100, 1000)] * operations)


def test_addresses_with_bundles_that_fill_every_block_do_not_keep_a_single_bid_out(chain, pool):
    """Thirty-two addresses, as many as one home may have, always with something large to send."""
    flooders = [key(f"flooder {number}") for number in range(32)]
    chain.settle_in(*flooders, at_ms=START_MS + 100)
    for flooder in flooders:
        pool.add(chain.tx(flooder, {"op": "bid-offer", "pad": "x" * 62_000}).raw, NOW_MS)
    mine = order(chain)
    pool.add(mine.raw, NOW_MS)
    block = pool.take(NOW_MS, Budget())
    assert block[0] == mine and len(block) == 17


def test_one_sender_fills_no_block_with_its_bundles(chain, pool):
    bundles = [big(chain, ANN) for _ in range(4)]
    for tx in bundles:
        pool.add(tx.raw, NOW_MS)
    assert pool.take(NOW_MS, Budget()) == bundles[: SENDER_OPERATIONS // 64]
    pool.add(big(chain, BOB).raw, NOW_MS)
    assert len(pool.take(NOW_MS, Budget())) == SENDER_OPERATIONS // 64 + 1


def test_whoever_was_served_goes_to_the_end_of_the_line(chain, pool):
    """With A addresses waiting, each is in one of the next ⌈A / places⌉ blocks."""
    homes = [key(f"home {number}") for number in range(6)]
    chain.settle_in(*homes, at_ms=START_MS + 100)
    for _ in range(3):
        for home in homes:
            pool.add(order(chain, home).raw, NOW_MS)
    mine = order(chain)
    pool.add(mine.raw, NOW_MS)
    for at in range(4):
        block = take(pool, 2, now_ms=NOW_MS + at)
        if mine in block:
            return
        chain.block(NOW_MS + at, *block)
        pool.remove([tx.txid for tx in block])
    pytest.fail("seven addresses, two places a block: four blocks do")


def test_whoever_is_served_in_a_block_that_waits_for_execution_has_had_its_turn(chain, pool):
    anns = [order(chain) for _ in range(2)]
    bobs = [order(chain, BOB)]
    for tx in anns + bobs:
        pool.add(tx.raw, NOW_MS)
    assert take(pool, 1) == anns[:1]
    assert take(pool, 1, [anns[0].txid]) == bobs


def test_a_full_pool_takes_room_from_whoever_has_the_most(chain):
    """One sender's 256 transactions of 64 KiB are the whole pool: they must not be."""
    room = 20 * len(big(chain, key("carl")).raw) + 200
    pool = Mempool(chain.ledger, max_bytes=room)
    bulk = [big(chain, ANN) for _ in range(21)]
    for tx in bulk[:20]:
        pool.add(tx.raw, NOW_MS)
    assert refusal(pool, bulk[20].raw) is Refusal.MEMPOOL_FULL
    mine = order(chain, BOB)
    pool.add(mine.raw, NOW_MS)
    assert pool.size_bytes <= room
    assert mine in take(pool, 512)
    assert len(pool) == 20
    # what was given up may be in a block that is voted on: its body is still here
    assert pool.missing([tx.txid for tx in bulk[:20]]) == []
