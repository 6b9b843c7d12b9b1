"""Leading is paid from a funded pool, by CPF and consent, and less than a false CPF costs."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.chain_builder import (
    FIRST_SLOT,
    START_MS,
    SUPERVISOR,
    SUPERVISOR_UC,
    VALIDATORS,
    Chain,
    auction,
    auction_bid,
    bid,
    cpf,
    deposit,
    events_of,
    key,
    make_genesis,
    slot_ms,
)

from ledger.contracts.evidence import evidence_operation
from ledger.execution import money_uc
from ledger.genesis import CPF_STALE_SLOTS, Poe, Prices, Rewards, max_reward_uc, write_genesis
from ledger.store import LedgerStore
from ledger.types import VoteKind, make_vote
from ledger.verify import verify_folder
from wire.cpf import Q16, cpf_q16
from wire.errors import ConfigError

ANN, BOB, EVE = key("ann"), key("bob"), key("eve")
BEST = VALIDATORS[0]
PAID = Rewards(per_block_uc=180, max_blocks=4)


def mode(name):
    return {"op": "set-participation", "mode": name}


def payee(who):
    return {"op": "set-payee", "address": who.id}


def fund(amount_uc):
    return {"op": "fund-rewards", "amountUc": amount_uc}


def make_chain(store=None, rewards=PAID):
    chain = Chain(store, make_genesis(rewards=rewards))
    chain.settle_in(ANN, BOB)
    return chain


@pytest.fixture
def chain():
    return make_chain()


def do(chain, who, *operations):
    return chain.codes(chain.ledger.time_ms + 1, who, *operations)


def earning(chain, *, cpf_q16=Q16, funded=10**6, how="RE+TE"):
    """Ann's validator is the best one, has an epoch ahead of it, and the pool is full."""
    if funded:
        assert do(chain, SUPERVISOR, fund(funded)) == ["OK"]
    assert do(chain, ANN, mode(how)) == ["OK"]
    assert do(chain, BEST, payee(ANN)) == ["OK"]
    chain.seal()
    said = cpf(BEST, FIRST_SLOT + 7, cpf_q16, chain.chain_id)
    assert chain.codes(slot_ms(FIRST_SLOT + 8, 1), BEST, said) == ["OK"]
    chain.seal()
    return chain


def led(chain, blocks):
    """As many blocks with a transaction, all led by the best."""
    while blocks:
        leads = chain.epoch.leader(chain.view + 1) == 0
        if leads:
            do(chain, BOB, {"op": "set-participation", "mode": "TE"})
            blocks -= 1
        else:
            chain.view += 1


def pool(chain):
    return (chain.ledger.query("pool") or {"rewardsUc": 0})["rewardsUc"]


def leads_nothing(chain):
    while chain.epoch.leader(chain.view + 1) == 0:
        chain.view += 1


# --- paying ---------------------------------------------------------------------------------------


def test_who_leads_blocks_with_transactions_is_paid_at_the_seal(chain):
    earning(chain)
    before = chain.account(ANN)[0]
    led(chain, 3)
    assert chain.account(ANN)[0] == before, "not before the seal"
    leads_nothing(chain)
    result = chain.seal()
    assert events_of(result, "rewards") == [
        {
            "event": "rewards", "epoch": chain.epoch.epoch - 1, "poolUc": 10**6 - 540,
            "rows": [
                {"validator": BEST.id, "address": ANN.id, "blocks": 3, "amountUc": 540}
            ],
        }
    ]  # fmt: skip
    assert chain.account(ANN)[0] == before + 540
    assert pool(chain) == 10**6 - 540


