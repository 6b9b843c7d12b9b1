"""The HTTP API over real HTTP: answers, refusals, bounds, proofs, and its own description."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest
from support.chain_builder import FIRST_SLOT, SUPERVISOR, VALIDATORS, deposit, key, register
from support.http import get, serving
from support.little_chain import ANN, LittleNode, little_chain
from support.nodes import feeder

from ledger import api
from ledger.allowance import MAX_ASKERS, Allowance
from ledger.api import build_app
from ledger.api_models import Problem
from ledger.api_table import ENDPOINTS, openapi
from ledger.checkpoint import genesis_checkpoint
from ledger.light import check_offline
from ledger.node_view import NodeView
from ledger.peers import Peers
from ledger.process import watch_peers
from ledger.proofs import decode_proof, verify
from ledger.serving import URL_FILE
from ledger.types import VoteKind, make_vote
from runtime import http
from runtime.clock import clock_from_environment


@pytest.fixture(scope="module")
def little(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chain")
    chain = little_chain(folder)
    yield chain, folder
    chain.store.close()


@pytest.fixture(scope="module")
def live(little):
    return LittleNode(little[0])


@pytest.fixture(scope="module")
def url(little, live):
    chain, folder = little
    with serving(build_app(chain.genesis, folder, clock_from_environment(), live)) as address:
        yield address


@pytest.fixture(autouse=True)
def generous(monkeypatch, request):
    """Only the test about allowances is about allowances."""
    if "allowance" not in request.node.name:
        monkeypatch.setattr(Allowance, "take", lambda *_: 0.0)


@pytest.fixture(scope="module")
def txid(little):
    chain, _ = little
    return next(
        txid.hex()
        for height in range(1, chain.store.height + 1)
        for txid in chain.store.get_block(height).txids
        if chain.store.receipt(txid)[1]["sender"] == ANN.id
        and len(chain.store.receipt(txid)[1]["codes"]) == 2
    )


def asked(path: str, txid: str) -> str:
    for name, value in {
        "{height}": "5", "{txid}": txid, "{address}": ANN.id, "{key}": f"account/{ANN.id}",
    }.items():  # fmt: skip
        path = path.replace(name, value)
    return path


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda one: one.name)
def test_every_answer_is_what_openapi_says(url, txid, endpoint):
    reply = get(url + asked(endpoint.path, txid))
    assert reply.status == 200, reply.body
    assert reply.headers["content-type"] == "application/json"
    if endpoint.model is not None:
        endpoint.model.model_validate_json(reply.body, strict=True)
        schema = openapi()["components"]["schemas"][endpoint.model.__name__]
        assert set(reply.json()) == set(schema["properties"])
        assert schema["additionalProperties"] is False


def test_the_description_is_whole_and_describes_every_route(url, little):
    document = get(url + "/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    app = build_app(little[0].genesis, little[1], clock_from_environment())
    routes = {route.path.replace(":path", "") for route in app.routes} - {"/", "/static"}
    assert set(document["paths"]) == routes
    schemas = document["components"]["schemas"]
    for name in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)):
        assert name in schemas
    names = [one["get"]["operationId"] for one in document["paths"].values()]
    assert len(set(names)) == len(names)
    for path, item in document["paths"].items():
        of_path = {p["name"] for p in item["get"]["parameters"] if p["in"] == "path"}
        assert of_path == set(re.findall(r"{(\w+)}", path))


def test_status_names_the_tip_and_the_node(url, little):
    status = get(url + "/status").json()
    tip = little[0].store.tip
    assert (status["height"], status["blockHash"]) == (tip.height, tip.hash.hex())
    assert (status["validators"], status["quorum"]) == (4, 3)
    assert status["node"]["role"] == "validator"
    assert status["epoch"] == 2


def test_blocks_come_newest_first_in_pages(url):
    seen, start = [], None
    while True:
        query = "limit=3" + (f"&from={start}" if start else "")
        page = get(f"{url}/blocks?{query}").json()
        seen += [one["height"] for one in page["blocks"]]
        start = page["next"]
        if start is None:
            break
    assert seen == list(range(page["tip"], 0, -1))


def test_a_block_names_who_finalised_it_and_what_is_in_it(url):
    block = get(url + "/blocks/2").json()
    assert [one["index"] for one in block["finality"]["signers"]] == [0, 2, 3]
    assert block["finality"]["signers"][0]["id"] == VALIDATORS[0].id
    assert block["items"][0]["operations"].count("add-energy-asset") == 4
    assert block["eventCount"] == len(block["events"]) > 0
    assert get(url + "/blocks/2?offset=1").json()["items"] == []


def test_a_transaction_is_decoded_with_a_code_for_each_operation(url, txid):
    tx = get(f"{url}/transactions/{txid}").json()
    assert tx["state"] == "final"
    assert [(one["op"], one["code"]) for one in tx["operations"]] == [
        ("bid-offer", "OK"), ("bid-offer", "SLOT_TOO_FAR"),
    ]  # fmt: skip
    assert tx["operations"][0]["fields"]["slot"] == FIRST_SLOT + 4


def test_a_transaction_that_is_voted_on_is_pending(url, little):
    chain, _ = little
    waiting = chain.tx(SUPERVISOR, deposit(ANN, 7))
    chain.store.keep_bodies([(waiting.txid, waiting.raw)])
    tx = get(f"{url}/transactions/{waiting.txid.hex()}").json()
    assert (tx["state"], tx["height"], tx["code"]) == ("pending", None, None)
    assert tx["operations"][0]["code"] is None
    chain.store.forget_bodies([waiting.txid])


def test_an_account_is_what_the_state_holds(url, little):
    account = get(f"{url}/accounts/{ANN.id}").json()
    balance, locked = little[0].account(ANN)
    assert (account["balanceUc"], account["lockedUc"]) == (balance, locked)
    assert account["grant"]["maxBuyWh"] == 5_000
    nobody = get(f"{url}/accounts/{key('nobody').id}").json()
    assert (nobody["known"], nobody["balanceUc"]) == (False, 0)
    assert get(f"{url}/accounts/{VALIDATORS[0].id}").json()["validator"]["founder"] is True


def test_validators_show_cpf_and_the_share_they_have_in_the_schedule(url, little):
    chain, _ = little
    answer = get(url + "/validators").json()
    rows = answer["validators"]
    assert [one["id"] for one in rows] == [one.id for one in VALIDATORS]
    assert sum(one["turns"] for one in rows) == answer["scheduleLength"]
    assert [one["turns"] for one in rows] == [chain.epoch.schedule.count(i) for i in range(4)]
    assert [one["cpfQ16"] for one in rows] == [30_000, 40_000, 50_000, None]
    assert [one["eligible"] for one in rows] == [True, True, True, False]
    assert [one["sharePermille"] for one in rows] == [
        one["turns"] * 1000 // answer["scheduleLength"] for one in rows
    ]
    assert rows[2]["sharePermille"] > rows[3]["sharePermille"]
    assert sum(one["blocks"] for one in rows) == chain.store.height - chain.epoch.base_height
    epoch = get(url + "/epochs/current").json()
    assert tuple(epoch["schedule"]) == chain.epoch.schedule
    assert epoch["baseHeight"] == chain.epoch.base_height


def test_a_cpf_that_was_attested_long_ago_makes_nobody_eligible(tmp_path):
    chain = little_chain(tmp_path)
    for _ in range(5):
        chain.seal()
    with serving(build_app(chain.genesis, tmp_path, clock_from_environment())) as address:
        rows = get(address + "/validators").json()["validators"]
    assert [one["cpfQ16"] for one in rows] == [30_000, 40_000, 50_000, None]
    assert not any(one["eligible"] for one in rows)
    chain.store.close()


def test_evidence_names_the_validator_and_both_votes(url):
    answer = get(url + "/evidence").json()
    (one,) = answer["evidence"]
    assert (one["validator"], one["view"], one["judged"]) == (VALIDATORS[2].id, 7, False)
    assert one["first"]["blockHash"] != one["second"]["blockHash"]


def test_peers_say_who_spoke_and_who_did_not(url):
    answer = get(url + "/peers").json()
    assert {one["id"] for one in answer["peers"]} == {one.id for one in VALIDATORS[:3]}
    assert answer["silent"] == [VALIDATORS[3].id]


def test_the_genesis_is_the_file(url, little):
    chain, folder = little
    assert get(url + "/genesis").json() == json.loads((folder / "genesis.json").read_bytes())
    assert get(url + "/genesis").json()["chainId"] == chain.chain_id


# --- Proofs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["receipt", "inclusion", "state"])
def test_a_proof_in_either_form_convinces_who_has_only_a_checkpoint(url, little, txid, kind):
    chain, _ = little
    what = f"account/{ANN.id}" if kind == "state" else txid
    binary = get(f"{url}/proofs/{kind}/{what}?format=binary")
    assert binary.headers["content-type"] == "application/octet-stream"
    assert binary.headers["content-disposition"].startswith("attachment; filename=")
    facts = get(f"{url}/proofs/{kind}/{what}").json()
    assert bytes.fromhex(facts["encoded"]) == binary.body
    trust = genesis_checkpoint(chain.genesis)
    proved = verify(decode_proof(binary.body), trust)
    assert proved.height == facts["height"]
    assert check_offline(decode_proof(binary.body), trust) == proved
    if kind == "state":
        assert facts["claim"]["value"]["nonce"] == 2


def test_that_there_is_no_such_row_is_proved_too(url, little):
    raw = get(f"{url}/proofs/state/account/{key('nobody').id}?format=binary").body
    assert verify(decode_proof(raw), genesis_checkpoint(little[0].genesis)).value is None


def test_what_no_header_covers_yet_is_refused_by_name(url, little):
    last = little[0].store.tip.txids[0].hex()
    reply = get(f"{url}/proofs/receipt/{last}")
    assert reply.status == 409
    assert reply.json()["code"] == "NOT_PROVABLE"
    assert get(f"{url}/proofs/receipt/{'0' * 64}").json()["code"] == "NOT_PROVABLE"


# --- Refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/blocks/0", 400, "BAD_PARAMETER"),
        ("/blocks/-1", 400, "BAD_PARAMETER"),
        ("/blocks/1e3", 400, "BAD_PARAMETER"),
        ("/blocks/" + "9" * 5000, 400, "BAD_PARAMETER"),
        ("/blocks/99999", 404, "NOT_FOUND"),
        ("/blocks?limit=0", 400, "BAD_PARAMETER"),
        ("/blocks?limit=101", 400, "BAD_PARAMETER"),
        ("/blocks?limit=%D9%A3", 400, "BAD_PARAMETER"),
        ("/blocks?from=x", 400, "BAD_PARAMETER"),
        ("/blocks?since=1", 400, "BAD_PARAMETER"),
        ("/transactions/xyz", 400, "BAD_PARAMETER"),
        ("/transactions/" + "0" * 64, 404, "NOT_FOUND"),
        ("/accounts/ann", 400, "BAD_PARAMETER"),
        ("/accounts/hg1" + "a" * 33, 400, "BAD_PARAMETER"),
        ("/proofs/state/" + "k" * 257, 400, "BAD_PARAMETER"),
        ("/proofs/state/a%00b", 400, "BAD_PARAMETER"),
        ("/proofs/receipt/" + "0" * 64 + "?format=xml", 400, "BAD_PARAMETER"),
        ("/nowhere", 404, "NOT_FOUND"),
        ("/static/../api.py", 404, "NOT_FOUND"),
        ("/static/%2e%2e/api.py", 404, "NOT_FOUND"),
    ],
)
def test_a_refusal_is_a_problem_with_a_name(url, path, status, code):
    reply = get(url + path)
    assert reply.status == status
    assert reply.headers["content-type"] == "application/problem+json"
    problem = Problem.model_validate_json(reply.body)
    assert (problem.status, problem.code) == (status, code)
    assert len(reply.body) < 500


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_writing_is_not_possible(url, method):
    reply = get(url + "/blocks", method)
    assert reply.status == 405
    assert reply.json()["code"] == "METHOD_NOT_ALLOWED"


@pytest.mark.parametrize("path", ["/", "/status", "/nowhere", "/static/explorer.js"])
def test_every_answer_is_confined(url, path):
    headers = get(url + path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in headers


def test_a_page_of_a_foreign_name_cannot_read_it(url):
    assert get(url + "/status", Host="evil.example").status == 400
    assert get(url + "/status", Host="localhost").status == 200


def test_who_asks_too_often_is_told_when_to_come_back_by_its_allowance(little, monkeypatch):
    chain, folder = little
    monkeypatch.setattr(api, "BURST", 3.0)
    monkeypatch.setattr(api, "PER_S", 0.001)
    with serving(build_app(chain.genesis, folder, clock_from_environment())) as address:
        replies = [get(address + "/status") for _ in range(4)]
    assert [one.status for one in replies] == [200, 200, 200, 429]
    assert replies[-1].json()["code"] == "RATE_LIMITED"
    assert "retry-after" in replies[-1].headers


def test_an_allowance_comes_back_with_time_and_forgets_who_asks_seldom():
    bucket = Allowance(per_s=2, burst=4)
    assert [bucket.take("a", 1, 0.0) for _ in range(5)] == [0, 0, 0, 0, 0.5]
    assert bucket.take("a", 1, 0.5) == 0
    assert bucket.take("b", 4, 0.5) == 0
    for number in range(MAX_ASKERS):
        bucket.take(str(number), 1, 1.0)
    assert len(bucket._left) == MAX_ASKERS


def test_too_much_at_once_is_refused_and_not_queued(url, little, monkeypatch):
    monkeypatch.setattr(api, "MAX_WAITING", 0)
    reply = get(url + "/status")
    assert (reply.status, reply.json()["code"]) == (503, "BUSY")


def test_without_a_node_only_what_needs_one_is_refused(little):
    chain, folder = little
    with serving(build_app(chain.genesis, folder, clock_from_environment())) as address:
        assert get(address + "/status").json()["node"] is None
        for path in ("/peers", "/proofs/state/totals"):
            assert get(address + path).json()["code"] == "NO_NODE"


def test_healthz_says_503_without_a_broker_or_a_file(url, little, live, tmp_path):
    assert get(url + "/healthz").status == 200
    live.connected = False
    try:
        reply = get(url + "/healthz")
    finally:
        live.connected = True
    assert reply.status == 503
    assert reply.json()["reasons"] == ["no connection to the broker"]
    (tmp_path / "ledger.sqlite").write_text("this is not a database, not at all")
    with serving(build_app(little[0].genesis, tmp_path, clock_from_environment())) as address:
        assert get(address + "/healthz").json()["state"] == "down"
        assert get(address + "/blocks").json()["code"] == "UNREADABLE"


def test_a_folder_without_its_old_blocks_says_where_it_begins(tmp_path):
    chain = little_chain(tmp_path)
    chain.store.drop_blocks(2, lambda _height: (), ("market", "wallet", "poe"))
    with serving(build_app(chain.genesis, tmp_path, clock_from_environment())) as address:
        assert get(address + "/status").json()["oldest"] == 3
        page = get(address + "/blocks").json()
        assert page["blocks"][-1]["height"] == 3
        assert page["next"] is None
        assert "/status says" in get(address + "/blocks/2").json()["detail"]
    chain.store.close()


def test_an_empty_chain_is_answered_for(tmp_path):
    from support.chain_builder import Chain, make_genesis  # noqa: PLC0415

    from ledger.store import LedgerStore  # noqa: PLC0415

    chain = Chain(LedgerStore.in_folder(tmp_path), make_genesis())
    with serving(build_app(chain.genesis, tmp_path, clock_from_environment())) as address:
        assert get(address + "/status").json()["height"] == 0
        assert get(address + "/blocks").json() == {"tip": 0, "blocks": [], "next": None}
        assert len(get(address + "/validators").json()["validators"]) == 4
    chain.store.close()


# --- Peers, and a real node -----------------------------------------------------------------------


def test_peers_remember_the_last_vote_and_forget_the_longest_silent(monkeypatch):
    now = [1000]
    peers = Peers(lambda: now[0], lambda _hash: None)
    vote = make_vote(VALIDATORS[0], "hg-x", 0, 3, 9, VoteKind.FINALIZE, bytes(31) + b"\1")
    peers.heard("b", vote)
    now[0] = 2000
    peers.heard("a", vote)
    peers.heard("b", vote)
    assert [(one.id, one.heard_ms, one.votes) for one in peers.all()] == [
        ("a", 2000, 1), ("b", 2000, 2),
    ]  # fmt: skip
    monkeypatch.setattr("ledger.peers.MAX_PEERS", 2)
    peers.heard("c", vote)
    assert [one.id for one in peers.all()] == ["b", "c"]


async def test_a_running_node_answers_and_goes_on(tmp_path: Path):
    async with feeder(tmp_path) as running:
        node = running.nodes[0]
        peers = watch_peers(node)
        app = build_app(
            running.genesis, tmp_path / "node-0", running.clock, NodeView(node, "validator", peers)
        )
        listener = http.listen("127.0.0.1", 0, "--http")
        folder = tmp_path / "node-0"
        async with http.serving(app, listener, folder / URL_FILE):
            url = (folder / URL_FILE).read_text().strip().rstrip("/")
            first = running.chain.tx(ANN, register(ANN))
            running.send(first)
            await running.executed(first)
            for amount in (5, 6, 7):
                tx = running.chain.tx(SUPERVISOR, deposit(ANN, amount))
                running.send(tx)
                await running.executed(tx)

            async def ask(path: str):
                return await asyncio.to_thread(get, url + path)

            status = (await ask("/status")).json()
            assert status["height"] == node.executed_height
            assert status["node"] == {
                "id": node.key.id, "role": "validator", "votes": True, "connected": True,
                "mempool": 0,
            }  # fmt: skip
            heard = (await ask("/peers")).json()
            assert {one["id"] for one in heard["peers"]} == {one.id for one in VALIDATORS}
            assert heard["silent"] == []
            assert all(one["height"] for one in heard["peers"])
            raw = (await ask(f"/proofs/state/account/{ANN.id}?format=binary")).body
            fact = verify(decode_proof(raw), genesis_checkpoint(running.genesis))
            assert fact.value["balanceUc"] in (5, 11, 18)
        assert not (folder / URL_FILE).exists()
        after = running.chain.tx(SUPERVISOR, deposit(ANN, 8))
        running.send(after)
        await running.executed(after)
