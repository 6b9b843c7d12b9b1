"""Ingest, rollups, the day's report and the operators' console."""