def test_the_reward_goes_by_the_cpf(chain):
    earning(chain, cpf_q16=Q16 // 3)
    led(chain, 2)
    leads_nothing(chain)
    [event] = events_of(chain.seal(), "rewards")
    assert event["rows"][0]["amountUc"] == 360 * (Q16 // 3) // Q16


def test_no_more_blocks_are_paid_than_the_genesis_says(chain):
    earning(chain)
    led(chain, 9)
    [event] = events_of(chain.seal(), "rewards")
    assert event["rows"][0]["amountUc"] == 4 * 180


def test_empty_blocks_earn_nothing(chain):
    earning(chain)
    while chain.epoch.leader(chain.view + 1) != 0:
        chain.view += 1
    chain.block(chain.ledger.time_ms + 1)
    leads_nothing(chain)
    assert not events_of(chain.seal(), "rewards")


@pytest.mark.parametrize("how", ["TE", "RE", "RE+TE"])
def test_rewards_need_the_consent_of_the_address(chain, how):
    earning(chain, how=how)
    led(chain, 1)
    leads_nothing(chain)
    assert bool(events_of(chain.seal(), "rewards")) == (how != "TE")


def test_a_validator_without_a_cpf_earns_nothing(chain):
    assert do(chain, SUPERVISOR, fund(1000)) == ["OK"]
    do(chain, ANN, mode("RE"))
    do(chain, BEST, payee(ANN))
    chain.seal()
    led(chain, 2)
    leads_nothing(chain)
    assert not events_of(chain.seal(), "rewards")
    assert pool(chain) == 1000


def test_the_banned_earn_nothing(chain):
    earning(chain)
    led(chain, 2)
    votes = [
        make_vote(BEST, chain.chain_id, 0, 1, 3, VoteKind.NOTARIZE, bytes([i]) * 32)
        for i in (1, 2)
    ]  # fmt: skip
    assert do(chain, BOB, evidence_operation(*votes)) == ["OK"]
    assert not events_of(chain.seal(), "rewards")


def test_an_empty_pool_pays_nothing_and_a_low_one_all_of_it_at_most():
    for funded in (0, 1, 100, 359, 360):
        chain = earning(make_chain(), funded=funded)
        led(chain, 2)
        leads_nothing(chain)
        before = chain.account(ANN)[0]
        chain.seal()
        assert chain.account(ANN)[0] - before == funded
        assert pool(chain) == 0


def test_without_rewards_in_the_genesis_there_is_nothing_to_fund():
    chain = make_chain(rewards=Rewards())
    assert do(chain, SUPERVISOR, fund(1)) == ["NOT_FOUND"]
    chain.seal()
    assert chain.ledger.query("poe/turns") is None


# --- refusals -------------------------------------------------------------------------------------


def test_the_pool_is_funded_by_the_supervisor_from_its_own_money(chain):
    assert do(chain, ANN, fund(1)) == ["NOT_ALLOWED"]
    assert do(chain, SUPERVISOR, fund(0), fund(-5), fund(2 * SUPERVISOR_UC), fund(7), fund(8)) == [
        "QUANTITY_OUT_OF_RANGE", "QUANTITY_OUT_OF_RANGE", "INSUFFICIENT_FUNDS", "OK", "OK",
    ]  # fmt: skip
    assert chain.account(SUPERVISOR)[0] == SUPERVISOR_UC - 15
    assert chain.ledger.query("totals")["depositsUc"] == SUPERVISOR_UC + 200_000_000


def test_modes_and_payees_are_set_by_those_they_belong_to(chain):
    assert do(chain, ANN, payee(ANN), mode("EE")) == ["NOT_ALLOWED", "MALFORMED"]
    assert do(chain, BEST, mode("RE"), payee(EVE), payee(ANN)) == [
        "UNKNOWN_SENDER", "NOT_FOUND", "OK",
    ]  # fmt: skip
    assert chain.ledger.query(f"validator/{BEST.id}")["payee"] == ANN.id


def test_in_mode_re_no_order_is_taken_and_by_default_all_are(chain):
    slot = chain.ledger.slot + 3
    do(chain, SUPERVISOR, auction("flex", "reverse", slot, 10, 10, "as-bid"))
    orders = [bid("buy", slot, 1, 1), bid("sell", slot, 1, 1), auction_bid("flex", 1, 1)]
    assert do(chain, ANN, *orders) == ["OK"] * 3
    assert do(chain, ANN, mode("RE"), *orders) == ["OK"] + ["REWARDS_ONLY"] * 3
    assert do(chain, ANN, mode("RE+TE"), *orders) == ["OK"] * 4
    assert do(chain, ANN, mode("TE"), *orders) == ["OK", "OK", "OK", "RATE_LIMITED"]
    assert chain.ledger.query(f"participation/{ANN.id}") is None


# --- the bound ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode_of_cost", ["burn", "free"])
def test_the_genesis_refuses_rewards_that_a_false_balance_would_be_worth(mode_of_cost):
    most = max_reward_uc(make_genesis())
    if mode_of_cost == "burn":
        make_genesis(rewards=Rewards(per_block_uc=most, max_blocks=1))
        with pytest.raises(ConfigError, match="worth of the energy"):
            make_genesis(rewards=Rewards(per_block_uc=most + 1, max_blocks=1))
    else:
        with pytest.raises(ConfigError, match="worth of the energy"):
            make_genesis(poe=Poe(min_energy_wh=0), rewards=Rewards(per_block_uc=1, max_blocks=1))


def test_the_bound_is_no_smaller_than_it_has_to_be():
    """Where burning is worth most (no base, least turnover, almost balanced) it breaks even."""
    energy_wh, burnt_wh, feed_in = 100_000, 2_000, 80_000
    poe = Poe(window_slots=1, base=0, min_energy_wh=energy_wh)
    genesis = make_genesis(poe=poe, prices=Prices(feed_in_uc_per_kwh=feed_in))
    before = cpf_q16([-burnt_wh], [energy_wh], poe.kappa_milli) / Q16
    gained_uc = max_reward_uc(genesis) * (1 - before * before)  # of a share c, c is paid
    lost_uc = burnt_wh * feed_in / 1000
    assert 0.95 * lost_uc < gained_uc * CPF_STALE_SLOTS <= lost_uc


@given(
    st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 3000)), min_size=1, max_size=8),
    st.data(),
    st.integers(0, 5000),
    st.integers(0, 60_000),
    st.integers(0, 300_000),
)
def test_burning_costs_more_than_it_earns(slots, data, kappa_milli, base, feed_in):
    """Of any day and any burning of surplus, by the arithmetic of `max_reward_uc`."""
    poe = Poe(window_slots=len(slots), kappa_milli=kappa_milli, base=base)
    genesis = make_genesis(poe=poe, prices=Prices(feed_in_uc_per_kwh=feed_in))
    most_uc = max_reward_uc(genesis)
    made = [produced for produced, _ in slots]
    nets = [used - produced for produced, used in slots]
    burnt = [data.draw(st.integers(0, max(0, -net))) for net in nets]
    if sum(max(p, p + net) for p, net in zip(made, nets, strict=True)) < poe.min_energy_wh:
        return
    after = [net + one for net, one in zip(nets, burnt, strict=True)]

    def reward_uc(c_q16):
        """Blocks in proportion to the weight, all paid at the best CPF."""
        weight, full = base + c_q16, base + Q16
        return most_uc * weight * c_q16 // (full * Q16)

    gained_uc = reward_uc(cpf_q16(after, made, kappa_milli)) - reward_uc(
        cpf_q16(nets, made, kappa_milli)
    )
    epochs = len(slots) + CPF_STALE_SLOTS - 1
    lost_uc = sum(burnt) * feed_in // 1000
    rounding_uc = 2 + most_uc // 1000
    assert gained_uc * epochs <= lost_uc + rounding_uc * epochs


