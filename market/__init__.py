"""Economics, pure: clearing rules, auctions, settlement. No blocks, no clock."""
