"""The home's light client: it knows the balance by proof, and says so when the wallet is wrong."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from dataclasses import replace
from types import SimpleNamespace

import msgspec
import pytest
from home_at_hand import ADDRESS, register
from support.chain_builder import START_MS, SUPERVISOR, VALIDATORS, deposit, make_genesis
from support.light_feeder import ANN, feeder
from support.patience import PATIENCE_S

from hem.config import Light, load_provisioning
from hem.ems import light as home_light
from hem.ems.health import assess
from hem.ems.light import HomeLight, LightState, LightView, kept_view, trusted_point
from hem.ems.wallet import Wallet
from hem.summary import proof_text, summary_of
from ledger import proofs, types
from ledger.checkpoint import CHECKPOINT_FILE, genesis_checkpoint, read_checkpoint, write_checkpoint
from ledger.light_sync import EVIDENCE_FILE
from ledger.prover import Prover
from runtime.store import MemoryStore
from wire.errors import ConfigError


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr("ledger.light_sync.ANSWER_TIMEOUT_S", 0.2)


@contextlib.asynccontextmanager
async def watched(folder, caught_up=True):
    """A home's light client between four validators, and a wallet that has heard nothing."""
    async with feeder() as (follower, servers, clock):
        wallet = Wallet(MemoryStore(), ANN.id)
        light = HomeLight(
            follower, wallet, wallet._store, folder, clock, lambda: caught_up, period_s=0.01
        )
        yield SimpleNamespace(
            light=light, wallet=wallet, servers=servers, chain=servers[0].chain, clock=clock
        )


async def hear(at, after_ms=500):
    """The wallet hears of its balance as the chain has it, and a later block proves that."""
    row = at.chain.ledger.query(f"account/{ANN.id}")
    event = {"event": "balance", "address": ANN.id, **row}
    await at.wallet.take_event(at.chain.store.height, event)
    at.chain.block(START_MS + after_ms)


async def test_what_the_home_believes_is_proved(tmp_path):
    async with watched(tmp_path) as at:
        await hear(at)
        await at.light.look()
        view = at.light.view
        assert view.state is LightState.SAME
        assert view.money == at.wallet.balance
        assert view.money["balanceUc"] > 0
        assert view.verified_height == at.chain.store.height > view.proved_height > 0
        assert kept_view(at.wallet._store, ANN.id) == view
        assert "as the home believes" in proof_text(view.to_json())


async def test_a_belief_that_two_proofs_contradict_is_wrong_once_and_until_it_is_right(
    tmp_path, capsys
):
    async with watched(tmp_path) as at:
        at.wallet._put("balance", {"address": ANN.id, "balanceUc": 7, "lockedUc": 0, "height": 1})
        await at.light.look()
        assert at.light.view.state is LightState.WAITING, "the event may be under way"
        for _ in range(3):
            await at.light.look()
            assert at.light.view.state is LightState.DIFFERS
        assert "NOT what the home believes" in proof_text(at.light.view.to_json())
        assert capsys.readouterr().out.count("balance not proved") == 1
        await hear(at)
        await at.light.look()
        assert at.light.view.state is LightState.SAME


async def test_an_event_that_comes_between_two_proofs_is_no_difference(tmp_path):
    async with watched(tmp_path) as at:
        for number in range(3):
            tx = at.chain.tx(SUPERVISOR, deposit(ANN, 5))
            await hear(at, 500 + 3 * number)
            at.chain.block(START_MS + 501 + 3 * number, tx)
            at.chain.block(START_MS + 502 + 3 * number)
            await at.light.look()
            assert at.light.view.money != at.wallet.balance
            assert at.light.view.state is LightState.WAITING


