"""One verdict on every signature: pinned edge cases, one verifier, no weak identities."""

import ast
import importlib.util
import json
from pathlib import Path

import pytest

from wire import certificates, keys
from wire.errors import Refusal, WeakKeyError
from wire.keys import Domain, SigningKey, check_key, id_of, to_text

ROOT = Path(__file__).parents[2]
VECTORS = ROOT / "tests" / "vectors"
CASES = json.loads((VECTORS / "ed25519_edge_cases.json").read_text())
MARKET = "test"
ISSUER = SigningKey(bytes(32)).derive("issuer")
WEAK = [bytes.fromhex(one["public"]) for one in CASES["keys"]
        if not one["good"] and len(one["public"]) == 64]  # fmt: skip
VERIFIERS = {"nacl.signing", "nacl.bindings", "Ed25519PublicKey"}
MAY = {"wire/keys.py", "bench/limits.py", "bench/verify_pool.py", "csmdb/pki.py", "csmdb/tls.py"}
"""Benchmarks measure libsodium alone. The CSM-DB's two make X.509 of the brokers' TLS, which is
OpenSSL's and no message."""


def test_the_vectors_are_what_their_generator_makes():
    spec = importlib.util.spec_from_file_location("make_ed25519", VECTORS / "make_ed25519.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.text() == (VECTORS / "ed25519_edge_cases.json").read_text()


@pytest.mark.parametrize("case", CASES["signatures"], ids=lambda case: case["name"])
def test_the_library_says_of_a_signature_what_it_always_said(case):
    verdict = keys.verify(
        bytes.fromhex(case["public"]), Domain[CASES["domain"]], CASES["chain"],
        bytes.fromhex(case["message"]), bytes.fromhex(case["signature"]),
    )  # fmt: skip
    assert verdict is case["valid"]


@pytest.mark.parametrize("case", CASES["keys"], ids=lambda case: case["name"])
def test_only_points_of_the_large_subgroup_are_keys(case):
    assert keys.is_good_key(bytes.fromhex(case["public"])) is case["good"]


def test_the_verdict_does_not_depend_on_domain_or_chain_being_the_right_ones_by_chance():
    case = CASES["signatures"][0]
    parts = [bytes.fromhex(case[name]) for name in ("public", "message", "signature")]
    assert not keys.verify(parts[0], Domain.VOTE, CASES["chain"], *parts[1:])
    assert not keys.verify(parts[0], Domain.TX, CASES["chain"] + "0", *parts[1:])


def test_every_signature_is_verified_by_wire_keys_alone():
    """Caches, batches and the light client call `wire.keys.verify`: nobody else has a verifier."""
    found = set()
    folders = [path.parent for path in ROOT.glob("*/__init__.py") if path.parent.name != "tests"]
    for path in (path for folder in folders for path in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = set()
            if isinstance(node, ast.Import):
                names = {one.name for one in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = {node.module, *(f"{node.module}.{one.name}" for one in node.names)}
                names |= {one.name for one in node.names}
            if names & VERIFIERS:
                found.add(str(path.relative_to(ROOT)))
    assert found == MAY


def grant_of(public: bytes, meter: bytes) -> certificates.AddressGrant:
    return certificates.AddressGrant(
        address=id_of(public), key=to_text(public), meter_key=to_text(meter), can_buy=True,
        can_sell=True, max_buy_wh=1, max_sell_wh=1, start_slot=0, end_slot=1,
    )  # fmt: skip


@pytest.mark.parametrize("public", WEAK, ids=lambda public: public.hex()[:12])
def test_a_weak_key_gets_no_certificate_grant_licence_or_token(public):
    good = ISSUER.derive("home").public
    with pytest.raises(WeakKeyError) as caught:
        check_key(public)
    assert caught.value.refusal is Refusal.WEAK_KEY
    licence = certificates.ValidatorLicence(
        validator=id_of(public), key=to_text(public), controller="c",
        not_before_ms=0, not_after_ms=1,
    )  # fmt: skip
    for record in (grant_of(public, good), grant_of(good, public), licence):
        with pytest.raises(WeakKeyError):
            certificates.seal(record, ISSUER, MARKET)


def test_a_weak_key_that_was_certified_before_is_refused_by_whoever_reads_it(monkeypatch):
    """A ledger, a broker: they do not rely on the issuer having looked."""
    with monkeypatch.context() as careless:
        careless.setattr(certificates, "check_key", lambda _: None)
        signed = certificates.seal(grant_of(WEAK[0], WEAK[0]), ISSUER, MARKET)
    with pytest.raises(WeakKeyError):
        certificates.load(
            certificates.AddressGrant, certificates.dump(signed), ISSUER.public, MARKET
        )
