"""Contracts: adapters from ledger operations to the rules in `market`."""
