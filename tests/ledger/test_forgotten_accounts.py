"""The ledger forgets an ended address' account with its grant; nobody can use the address again."""

import pytest
from support.chain_builder import (
    FIRST_SLOT,
    START_MS,
    SUPERVISOR,
    Chain,
    asset,
    bid,
    deposit,
    events_of,
    key,
    make_genesis,
    receipt,
    register,
    slot_ms,
)

from ledger import proofs
from ledger.checkpoint import genesis_checkpoint
from ledger.contracts import keys
from ledger.contracts.context import TRUE_UP_SLOTS
from ledger.genesis import Privacy, write_genesis
from ledger.mempool import Mempool
from ledger.prover import prove_row
from ledger.store import LedgerStore
from ledger.verify import verify_folder
from wire.errors import ExpiredError, ReplayedError

SLOTS = 4
"""A period of the market's addresses."""
END = FIRST_SLOT + SLOTS - 1
FORGOTTEN = END + TRUE_UP_SLOTS + 3
FOR_EVER = 10**9
"""Transactions that say they hold so long: nothing but the ledger's rules keeps them out."""


def lived(store=None, privacy=True, homes=1, end_slot=END):
    """Homes that bid, bought and were metered under addresses of one period, long ago."""
    changes = {"privacy": Privacy(address_slots=SLOTS)} if privacy else {}
    chain = Chain(store, make_genesis(**changes))
    sent = []

    def tx(home, *operations):
        sent.append(chain.tx(home, *operations, expires_slot=FOR_EVER))
        return sent[-1]

    those = [key(f"forgotten {number}") for number in range(homes)]
    chain.block(START_MS + 1, *(tx(one, register(one, end_slot=end_slot)) for one in those))
    given = [
        part
        for one in those
        for part in (deposit(one, 50_000_000), asset(one, "consumption", 900, FIRST_SLOT, END))
    ]
    chain.block(START_MS + 2, chain.tx(SUPERVISOR, *given))
    chain.block(START_MS + 3, *(tx(one, bid("buy", END, 100, 200_000)) for one in those))
    chain.seal()
    used = [(one, receipt(one, FIRST_SLOT, 10, chain.chain_id)) for one in those]
    chain.block(slot_ms(FIRST_SLOT + 1, 1), *(tx(one, said) for one, said in used))
    return chain, those, sent


def everything_of(chain, home):
    return [name for name, _ in chain.ledger.state.scan("") if home.id in name]


def test_a_forgotten_address_leaves_no_row_and_its_owner_is_told_of_the_money():
    chain, (home,), _ = lived()
    free_uc, locked_uc = chain.account(home)
    assert chain.ledger.query(keys.account(home.id))["nonce"] == 3
    result = chain.block(slot_ms(FORGOTTEN))
    (closed,) = events_of(result, "account-closed")
    told = [one for one in events_of(result, "balance") if one["address"] == home.id]
    assert told == [{"event": "balance", "address": home.id, "balanceUc": 0, "lockedUc": 0}]
    assert 0 < closed["amountUc"] <= free_uc + locked_uc
    assert everything_of(chain, home) == []
    chain.ledger._check_all_money()


def test_many_addresses_leave_a_state_as_small_as_one_does():
    left = []
    for homes in (1, 30):
        chain, _, _ = lived(homes=homes)
        assert len(chain.ledger.state) > 2 * homes
        chain.block(slot_ms(FORGOTTEN))
        chain.block(slot_ms(FORGOTTEN + 2))
        left.append(len(chain.ledger.state))
    assert left[0] == left[1]


def test_a_market_without_fresh_addresses_keeps_the_row_and_its_nonce():
    chain, (home,), _ = lived(privacy=False)
    chain.block(slot_ms(FORGOTTEN))
    assert chain.ledger.query(keys.account(home.id))["nonce"] == 3


def test_none_of_its_transactions_can_be_executed_again(tmp_path):
    """A leader that proposes them gets them into a block, and nothing comes of it."""
    store = LedgerStore.in_folder(tmp_path)
    chain, (home,), sent = lived(store)
    write_genesis(chain.genesis, tmp_path / "genesis.json")
    chain.block(slot_ms(FORGOTTEN))
    before = chain.ledger.query(keys.TOTALS)
    again = chain.tx(home, register(home, end_slot=END), nonce=0, expires_slot=FOR_EVER + 1)
    later = chain.tx(home, bid("buy", FORGOTTEN + 4, 1, 1), nonce=1, expires_slot=FOR_EVER + 1)
    result = chain.block(slot_ms(FORGOTTEN, 1), again, later)
    assert [one.code for one in result.receipts] == ["UNKNOWN_SENDER"] * 2
    assert everything_of(chain, home) == []
    assert chain.ledger.query(keys.TOTALS) == before

    pool = Mempool(chain.ledger)
    for tx in sent:
        with pytest.raises(ReplayedError):
            pool.add(tx.raw, chain.ledger.time_ms)
    height = chain.ledger.executed_height
    store.close()
    assert verify_folder(tmp_path).height == height


def test_a_node_without_the_old_blocks_does_not_take_its_registration_again():
    """It does not know the transaction any more: the grant in it tells that its time is over."""
    chain, _, (registration, *_) = lived()
    chain.block(slot_ms(FORGOTTEN))
    joined = chain.ledger
    joined.is_executed = lambda _txid: False
    with pytest.raises(ExpiredError):
        Mempool(joined).add(registration.raw, joined.time_ms)
    fresh = key("fresh at a joined node")
    tx = chain.tx(fresh, register(fresh, start_slot=FORGOTTEN + 1, end_slot=FORGOTTEN + SLOTS))
    assert Mempool(joined).add(tx.raw, joined.time_ms) == tx


@pytest.mark.parametrize("first_end", [FIRST_SLOT + 1, END])
def test_a_longer_grant_of_the_same_first_slot_does_not_bring_it_back(first_end):
    """A CSM-DB renews grants before they end; with one that was kept back, old nonces count."""
    chain, (home,), sent = lived(end_slot=first_end)
    longer = register(home, end_slot=FORGOTTEN + 400)
    early = chain.ledger.query(keys.account(home.id))
    assert early is not None, "the account is there to the end of the period, and true-ups"
    chain.block(slot_ms(FORGOTTEN) - 1)
    assert chain.ledger.query(keys.account(home.id)) is not None
    chain.block(slot_ms(FORGOTTEN))
    back = chain.tx(home, longer, nonce=0, expires_slot=FOR_EVER)
    assert chain.block(slot_ms(FORGOTTEN, 1), back, *sent[1:]).receipts[0].code == "UNKNOWN_SENDER"
    assert everything_of(chain, home) == []


def test_a_longer_grant_that_comes_in_time_keeps_the_account():
    chain, (home,), _ = lived()
    chain.block(slot_ms(END), chain.tx(home, register(home, end_slot=FORGOTTEN + 400)))
    chain.block(slot_ms(FORGOTTEN + 1))
    assert chain.ledger.query(keys.account(home.id))["nonce"] == 4


def test_light_clients_are_proved_that_the_account_is_not_there():
    chain, (home,), _ = lived()
    chain.block(slot_ms(FORGOTTEN))
    chain.seal()
    chain.seal()
    proof = prove_row(chain.genesis, chain.store, keys.account(home.id), None)
    assert proofs.verify(proof, genesis_checkpoint(chain.genesis)).value is None