async def test_a_wallet_ahead_of_the_proof_or_not_caught_up_is_not_judged(tmp_path):
    ahead = {"address": ANN.id, "balanceUc": 7, "lockedUc": 0, "height": 10**6}
    async with watched(tmp_path) as at:
        at.wallet._put("balance", ahead)
        for _ in range(3):
            await at.light.look()
        assert at.light.view.state is LightState.WAITING
    async with watched(tmp_path, caught_up=False) as at:
        at.wallet._put("balance", {**ahead, "height": 1})
        for _ in range(3):
            await at.light.look()
        assert at.light.view.state is LightState.WAITING


async def test_without_an_answer_for_long_it_is_silent_and_comes_back(tmp_path, monkeypatch):
    async with watched(tmp_path) as at:
        await hear(at)
        for server in at.servers:
            server.silent = True
        await at.light.look()
        assert at.light.view.state is LightState.WAITING, "it may only be a moment"
        monkeypatch.setattr(home_light, "SILENT_AFTER_S", 0.0)
        await at.light.look()
        assert at.light.view.state is LightState.SILENT
        for server in at.servers:
            server.silent = False
        await at.light.look()
        assert at.light.view.state is LightState.SAME


async def test_away_for_longer_than_the_trust_period_it_asks_for_a_checkpoint(tmp_path):
    async with watched(tmp_path) as at:
        await hear(at)
        at.clock.move_to(START_MS + 15 * 24 * 3_600_000)
        await at.light.look()
        assert at.light.view.state is LightState.EXPIRED


async def test_two_blocks_that_exclude_each_other_are_kept_and_believed_no_more(tmp_path):
    async with watched(tmp_path) as at:
        good = Prover(at.chain.store).anchor(at.chain.store.height)
        header = msgspec.structs.replace(good.header, state_root=b"x" * 32)
        votes = [
            types.make_vote(VALIDATORS[i], at.chain.chain_id, i, header.epoch, header.view,
                            types.VoteKind.FINALIZE, types.header_hash(header))
            for i in (1, 2, 3)
        ]  # fmt: skip
        bad = proofs.Anchor(header, types.Finality(types.make_certificate(votes)))
        for liar in at.servers[:2]:
            liar.change = lambda _q, _raw: proofs.encode(proofs.Step(bad))
        async with asyncio.timeout(PATIENCE_S):
            await at.light.run(lambda: True)
        assert at.light.view.state is LightState.CONFLICT
        assert (tmp_path / EVIDENCE_FILE).exists()
    async with watched(tmp_path) as at:
        async with asyncio.timeout(PATIENCE_S):
            await at.light.run(lambda: True)
        assert at.light.view.state is LightState.CONFLICT, "until somebody has cleared it up"


async def test_its_place_is_kept_seldom_and_it_goes_on_from_there(tmp_path):
    file = tmp_path / CHECKPOINT_FILE
    async with watched(tmp_path) as at:
        await hear(at)
        await at.light.look()
        first = file.stat().st_mtime_ns
        for number in range(5):
            at.chain.block(START_MS + 501 + number)
            await at.light.look()
        assert file.stat().st_mtime_ns == first, "a height alone is not worth a write"
        at.light.keep()
        assert read_checkpoint(file).height == at.chain.store.height
        assert trusted_point(tmp_path, Light(), at.chain.genesis) == at.light._follower.light.trust


