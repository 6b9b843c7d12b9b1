"""The order book: partial trades over energy and intervals; no order of events loses anything."""

import random

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from market.assets import EnergyAsset, Kind, energy_at, merge
from market.order_book import (
    MAX_ASSETS,
    Calendar,
    Offer,
    Trade,
    accept_offer,
    cost_of,
    post_offer,
    rescind_offer,
)
from market.wallets import Wallets
from wire.errors import Refusal

ANN, BOB, CEM = "ann", "bob", "cem"
SLOT_MS, SLOTS, PRICE_MAX = 1000, 8, 10**9
UNITS = 10**6


def produce(energy_wh, start, end):
    return EnergyAsset(Kind.PRODUCTION, energy_wh, start, end)


def consume(energy_wh, start, end):
    return EnergyAsset(Kind.CONSUMPTION, energy_wh, start, end)


def at(now_ms=0):
    """The gate of slot s closes at the end of the slot before."""
    return Calendar(now_ms, now_ms // SLOT_MS + 1, now_ms // SLOT_MS + SLOTS, PRICE_MAX)


def offer(address, asset, price=100_000, name="o", until_ms=None):
    until_ms = asset.end_slot * SLOT_MS if until_ms is None else until_ms
    return Offer(name, address, asset, price, until_ms)


@pytest.fixture
def books():
    """Three who have 500 Wh to produce and to consume in slots 1 to 8, and one unit of money."""
    books = Wallets()
    for who in (ANN, BOB, CEM):
        books.deposit(who, UNITS, [produce(500, 1, SLOTS), consume(500, 1, SLOTS)])
    return books


def picture(books):
    """All that is in the wallets, to see that nothing changed."""
    return repr(books.wallets), repr(books.offers)


# --- post -----------------------------------------------------------------------------------------


def test_an_offer_locks_its_asset_and_a_buyers_money(books):
    assert post_offer(books, offer(ANN, consume(300, 2, 4)), at()) is None
    wallet = books.wallet(ANN)
    assert (wallet.free_uc, wallet.locked_uc) == (UNITS - 90_000, 90_000)
    assert [energy_at(wallet.free[Kind.CONSUMPTION], s) for s in (1, 2, 4, 5)] == [
        500, 200, 200, 500,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("asset", "changes", "refusal"),
    [
        (produce(0, 1, 2), {}, "QUANTITY_OUT_OF_RANGE"),
        (produce(-5, 1, 2), {}, "QUANTITY_OUT_OF_RANGE"),
        (produce(5, 2, 1), {"until_ms": 900}, "MALFORMED"),
        (produce(5, 0, 1), {}, "SLOT_CLOSED"),
        (produce(5, 1, SLOTS + 1), {}, "SLOT_TOO_FAR"),
        (produce(501, 1, 1), {}, "INSUFFICIENT_ASSET"),
        (produce(5, 1, 1), {"price": -1}, "PRICE_OUT_OF_RANGE"),
        (produce(5, 1, 1), {"price": PRICE_MAX + 1}, "PRICE_OUT_OF_RANGE"),
        (produce(5, 1, 1), {"until_ms": 0}, "EXPIRED"),
        (consume(500, 1, 8), {"price": 250_002}, "INSUFFICIENT_FUNDS"),
    ],
)
def test_an_offer_that_nobody_could_accept_is_refused(books, asset, changes, refusal):
    before = picture(books)
    assert post_offer(books, offer(ANN, asset, **changes), at()) == refusal
    assert picture(books) == before


def test_an_asset_is_offered_once_over_overlapping_intervals(books):
    assert post_offer(books, offer(ANN, produce(300, 1, 4), name="a"), at()) is None
    assert post_offer(books, offer(ANN, produce(300, 4, 6), name="b"), at()) == "INSUFFICIENT_ASSET"
    assert post_offer(books, offer(ANN, produce(300, 5, 6), name="b"), at()) is None


def test_a_name_is_used_once(books):
    assert post_offer(books, offer(ANN, produce(1, 1, 1)), at()) is None
    assert post_offer(books, offer(BOB, produce(1, 1, 1)), at()) is Refusal.DUPLICATE


# --- rescind --------------------------------------------------------------------------------------


def test_only_the_owner_rescinds_and_gets_everything_back(books):
    before = picture(books)
    post_offer(books, offer(ANN, consume(300, 2, 4)), at())
    assert rescind_offer(books, "o", BOB) is Refusal.NOT_ALLOWED
    assert rescind_offer(books, "o", ANN) is None
    assert picture(books) == before
    assert rescind_offer(books, "o", ANN) is Refusal.NOT_FOUND


# --- accept ---------------------------------------------------------------------------------------


def test_a_part_is_traded_and_all_else_goes_back_to_its_owner(books):
    post_offer(books, offer(ANN, produce(300, 3, 6)), at())
    trade = accept_offer(books, "o", BOB, [consume(100, 5, 8)], at())
    assert isinstance(trade, Trade)
    assert trade.traded == (produce(100, 5, 6),)
    assert trade.offer_rest == (produce(300, 3, 4), produce(200, 5, 6))
    assert trade.assets_rest == (consume(100, 7, 8),)
    assert trade.amount_uc == 20_000
    assert (books.wallet(ANN).free_uc, books.wallet(BOB).free_uc) == (
        UNITS + 20_000,
        UNITS - 20_000,
    )
    assert books.wallet(ANN).free[Kind.PRODUCTION] == (
        produce(500, 1, 4), produce(400, 5, 6), produce(500, 7, 8),
    )  # fmt: skip
    assert books.offers == {}


def test_an_offer_to_buy_is_paid_from_its_lock(books):
    post_offer(books, offer(ANN, consume(300, 3, 6)), at())
    trade = accept_offer(books, "o", BOB, [produce(500, 4, 4)], at())
    assert (trade.buyer, trade.seller, trade.amount_uc) == (ANN, BOB, 30_000)
    assert (trade.traded, trade.assets_rest) == ((produce(300, 4, 4),), (produce(200, 4, 4),))
    assert (books.wallet(ANN).free_uc, books.wallet(ANN).locked_uc) == (UNITS - 30_000, 0)
    assert books.wallet(BOB).sold == books.wallet(ANN).bought == (produce(300, 4, 4),)


@pytest.mark.parametrize(
    ("who", "assets", "refusal"),
    [
        (ANN, [consume(1, 3, 3)], "NOT_ALLOWED"),
        (BOB, [], "MALFORMED"),
        (BOB, [consume(1, 3, 3)] * (MAX_ASSETS + 1), "MALFORMED"),
        (BOB, [produce(1, 3, 3)], "MALFORMED"),
        (BOB, [consume(1, 4, 3)], "MALFORMED"),
        (BOB, [consume(0, 3, 3)], "QUANTITY_OUT_OF_RANGE"),
        (BOB, [consume(1, 7, 8)], "NO_OVERLAP"),
        (BOB, [consume(1, 1, 2)], "NO_OVERLAP"),
        (BOB, [consume(501, 3, 3)], "INSUFFICIENT_ASSET"),
        (BOB, [consume(300, 3, 3), consume(300, 3, 3)], "INSUFFICIENT_ASSET"),
        (BOB, [consume(300, 3, 3), consume(1, 3, SLOTS + 1)], "SLOT_TOO_FAR"),
        (BOB, [consume(300, 3, 6)], "INSUFFICIENT_FUNDS"),
    ],
)
def test_an_acceptance_is_refused_by_name_and_changes_nothing(books, who, assets, refusal):
    post_offer(books, offer(ANN, produce(300, 3, 6), 900_000), at())
    before = picture(books)
    assert accept_offer(books, "o", who, assets, at()) == refusal
    assert picture(books) == before


def test_an_offer_is_accepted_once(books):
    post_offer(books, offer(ANN, produce(300, 3, 6)), at())
    assert isinstance(accept_offer(books, "o", BOB, [consume(1, 3, 3)], at()), Trade)
    assert accept_offer(books, "o", CEM, [consume(1, 3, 3)], at()) is Refusal.NOT_FOUND


def test_closed_slots_of_an_offer_cannot_be_accepted(books):
    """At the boundary itself the gate is closed."""
    post_offer(books, offer(ANN, produce(300, 1, 4)), at())
    assert accept_offer(books, "o", BOB, [consume(9, 1, 2)], at(2000)) is Refusal.SLOT_CLOSED
    trade = accept_offer(books, "o", BOB, [consume(9, 1, 4)], at(2000))
    assert trade.traded == (produce(9, 3, 4),)


def test_an_expired_offer_is_not_accepted_and_gives_everything_back(books):
    before = picture(books)
    post_offer(books, offer(ANN, consume(300, 3, 6), until_ms=1500), at())
    assert books.expire(1499) == []
    assert accept_offer(books, "o", BOB, [produce(1, 3, 3)], at(1500)) is Refusal.EXPIRED
    assert [gone.name for gone in books.expire(1500)] == ["o"]
    assert picture(books) == before


def test_the_best_offer_is_the_cheapest_to_buy_from_and_the_dearest_to_sell_to(books):
    for number, (asset, price) in enumerate(
        [(produce(1, 1, 1), 30), (produce(1, 1, 1), 20), (produce(1, 1, 1), 20),
         (consume(1, 1, 1), 5), (consume(1, 1, 1), 9), (consume(1, 1, 1), 9)]
    ):  # fmt: skip
        assert post_offer(books, offer(ANN, asset, price, f"o{number}"), at()) is None
    assert books.best(Kind.PRODUCTION).name == "o1"
    assert books.best(Kind.CONSUMPTION).name == "o4"
    rescind_offer(books, "o1", ANN)
    assert books.best(Kind.PRODUCTION).name == "o2"


@settings(max_examples=max(1000, settings().max_examples))
@given(
    st.integers(1, 10**6), st.integers(0, 10**9), st.integers(1, 8), st.integers(1, 10**6),
    st.integers(1, 8), st.booleans(),
)  # fmt: skip
def test_nobody_pays_more_or_gets_less_than_the_stated_price(mine, price, end, given_wh, to, buys):
    """Per slot the cost is at the offer's price, rounded down once; never above what was locked."""
    books = Wallets()
    owned = (produce, consume) if not buys else (consume, produce)
    books.deposit(ANN, 10**14, [owned[0](mine, 1, end)])
    books.deposit(BOB, 10**14, [owned[1](given_wh, 1, to)])
    posted = offer(ANN, owned[0](mine, 1, end), price)
    assert post_offer(books, posted, at()) is None
    trade = accept_offer(books, "o", BOB, [owned[1](given_wh, 1, to)], at())
    each_wh, slots = min(mine, given_wh), min(end, to)
    assert trade.energy_wh == each_wh * slots
    assert trade.amount_uc == each_wh * price // 1000 * slots
    assert not buys or trade.amount_uc <= posted.lock_uc == cost_of(posted.asset, price)


# --- any order of events --------------------------------------------------------------------------

WHO = st.sampled_from([ANN, BOB, CEM])
SOME_SLOT = st.sampled_from([*range(3, SLOTS + 1), *range(3, SLOTS + 1), 0, 1, 2, SLOTS + 2])
PRICES = [0, 7, 999, 9_999, 20_000, 50_000, 100_000, UNITS, 10 * UNITS]
ENERGIES = [1, 40, 50, 60, 99, 100, 150, 200, 300, 500, 0, 600]


@st.composite
def assets(draw, kind=None):
    """Mostly what may be offered while time is short; now and then nothing, too much, too far."""
    start, end = sorted(draw(st.tuples(SOME_SLOT, SOME_SLOT)))
    kind = draw(st.sampled_from(Kind)) if kind is None else kind
    return EnergyAsset(kind, draw(st.sampled_from(ENERGIES)), start, end)


class Interleaving(RuleBasedStateMachine):
    """Post, rescind, accept and let time pass, as it comes."""

    @initialize()
    def begin(self):
        self.books = Wallets()
        self.granted = {}
        self.now_ms = 0
        self.names = 0
        for who, wh, money_uc in ((ANN, 500, UNITS), (BOB, 300, UNITS // 10), (CEM, 700, 5_000)):
            granted = [produce(wh, 1, SLOTS + 4), consume(wh, 1, SLOTS + 4)]
            self.books.deposit(who, money_uc, granted)
            self.granted[who] = granted

    @rule(who=WHO, asset=assets(), price=st.sampled_from(PRICES), lives=st.integers(1, 9000))
    def post(self, who, asset, price, lives):
        self.names += 1
        posted = Offer(f"o{self.names}", who, asset, price, self.now_ms + lives)
        self._unchanged_if_refused("post", lambda: post_offer(self.books, posted, at(self.now_ms)))

    @rule(who=WHO, pick=st.integers(0, 99))
    def rescind(self, who, pick):
        name = self._name(pick)
        self._unchanged_if_refused("rescind", lambda: rescind_offer(self.books, name, who))

    @rule(who=WHO, pick=st.integers(0, 99), data=st.data())
    def accept(self, who, pick, data):
        name = self._name(pick)
        stands = self.books.find(name)
        kind = stands.asset.kind.opposite if stands else Kind.PRODUCTION
        some = st.lists(assets(kind), min_size=1, max_size=3)
        fitting = st.just([stands.asset.turned()]) if stands else some
        given_assets = data.draw(st.one_of(fitting, some))
        done = self._unchanged_if_refused(
            "accept", lambda: accept_offer(self.books, name, who, given_assets, at(self.now_ms))
        )
        if isinstance(done, Trade):
            given_wh = sum(a.total_wh for a in given_assets)
            rest_wh = sum(a.total_wh for a in done.assets_rest)
            assert done.energy_wh == given_wh - rest_wh > 0
            first = min(a.start_slot for a in done.traded)
            assert first >= at(self.now_ms).first_slot

    @rule(ms=st.sampled_from([1, 99, 250, 700, 1000, 2500]))
    def wait(self, ms):
        self.now_ms += ms
        gone = self.books.expire(self.now_ms)
        assert all(one.until_ms <= self.now_ms for one in gone)
        assert all(one.until_ms > self.now_ms for one in self.books.offers.values())
        if gone:
            event("expire")

    @invariant()
    def money_is_conserved_and_never_negative(self):
        wallets = self.books.wallets.values()
        assert sum(w.free_uc + w.locked_uc for w in wallets) == UNITS + UNITS // 10 + 5_000
        assert all(w.free_uc >= 0 and w.locked_uc >= 0 for w in wallets)

    @invariant()
    def every_watt_hour_is_free_offered_or_traded(self):
        standing = self.books.offers.values()
        for who, wallet in self.books.wallets.items():
            for whole, used in zip(
                self.granted[who], (wallet.sold, [a.turned() for a in wallet.bought]), strict=True
            ):
                offered = [
                    o.asset for o in standing if o.address == who and o.asset.kind is whole.kind
                ]
                assert merge([*wallet.free[whole.kind], *offered, *used]) == (whole,)

    @invariant()
    def what_was_bought_was_sold(self):
        wallets = self.books.wallets.values()
        bought = merge(asset for wallet in wallets for asset in wallet.bought)
        assert bought == merge(asset for wallet in wallets for asset in wallet.sold)

    @invariant()
    def locks_are_what_the_standing_offers_need(self):
        for who, wallet in self.books.wallets.items():
            behind = sum(o.lock_uc for o in self.books.offers.values() if o.address == who)
            assert wallet.locked_uc == behind

    def _name(self, pick):
        names = list(self.books.offers)
        return names[pick % len(names)] if names else "none"

    def _unchanged_if_refused(self, what, act):
        before = picture(self.books)
        result = act()
        event(f"{what}: {result.value if isinstance(result, Refusal) else 'OK'}")
        if isinstance(result, Refusal):
            assert picture(self.books) == before
        return result


TestInterleaving = Interleaving.TestCase
TestInterleaving.settings = settings(
    max_examples=max(200, settings().max_examples), stateful_step_count=30
)


def test_ten_thousand_offers_are_found_and_removed_quickly():
    """Posting and rescinding among many offers: their number shows in no more than a logarithm."""
    rng = random.Random(4)
    books = Wallets()
    names = []
    for number in range(10_000):
        who = f"home-{number % 500}"
        if number < 500:
            books.deposit(who, UNITS, [produce(10_000, 1, SLOTS)])
        name = f"o{number}"
        posted = offer(who, produce(1 + rng.randrange(100), 1, 1 + rng.randrange(SLOTS)), 7, name)
        assert post_offer(books, posted, at()) is None
        names.append((name, who))
    rng.shuffle(names)
    assert all(rescind_offer(books, name, who) is None for name, who in names)
    assert books.best(Kind.PRODUCTION) is None
