"""Simulated devices, homes and feeders; the demo."""
