"""
The blocks of one epoch that are known and not yet final, as a tree that grows from the last final
block. Small: bodies are elsewhere, and what is final is cut off.
"""

from __future__ import annotations

from dataclasses import dataclass

from ledger.types import Header, Proposal, header_hash


class ForkError(AssertionError):
    """
    A finalization contradicts a block already final here.

    More than f validators are Byzantine, or the code is wrong. The node must stop and be looked at.
    """


@dataclass(slots=True)
class Block:
    """A known block and what we think of it."""

    hash: bytes
    proposal: Proposal
    valid: bool | None = None
    """Our judgement of its content; None until there is one."""
    asked: bool = False
    """True once the shell was asked for its judgement."""

    @property
    def header(self) -> Header:
        """Its header."""
        return self.proposal.header

    @property
    def parent_view(self) -> int:
        """The view of its parent, 0 for the epoch's base."""
        notarization = self.proposal.justify.notarization
        return notarization.view if notarization else 0


class BlockTree:
    """Blocks above the last final one."""

    def __init__(self, base_hash: bytes, base_height: int, base_time_ms: int) -> None:
        self.final_hash = base_hash
        self.final_height = base_height
        self.final_time_ms = base_time_ms
        self.final_view = 0
        self.final_header: Header | None = None
        self._blocks: dict[bytes, Block] = {}
        self._by_view: tuple[Block, ...] | None = ()
        """The same, oldest view first; None until it is asked for after a change."""

    def get(self, block_hash: bytes) -> Block | None:
        """A block above the last final one."""
        return self._blocks.get(block_hash)

    def add(self, proposal: Proposal) -> Block:
        """Add a block (once)."""
        block = Block(header_hash(proposal.header), proposal)
        self._by_view = None
        return self._blocks.setdefault(block.hash, block)

    def blocks(self) -> tuple[Block, ...]:
        """All blocks, oldest view first."""
        if self._by_view is None:  # asked for at every event, changed by few
            ordered = sorted(self._blocks.values(), key=lambda block: block.header.view)
            self._by_view = tuple(ordered)
        return self._by_view

    def of_view(self, view: int) -> list[Block]:
        """The blocks of a view, in the order they came."""
        return [block for block in self._blocks.values() if block.header.view == view]

    def chain(self, tip: bytes) -> list[Block] | bytes:
        """
        The blocks from the last final one (exclusive) to `tip` (inclusive), oldest first.

        Returns:
            The chain, or the hash of the first block missing on the way down.

        Raises:
            ForkError: `tip` skips the last final block, though its justify was good.
        """
        chain: list[Block] = []
        while tip != self.final_hash:
            block = self._blocks.get(tip)
            if block is None:
                return tip
            if block.parent_view < self.final_view:
                raise ForkError(f"block of view {block.header.view} skips a final one")
            chain.append(block)
            tip = block.header.parent_hash
        chain.reverse()
        return chain

    def finalize(self, header: Header, block_hash: bytes) -> None:
        """Move the root up to a block and cut off what cannot descend from it."""
        self.final_hash = block_hash
        self.final_height = header.height
        self.final_time_ms = header.time_ms
        self.final_view = header.view
        self.final_header = header
        self._by_view = None
        self._blocks = {
            name: block for name, block in self._blocks.items() if block.header.view > header.view
        }
