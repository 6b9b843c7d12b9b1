"""In a market of fresh addresses an ended one leaves neither money nor debts on the ledger."""

import pytest
from support.chain_builder import (
    FIRST_SLOT,
    START_MS,
    SUPERVISOR,
    VALIDATORS,
    Chain,
    asset,
    cpf,
    deposit,
    events_of,
    key,
    make_genesis,
    receipt,
    register,
    slot_ms,
)

from ledger.contracts import keys
from ledger.contracts.context import TRUE_UP_SLOTS
from ledger.execution import money_uc
from ledger.genesis import Privacy, write_genesis
from ledger.store import LedgerStore
from ledger.verify import verify_folder

RICH, POOR, IDLE = key("rich"), key("poor"), key("idle")
END = FIRST_SLOT + 3
FORGOTTEN = END + TRUE_UP_SLOTS + 3
"""The slot in which the grants are forgotten: true-ups are over, one slot of grace."""

OWED_UC = 300_000 + 1_500_000
"""1 kWh that was metered, and the last slot in silence at the most its connection lets in."""


def started(privacy, store=None):
    """Three homes under addresses of four slots; one has money, one will owe some."""
    changes = {"privacy": Privacy(address_slots=4)} if privacy else {}
    chain = Chain(store, make_genesis(**changes))
    homes = (RICH, POOR, IDLE)
    chain.block(START_MS + 1, *(chain.tx(one, register(one, end_slot=END)) for one in homes))
    chain.block(START_MS + 2, chain.tx(SUPERVISOR, deposit(RICH, 700)))
    for slot in range(FIRST_SLOT, END + 1):
        used = {RICH: 0, IDLE: 0, POOR: 1_000 if slot == FIRST_SLOT else 0}
        if slot == END:
            del used[POOR]
        said = [chain.tx(one, receipt(one, slot, wh, chain.chain_id)) for one, wh in used.items()]
        chain.block(slot_ms(slot + 1, 1), *said)
    assert chain.account(POOR)[0] == -300_000, "1 kWh at retail, and no money"
    return chain


def is_whole(chain):
    totals = chain.ledger.query("totals")
    return money_uc(chain.ledger.state) == totals["depositsUc"] - totals["withdrawalsUc"]


def test_what_is_left_and_what_is_owed_goes_to_the_private_accounts_once():
    chain = started(privacy=True)
    before = chain.ledger.query("totals")
    early = chain.block(slot_ms(FORGOTTEN) - 1)
    assert events_of(early, "account-closed") == []
    result = chain.block(slot_ms(FORGOTTEN))
    assert sorted(events_of(result, "account-closed"), key=lambda row: row["amountUc"]) == [
        {"event": "account-closed", "address": POOR.id, "amountUc": -OWED_UC},
        {"event": "account-closed", "address": RICH.id, "amountUc": 700},
    ]
    after = chain.ledger.query("totals")
    assert after["withdrawalsUc"] - before["withdrawalsUc"] == 700
    assert after["depositsUc"] - before["depositsUc"] == OWED_UC
    assert is_whole(chain)
    assert chain.account(RICH) == chain.account(POOR) == (0, 0)
    assert events_of(chain.block(slot_ms(FORGOTTEN + 5)), "account-closed") == []


def test_a_market_without_fresh_addresses_leaves_ended_accounts_as_they_are():
    chain = started(privacy=False)
    result = chain.block(slot_ms(FORGOTTEN))
    assert events_of(result, "account-closed") == []
    assert chain.account(RICH) == (700, 0)
    assert chain.ledger.query(keys.grant(RICH.id)) is None


def test_what_an_open_offer_holds_is_handed_over_when_it_has_ended():
    chain = Chain(genesis=make_genesis(privacy=Privacy(address_slots=4)))
    chain.block(START_MS + 1, chain.tx(RICH, register(RICH, end_slot=END)))
    far = END + 500
    chain.block(
        START_MS + 2,
        chain.tx(SUPERVISOR, deposit(RICH, 900_000), asset(RICH, "consumption", 900, END, far)),
    )
    state = chain.ledger.state
    before = state.get(keys.account(RICH.id))
    state.begin()
    state.put(keys.account(RICH.id), {**before, "balanceUc": 600_000, "lockedUc": 300_000})
    state.commit()
    assert events_of(chain.block(slot_ms(FORGOTTEN)), "account-closed") == []
    assert chain.ledger.query(keys.grant(RICH.id)) is not None
    state.begin()
    state.put(keys.account(RICH.id), {**before, "balanceUc": 900_000, "lockedUc": 0})
    state.commit()
    assert events_of(chain.block(slot_ms(FORGOTTEN + 1)), "account-closed") == [
        {"event": "account-closed", "address": RICH.id, "amountUc": 900_000}
    ]


def test_the_chain_verifies_and_the_ended_address_cannot_come_back(tmp_path):
    store = LedgerStore.in_folder(tmp_path)
    chain = started(privacy=True, store=store)
    write_genesis(chain.genesis, tmp_path / "genesis.json")
    chain.block(slot_ms(FORGOTTEN))
    again = chain.tx(RICH, register(RICH, end_slot=END))
    assert chain.block(slot_ms(FORGOTTEN) + 1, again).receipts[0].code == "UNKNOWN_SENDER"
    height = chain.ledger.executed_height
    store.close()
    assert verify_folder(tmp_path).height == height


@pytest.mark.parametrize(("privacy", "code"), [(True, "NOT_ALLOWED"), (False, "OK")])
def test_where_addresses_are_fresh_a_cpf_comes_from_its_validator_alone(privacy, code):
    """From a trading address it would tell whose that is."""
    chain = started(privacy)
    said = cpf(VALIDATORS[0], FIRST_SLOT + 1, 40_000, chain.chain_id, start_slot=FIRST_SLOT - 6)
    now_ms = chain.ledger.time_ms + 1
    assert chain.codes(now_ms, RICH, said) == [code]
    if code != "OK":
        assert chain.codes(now_ms + 1, VALIDATORS[0], said) == ["OK"]


def test_where_addresses_are_fresh_rewards_go_to_an_address_that_never_trades():
    chain = started(privacy=True)

    def choose(mode):
        operation = {"op": "set-participation", "mode": mode}
        return chain.codes(chain.ledger.time_ms + 1, RICH, operation)

    assert choose("RE+TE") == ["NOT_ALLOWED"]
    assert choose("RE") == ["OK"]
    assert choose("TE") == ["NOT_ALLOWED"]
