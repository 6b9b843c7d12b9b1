"""A node's process: key, certificate, lane, node, and the HTTP API when it is wanted."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import structlog

from ledger.api import build_app
from ledger.checkpoint import CHECKPOINT_FILE, read_checkpoint
from ledger.duties import LICENCE_FILE
from ledger.genesis import Genesis, load_genesis
from ledger.joining import CannotJoinError, join
from ledger.node import Node
from ledger.node_tls import node_tls, static_tls
from ledger.node_view import NodeView
from ledger.peers import Peers
from ledger.roles import Role, decide, standing
from ledger.serving import URL_FILE, is_loopback, parse_address
from runtime.bus import MqttBus, lane
from runtime.clock import clock_from_environment
from runtime.http import listen, serving
from runtime.keyfiles import read_certificate, read_key
from runtime.lane_tls import certified
from runtime.log import configure
from runtime.ports import Bus, Clock
from runtime.process import run_service
from runtime.rng import SystemRng
from wire import topics

log = structlog.get_logger(component="ledger")


def run_node(
    folder: Path,
    key_file: Path,
    certificate_file: Path,
    host: str,
    port: int,
    block_interval_s: float,
    tls_folder: Path | None = None,
    *,
    door: str = "",
    role: Role | None = None,
    http: str | None = None,
    keep_epochs: int | None = None,
    replay: bool = False,
) -> None:
    """
    Run a node until SIGTERM or SIGINT.

    Args:
        tls_folder: see `runtime.tls`
        door: where certificates for it come from; empty: they are there
        role: `validator` or `full`; None: what the key is for
        http: HOST:PORT of the HTTP API; None: not served
        keep_epochs: how many ended epochs stay on the disk; None: all
        replay: begin an empty folder with the genesis, not with a snapshot

    Raises:
        ConfigError: a file is missing or wrong, the key does not fit the role, or the port is
            taken.
    """
    configure("ledger")
    genesis = load_genesis(folder / "genesis.json")
    key = read_key(key_file)
    certificate = read_certificate(certificate_file)
    own = node_tls(tls_folder, door, key, genesis)
    tls = own.context_for(key.id) if own is not None else static_tls(tls_folder)
    decided, warning = decide(role, standing(genesis, folder, key.id), key.id)
    listener = listen(*parse_address(http), "--http") if http is not None else None
    log.info("starting", id=key.id, chain=genesis.chain_id, role=decided.value)
    if warning:
        log.warning("role and key disagree", what=warning)

    async def main() -> None:
        clock = clock_from_environment()

        def connect() -> MqttBus:
            return lane(key, genesis.market, certificate, host, port, clock, SystemRng(), tls=tls)

        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(certified(own, key.id))
            await follow(stack, clock, connect)

    async def follow(
        stack: contextlib.AsyncExitStack, clock: Clock, connect: Callable[[], MqttBus]
    ) -> None:
        if not replay:
            await _join(folder, genesis, connect(), clock, key.id)
        bus = connect()
        # a key without a seat may ask for one when its licence lies in the folder
        votes = decided is Role.VALIDATOR or (role is None and (folder / LICENCE_FILE).exists())
        node = Node(genesis, folder, key, bus, clock, block_interval_s, votes=votes,
                    keep_epochs=keep_epochs)  # fmt: skip
        if listener is not None:
            anywhere = not is_loopback(str(listener.getsockname()[0]))
            if anywhere:
                log.warning("the HTTP API is open to others, without a password")
            peers = watch_peers(node)
            view = NodeView(node, _running_as(decided), peers)
            app = build_app(genesis, folder, clock, view, anywhere=anywhere)
            await stack.enter_async_context(serving(app, listener, folder / URL_FILE))
        await node.run()

    run_service(main)


async def _join(folder: Path, genesis: Genesis, bus: Bus, clock: Clock, name: str) -> None:
    """Begin an empty folder with a snapshot, where there is one; else the blocks are fetched."""
    kept = folder / CHECKPOINT_FILE
    trust = read_checkpoint(kept) if kept.exists() else None
    try:
        joined = await join(folder, genesis, bus, clock, name, trust=trust)
    except CannotJoinError as error:
        log.warning("no snapshot: fetching all blocks", reason=str(error))
        return
    if joined is not None:
        log.info("joined", height=joined.height, rows=joined.rows, size_bytes=joined.size_bytes)


def watch_peers(node: Node) -> Peers:
    """Note every vote that comes in on a node's bus; the node takes it too."""
    peers = Peers(node.clock.wall_ms, node.find_proposal)
    votes = topics.build(node.genesis.market, topics.CONSENSUS_VOTE, "+")
    node.bus.subscribe(votes, peers.take_vote)
    return peers


def _running_as(role: Role) -> Literal["validator", "full"]:
    return "validator" if role is Role.VALIDATOR else "full"
