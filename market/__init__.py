"""
The market's rules as pure functions over integers: auctions, the order book, escrow, schedules,
settlement.

They know nothing of blocks; `ledger.contracts` adapts them to the ledger's state.
"""

from market.aggregator_auction import AuctionResult, forward, reverse
from market.assets import EnergyAsset, Holding, Kind, exchange, merge, subtract
from market.clearing_check import Fault, check_clearing, check_forward, check_reverse
from market.congestion import Congestion, Limit, Outcome, Schedule, Share, clear_session
from market.curve_auction import Curve, CurveClearing, CurveFault, PriceGrid, clear_curves
from market.double_auction import Clearing, Piece, clear, pieces
from market.efficiency import Efficiency, efficiency
from market.escrow import Conduct, Payout, Terms
from market.order_book import Offer, Trade, accept_offer, post_offer, rescind_offer
from market.orders import Award, Order, Pricing, Rejection, Unmatched
from market.scheduling import Balance, balance, deviation_tariff
from market.sealed import SealedBid, commitment
from market.settlement import Settlement, Tariff, Totals, assumed_net_wh, settle, totals, true_up
from market.wallets import Wallet, Wallets

__all__ = [
    "AuctionResult",
    "Award",
    "Balance",
    "Clearing",
    "Conduct",
    "Congestion",
    "Curve",
    "CurveClearing",
    "CurveFault",
    "Efficiency",
    "EnergyAsset",
    "Fault",
    "Holding",
    "Kind",
    "Limit",
    "Offer",
    "Order",
    "Outcome",
    "Payout",
    "Piece",
    "PriceGrid",
    "Pricing",
    "Rejection",
    "Schedule",
    "SealedBid",
    "Settlement",
    "Share",
    "Tariff",
    "Terms",
    "Totals",
    "Trade",
    "Unmatched",
    "Wallet",
    "Wallets",
    "accept_offer",
    "assumed_net_wh",
    "balance",
    "check_clearing",
    "check_forward",
    "check_reverse",
    "clear",
    "clear_curves",
    "clear_session",
    "commitment",
    "deviation_tariff",
    "efficiency",
    "exchange",
    "forward",
    "merge",
    "pieces",
    "post_offer",
    "rescind_offer",
    "reverse",
    "settle",
    "subtract",
    "totals",
    "true_up",
]