async def test_without_room_on_the_disk_it_goes_on(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(home_light, "write_checkpoint", full)
    async with watched(tmp_path) as at:
        await hear(at)
        await at.light.look()
        assert at.light.view.state is LightState.SAME


def test_it_begins_with_the_newest_point_that_is_trusted(tmp_path):
    genesis = make_genesis()
    start = genesis_checkpoint(genesis)
    assert trusted_point(tmp_path, Light(), genesis) == start
    given = tmp_path / "given.json"
    for kept_height, given_height in ((5, 9), (9, 5)):
        write_checkpoint(replace(start, height=kept_height), tmp_path / CHECKPOINT_FILE)
        write_checkpoint(replace(start, height=given_height), given)
        assert trusted_point(tmp_path, Light(checkpoint=given), genesis).height == 9
    off = Light(enabled=False, checkpoint=tmp_path / "nothing.json")
    assert trusted_point(tmp_path, off, genesis) == start


def test_a_checkpoint_that_cannot_be_used_is_one_line_with_a_remedy(tmp_path):
    genesis = make_genesis()
    nothing = Light(checkpoint=tmp_path / "nothing.json")
    with pytest.raises(ConfigError, match=r"nothing\.json.*give a checkpoint file"):
        trusted_point(tmp_path, nothing, genesis)
    other = genesis_checkpoint(make_genesis(gate_lead_s=299))
    write_checkpoint(other, tmp_path / "other.json")
    with pytest.raises(ConfigError, match=r"other\.json.*light\.checkpoint"):
        trusted_point(tmp_path, Light(checkpoint=tmp_path / "other.json"), genesis)
    write_checkpoint(other, tmp_path / CHECKPOINT_FILE)
    with pytest.raises(ConfigError, match=r"checkpoint\.json.*remove it"):
        trusted_point(tmp_path, Light(), genesis)


async def test_it_is_on_unless_switched_off_and_its_file_lies_beside_the_provisioning(
    home, tmp_path
):
    file = tmp_path / "provisioning.toml"
    assert home._light_client(ADDRESS.id, home.home_bus) is not None
    file.write_text(file.read_text() + '[light]\nenabled = false\ncheckpoint = "c.json"\n')
    config = load_provisioning(file)
    assert config.light.checkpoint == tmp_path / "c.json"
    home.config = config
    assert home._light_client(ADDRESS.id, home.home_bus) is None
    assert home.facts().light.state is LightState.OFF
    assert not [one for one in assess(home.facts()).reasons if one.name == "light"]


async def test_the_command_line_reads_what_was_kept_of_this_address_only(home):
    await register(home)
    view = LightView(
        state=LightState.SAME, address=ADDRESS.id, verified_height=80, proved_height=79,
        balance_uc=5_000_000, locked_uc=1,
    )  # fmt: skip
    light = home._light_client(ADDRESS.id, home.home_bus)
    light._found = view
    light.keep()
    facts = summary_of(home.config.home.data_dir)
    assert facts["light"]["provedBalanceUc"] == 5_000_000
    assert json.loads(json.dumps(facts))["light"]["state"] == "same"
    assert kept_view(home.store, "hg1another") == LightView()


# --- how far the ledger was read -----------------------------------------------------------------


async def test_how_far_the_ledger_was_read_is_kept_once_a_minute_and_at_the_end(home, monkeypatch):
    """A home in a busy market would write hundreds of MB a day, once a second."""
    heights = {"wallet": 0}
    writes = []
    home.client = SimpleNamespace(
        caught_up=True,
        delivered=lambda: dict(heights),
        validators=lambda: SimpleNamespace(to_json=lambda: {"epoch": heights["wallet"]}),
        stop=asyncio.Event().wait,
    )
    keep = home.wallet.keep_place
    monkeypatch.setattr(
        home.wallet, "keep_place", lambda *place: (writes.append(place), keep(*place))
    )
    monkeypatch.setattr("hem.service.HOUSEKEEPING_S", 0.001)
    task = asyncio.create_task(home._housekeep())
    async with asyncio.timeout(PATIENCE_S):
        while heights["wallet"] < 50:
            heights["wallet"] += 1
            while home._heights != heights:
                await asyncio.sleep(0.001)
    assert not writes
    monkeypatch.setattr("hem.service.PLACE_KEPT_S", 0.0)
    async with asyncio.timeout(PATIENCE_S):
        while not writes:
            await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert home.wallet.resume() == heights
    heights["wallet"] = 60
    home.client.stop = _nothing
    home.outbox.stop, home.trading = _nothing, True
    await home._stop()
    with sqlite3.connect(home.config.home.data_dir / "ems.sqlite") as db:
        (raw,) = db.execute("SELECT value FROM kv WHERE key = 'read'").fetchone()
    assert json.loads(raw) == {"wallet": 60}


async def _nothing():
    return
