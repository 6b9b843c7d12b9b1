"""The wallet is kept as full as the owner wants it, and each withdrawal happens once."""

from __future__ import annotations

from itertools import pairwise

import pytest
from support.chain_builder import FIRST_SLOT, grant_for, key

from hem.controller.policy import WalletPolicy
from hem.ems.addresses import OneAddress
from hem.ems.funds import AHEAD_SLOTS, RENEW_SLOTS, Funds
from hem.ems.wallet import Wallet
from runtime.csmdb_client import CsmDbRefusedError
from runtime.store import MemoryStore
from wire.certificates import AddressGrant, parse
from wire.withdrawal import read_withdrawal

HOME = key("home")
ADDRESS, OTHER_ADDRESS = HOME.id, key("home, later").id


class Dso:
    """Remembers what was asked; each name once, as the real one."""

    def __init__(self):
        self.asked, self.refuses, self.silent = {}, "", False
        self.refuses_energy, self.account_uc = False, 10**12

    async def withdraw_assets(self, withdrawal, address, amount_uc=0, assets=None):
        request = {
            "withdrawal": withdrawal, "address": address, "amountUc": amount_uc,
            "assets": assets or [],
        }  # fmt: skip
        read_withdrawal(request)  # as the DSO reads it
        if self.silent:
            raise TimeoutError
        if self.refuses or (assets and self.refuses_energy):
            raise CsmDbRefusedError(self.refuses, "no")
        self.asked.setdefault(withdrawal, request)
        return "sent"

    async def show_account(self):
        if self.silent:
            raise TimeoutError
        return {"balanceUc": self.account_uc, "withdrawn": []}

    def money(self):
        return [one["amountUc"] for one in self.asked.values() if one["amountUc"]]

    def energy(self):
        return [one["assets"] for one in self.asked.values() if one["assets"]]


class Case:
    def __init__(self, **policy):
        self.store, self.dso = MemoryStore(), Dso()
        self.wallet = Wallet(self.store, ADDRESS)
        self.policy = WalletPolicy(withdraw=True, **policy)
        self.start()

    def start(self, **grant):
        granted = parse(AddressGrant, grant_for(HOME, **grant))
        self.funds = Funds(self.policy, self.wallet, OneAddress(granted), self.store, self.dso)

    async def registered(self):
        await self.wallet.take_event(1, {"event": "address-registered", "address": ADDRESS})
        return self

    async def holds(self, free_uc, locked_uc=0):
        event = {
            "event": "balance", "address": ADDRESS, "balanceUc": free_uc, "lockedUc": locked_uc,
        }  # fmt: skip
        await self.wallet.take_event(2, event)


async def test_energy_for_the_slots_ahead_and_money_up_to_the_target():
    case = await Case(least_uc=100, target_uc=900).registered()
    await case.holds(50)
    assert await case.funds.tend(FIRST_SLOT) == []
    assert case.dso.money() == [850]
    (assets,) = case.dso.energy()
    assert {asset["kind"]: asset["energyWh"] for asset in assets} == {
        "production": 5_000, "consumption": 5_000,
    }  # fmt: skip
    assert (assets[0]["startSlot"], assets[0]["endSlot"]) == (
        FIRST_SLOT + 1, FIRST_SLOT + AHEAD_SLOTS,
    )  # fmt: skip


async def test_energy_is_withdrawn_again_before_it_ends_without_gap_or_overlap():
    case = await Case(least_uc=0, target_uc=0).registered()
    for slot in range(FIRST_SLOT, FIRST_SLOT + 200):
        if slot == FIRST_SLOT + 70:
            case.start()  # a restart
        await case.funds.tend(slot)
    spans = [(assets[0]["startSlot"], assets[0]["endSlot"]) for assets in case.dso.energy()]
    assert spans[0][0] == FIRST_SLOT + 1
    assert all(after[0] == before[1] + 1 for before, after in pairwise(spans))
    assert spans[-1][1] >= FIRST_SLOT + 199 + RENEW_SLOTS
    assert len(spans) == 3


async def test_nothing_is_withdrawn_beyond_the_grant():
    case = await Case().registered()
    case.start(end_slot=FIRST_SLOT + 10, can_sell=False)
    await case.funds.tend(FIRST_SLOT)
    await case.funds.tend(FIRST_SLOT + 9)
    (assets,) = case.dso.energy()
    assert [(asset["kind"], asset["endSlot"]) for asset in assets] == [
        ("consumption", FIRST_SLOT + 10)
    ]


async def test_money_under_way_is_not_asked_for_twice():
    case = await Case(least_uc=100, target_uc=900).registered()
    await case.funds.tend(FIRST_SLOT)
    await case.funds.tend(FIRST_SLOT + 1)
    assert case.dso.money() == [900]
    await case.holds(10, 30)
    await case.funds.tend(FIRST_SLOT + 2)
    assert case.dso.money() == [900, 860], "what is locked is held, too"


@pytest.mark.parametrize("trouble", ["silent", "refuses"])
async def test_a_dso_that_does_not_give_is_asked_again(trouble):
    case = await Case().registered()
    setattr(case.dso, trouble, "BANNED" if trouble == "refuses" else True)
    await case.funds.tend(FIRST_SLOT)
    setattr(case.dso, trouble, "" if trouble == "refuses" else False)
    for slot in (FIRST_SLOT + 1, FIRST_SLOT + 2):
        await case.funds.tend(slot)
    assert len(case.dso.energy()) == 1 and len(case.dso.money()) == 1


async def test_energy_that_is_refused_does_not_keep_the_money_back():
    case = await Case().registered()
    case.dso.refuses_energy = True
    await case.funds.tend(FIRST_SLOT)
    assert case.dso.energy() == [] and len(case.dso.money()) == 1


async def test_of_a_small_account_all_is_withdrawn_and_of_an_empty_one_nothing():
    case = await Case(least_uc=100, target_uc=900).registered()
    case.dso.account_uc = 800
    await case.funds.tend(FIRST_SLOT)
    case.dso.account_uc = 0
    for slot in range(FIRST_SLOT + 1, FIRST_SLOT + 5):
        await case.funds.tend(slot)
    assert case.dso.money() == [800]


async def test_a_fresh_address_gets_energy_and_money_of_its_own():
    case = await Case().registered()
    await case.funds.tend(FIRST_SLOT)
    case.wallet = Wallet(case.store, OTHER_ADDRESS)
    await case.wallet.take_event(2, {"event": "address-registered", "address": OTHER_ADDRESS})
    case.start()
    await case.funds.tend(FIRST_SLOT + 1)
    assert [one["address"] for one in case.dso.asked.values()].count(OTHER_ADDRESS) == 2


async def test_what_is_too_much_goes_back_to_the_dso():
    case = await Case(least_uc=100, target_uc=900, most_uc=1_000).registered()
    await case.holds(1_000)
    assert await case.funds.tend(FIRST_SLOT) == []
    await case.holds(1_500, 70)
    assert await case.funds.tend(FIRST_SLOT + 1) == [
        (f"deposit/{FIRST_SLOT + 1}", {"op": "deposit-financial-balance", "amountUc": 600})
    ]


async def test_an_owner_who_does_not_withdraw_and_a_home_not_registered_ask_for_nothing():
    unregistered = Case()
    await unregistered.funds.tend(FIRST_SLOT)
    unwilling = await Case().registered()
    unwilling.policy = WalletPolicy()
    unwilling.start()
    await unwilling.funds.tend(FIRST_SLOT)
    assert unregistered.dso.asked == unwilling.dso.asked == {}
