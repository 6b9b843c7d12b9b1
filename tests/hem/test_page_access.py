"""Who may see the household's page: password, sessions, tokens, limits, names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hem.web.access import (
    ALL_GUESS_EVERY_S,
    ALL_GUESSES,
    CODE_BYTES,
    GUESS_EVERY_S,
    GUESSES,
    PASSWORD_BYTES_MAX,
    SESSION_S,
    SESSIONS_MAX,
    Credentials,
    Guesses,
    Sessions,
    code_holds,
    hash_password,
    host_allowed,
    new_code,
    origin_allowed,
    password_holds,
    why_unfit,
)
from hem.web.code import code_of
from runtime.store import MemoryStore, SqliteStore
from wire.errors import ConfigError

NAMES = frozenset({"localhost", "hem.local"})
HASH = b"$argon2id$a"
cookies = st.text(min_size=1, max_size=70)
times = st.floats(0, 10 * SESSION_S)


def test_a_password_is_kept_as_argon2id_and_only_it_holds():
    hashed = hash_password("correct horse battery")
    assert hashed.startswith(b"$argon2id$")
    assert password_holds(hashed, "correct horse battery")
    for other in ("correct horse batterx", "", "x" * (PASSWORD_BYTES_MAX + 1), "\udc80"):
        assert not password_holds(hashed, other)
    assert not password_holds(b"not a hash", "correct horse battery")


@pytest.mark.parametrize(
    ("password", "again", "fits"),
    [
        ("nine long", "nine long", False), ("ten letter", "ten letter", True),
        ("ten letter", "ten lettes", False), ("é" * 300, "é" * 300, False),
    ],
)  # fmt: skip
def test_a_password_is_long_enough_and_typed_twice(password, again, fits):
    assert (why_unfit(password, again) == "") is fits


@given(st.binary(min_size=CODE_BYTES, max_size=CODE_BYTES))
def test_a_code_holds_however_it_is_grouped_and_no_other_does(random):
    code = new_code(random)
    assert code_holds(code, code)
    assert code_holds(code, f" {code.lower().replace('-', ' ')} ")
    other = new_code(bytes(byte ^ 0x21 for byte in random))
    assert not code_holds(code, other)
    assert not code_holds(code, "")
    assert not code_holds("", "")


def test_the_code_sets_the_first_password_once():
    credentials = Credentials(MemoryStore())
    code = credentials.ensure_code(b"12345678")
    assert credentials.ensure_code(b"87654321") == code, "it stays until it is used"
    credentials.set_password(HASH)
    assert credentials.code == ""
    assert credentials.ensure_code(b"12345678") == ""
    credentials.forget_password()
    assert credentials.password is None
    assert credentials.ensure_code(b"87654321") not in ("", code)


def test_page_code_shows_the_code_and_forgets_the_password(tmp_path):
    with pytest.raises(ConfigError, match="hem run"):
        code_of(tmp_path, reset=False)
    store = SqliteStore(tmp_path / "ems.sqlite")
    code = code_of(tmp_path, reset=False)
    assert code == Credentials(store).code
    Credentials(store).set_password(HASH)
    with pytest.raises(ConfigError, match="--reset"):
        code_of(tmp_path, reset=False)
    assert code_of(tmp_path, reset=True) != code
    assert Credentials(store).password is None
    store.close()


@given(cookies, cookies, times, times)
def test_a_session_is_its_cookies_until_it_ends(cookie, other, now_s, later_s):
    sessions = Sessions(b"secret")
    assert not sessions.holds(cookie, HASH, now_s)
    sessions.open(cookie, HASH, now_s)
    assert sessions.holds(cookie, HASH, now_s)
    assert sessions.holds(other, HASH, now_s) is (other == cookie)
    assert not sessions.holds(cookie, b"another password", now_s), "ends with the password"
    sessions.open(cookie, HASH, now_s)
    assert sessions.holds(cookie, HASH, now_s + later_s) is (now_s + later_s < now_s + SESSION_S)
    sessions.open(cookie, HASH, now_s)
    sessions.close(cookie)
    assert not sessions.holds(cookie, HASH, now_s)
    assert not sessions.holds(cookie, None, now_s)


def test_sessions_are_bounded_and_the_oldest_ends_first():
    sessions = Sessions(b"secret")
    for number in range(SESSIONS_MAX + 1):
        sessions.open(str(number), HASH, 0)
    held = [sessions.holds(str(number), HASH, 1) for number in range(SESSIONS_MAX + 1)]
    assert held == [False] + [True] * SESSIONS_MAX


@given(cookies, cookies, st.text(max_size=70))
def test_a_form_belongs_to_one_cookie(cookie, other, guess):
    sessions = Sessions(b"secret")
    token = sessions.form_token(cookie)
    assert sessions.form_token_holds(cookie, token)
    assert sessions.form_token_holds(other, token) is (other == cookie)
    assert sessions.form_token_holds(cookie, guess) is (guess == token)
    assert not Sessions(b"another home").form_token_holds(cookie, token)
    assert not sessions.form_token_holds("", sessions.form_token(""))


@given(st.lists(st.tuples(st.integers(0, 40), st.floats(0, 20)), max_size=300))
def test_nobody_guesses_faster_than_allowed(tries):
    guesses, now_s, admitted = Guesses(), 0.0, []
    for address, pause_s in tries:
        now_s += pause_s
        if guesses.admit(str(address), now_s):
            admitted.append(address)
    assert len(admitted) <= ALL_GUESSES + now_s / ALL_GUESS_EVERY_S + 1
    for address in set(admitted):
        assert admitted.count(address) <= GUESSES + now_s / GUESS_EVERY_S + 1


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("hem.local", True), ("HEM.local:8100", True), ("localhost:1", True), ("hem.local.", True),
        ("192.168.1.20:80", True), ("[fe80::1]:80", True), ("[::1]", True),
        ("evil.example", False), ("hem.local.evil.example", False), ("xhem.local", False),
        ("192.168.1.20.evil.example", False), ("", False), ("hem.local:80:80", False),
        ("hem.local:evil", False), ("[evil]:80", False), ("hem.local@evil.example", False),
    ],
)  # fmt: skip
def test_the_host_is_an_address_or_a_name_of_ours(host, allowed):
    assert host_allowed(host, NAMES) is allowed


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://hem.local:8100", True), ("https://HEM.local:8100", True), ("", False),
        ("null", False), ("http://hem.local", False), ("http://evil.example", False),
        ("http://hem.local:8100.evil.example", False),
    ],
)  # fmt: skip
def test_a_form_comes_from_our_own_page(origin, allowed):
    assert origin_allowed(origin, "hem.local:8100") is allowed
