"""Blocks, state transition, Proof of Energy, Simplex consensus, storage and clients."""
