"""The owner's policy file."""

from pathlib import Path

import pytest

from hem.controller.policy import Policy, Section, load_policy
from wire.errors import ConfigError


def written(tmp_path, text):
    path = tmp_path / "policy.toml"
    path.write_text(text)
    return path


def test_no_file_means_the_defaults(tmp_path):
    assert load_policy(tmp_path / "none.toml") == Policy()


def test_what_the_owner_writes_is_what_counts(tmp_path):
    text = 'participation = "RE"\nreserve_permille = 300\noffer_curve = [[500, 0], [900, 1000]]\n'
    policy = load_policy(written(tmp_path, text))
    assert not policy.trades
    assert policy.reserve_permille == 300
    assert policy.offer_curve == ((500, 0), (900, 1000))


def test_wear_comes_from_price_and_lifetime():
    assert (
        Policy(battery_cost_uc=10**9, lifetime_throughput_wh=10**7).degradation_uc_per_kwh == 10**5
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("reserve_permille = 100\nsell_price_mim = 5\n", "line 2, sell_price_mim: no such key"),
        ("reserve_permille = 1001\n", "line 1, reserve_permille"),
        ("\nreserve_permille = \n", "line 2"),
        ('participation = "ALL"\n', "line 1, participation"),
        ("soc_min_permille = 900\nsoc_max_permille = 100\n", "soc_min_permille must not be above"),
        ("offer_curve = [[0, 1000], [1000, 0]]\n", "must rise"),
        ('markets = ["bazaar"]\n', "line 1, markets: Input should be 'double-auction'"),
        ("[escrow]\nlot = 5\n", "line 2, escrow.lot: no such key; remove it or use one of fee_max"),
        ("[wallet]\nleast_uc = 9\ntarget_uc = 8\n", "line 1, wallet: Value error, expected least"),
        ('[[approve]]\npath = "p"\nmots = 1\n', "line 3, approve.mots: no such key"),
        ("[order_book]\n\nlead_slots = 1\n", "line 3, order_book.lead_slots"),
    ],
)
def test_a_broken_policy_is_refused_with_file_place_and_remedy(tmp_path, text, told):
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        load_policy(path)
    assert str(path) in str(error.value)
    assert told in str(error.value)


def test_a_file_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "policy.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_policy(path)


def test_markets_and_their_sections_are_read(tmp_path):
    policy = load_policy(
        written(
            tmp_path,
            'markets = ["order-book", "escrow"]\n[order_book]\nblock_slots = 8\n'
            '[wallet]\nwithdraw = true\n[[approve]]\npath = "prices.*"\nmost = 320000\n',
        )
    )
    assert policy.trades_in("order-book") and not policy.trades_in("double-auction")
    assert policy.order_book.block_slots == 8 and policy.wallet.withdraw
    assert policy.approve[0].most == 320_000


def test_who_takes_part_in_rewards_only_trades_nowhere(tmp_path):
    policy = load_policy(written(tmp_path, 'participation = "RE"\nmarkets = ["order-book"]\n'))
    assert not policy.trades_in("order-book")


def test_the_reference_has_every_key():
    text = (Path(__file__).parents[2] / "docs/reference/policy.md").read_text()
    for name, field in Policy.model_fields.items():
        assert f"`{name}`" in text or f"`[{name}]`" in text or f"`[[{name}]]`" in text, name
        if isinstance(field.default, Section):
            for inner in type(field.default).model_fields:
                assert f"`{inner}`" in text, f"{name}.{inner}"
