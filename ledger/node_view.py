"""
What the HTTP API may know of a running node: a few facts, and proofs of its newest state.

Both are asked on the node's own event loop, between two of its turns, and are short: the rest of
the API reads the node's file through a connection of its own.
"""

from __future__ import annotations

from typing import Literal, Protocol

from ledger.api_models import NodeFacts
from ledger.node import Node
from ledger.peers import Peer, Peers
from ledger.proofs import StateProof
from ledger.prover import Prover

NodeRole = Literal["validator", "full"]


class Live(Protocol):
    """A running node, as the API sees it."""

    def facts(self) -> NodeFacts:
        """Who answers."""
        ...

    def peers(self) -> list[Peer]:
        """Who was heard."""
        ...

    def prove_row(self, key: str) -> StateProof:
        """
        Proof of a row of the newest state that a header carries.

        Raises:
            NotProvableError: no header carries one that is still in memory.
        """
        ...


class NodeView:
    """The `Live` of a `Node`."""

    def __init__(self, node: Node, role: NodeRole, peers: Peers) -> None:
        self._node = node
        self._role: NodeRole = role
        self._peers = peers

    def facts(self) -> NodeFacts:
        """Who answers."""
        node = self._node
        return NodeFacts(
            id=node.key.id,
            role=self._role,
            votes=node.key.id in node.epochs.validators.ids,
            connected=node.bus.connected,
            mempool=len(node.mempool),
        )

    def peers(self) -> list[Peer]:
        """Who was heard."""
        return self._peers.all()

    def prove_row(self, key: str) -> StateProof:
        """As `Live.prove_row`."""
        return Prover(self._node.store).row(self._node.ledger, key)