# --- conservation ---------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["fund", "mode", "payee", "cpf", "bid", "lead", "seal", "deposit"]),
            st.integers(0, 3),
            st.integers(1, 2000),
        ),
        max_size=25,
    )
)
def test_money_is_conserved_whatever_is_paid(tmp_path_factory, steps):
    folder = tmp_path_factory.mktemp("chain")
    write_genesis(make_genesis(rewards=PAID), folder / "genesis.json")
    chain = earning(make_chain(LedgerStore.in_folder(folder)), funded=200)
    for what, number, amount in steps:
        home, validator = (ANN, BOB)[number % 2], VALIDATORS[number]
        slot = chain.ledger.slot
        match what:
            case "fund":
                do(chain, SUPERVISOR, fund(amount))
            case "mode":
                do(chain, home, mode(("TE", "RE", "RE+TE")[amount % 3]))
            case "payee":
                do(chain, validator, payee(home))
            case "cpf":
                do(chain, validator, cpf(validator, slot - 1, amount * 32, chain.chain_id))
            case "bid":
                do(chain, home, bid(("buy", "sell")[amount % 2], slot + 1, amount, 90_000))
            case "lead":
                led(chain, 1 + number)
            case "seal":
                chain.seal()
            case "deposit":
                do(chain, SUPERVISOR, deposit(home, amount))
        totals = chain.ledger.query("totals")
        assert money_uc(chain.ledger.state) == totals["depositsUc"] - totals["withdrawalsUc"]
        assert pool(chain) >= 0
    chain.store.close()
    report = verify_folder(folder)
    assert report.balances_uc == report.deposits_uc
    assert report.height > 0 and START_MS > 0
