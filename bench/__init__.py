"""Benchmarks against peers and limits; one JSON result per run."""
