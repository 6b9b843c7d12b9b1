"""
The market's rules as pure functions over integers: auctions and settlement.

They know nothing of blocks; `ledger.contracts` adapts them to the ledger's state.
"""

from market.aggregator_auction import AuctionResult, forward, reverse
from market.double_auction import Clearing, Piece, clear, pieces
from market.orders import Award, Order, Pricing, Rejection, Unmatched
from market.settlement import Settlement, Tariff, Totals, assumed_net_wh, settle, totals, true_up

__all__ = [
    "AuctionResult",
    "Award",
    "Clearing",
    "Order",
    "Piece",
    "Pricing",
    "Rejection",
    "Settlement",
    "Tariff",
    "Totals",
    "Unmatched",
    "assumed_net_wh",
    "clear",
    "forward",
    "pieces",
    "reverse",
    "settle",
    "totals",
    "true_up",
]
