"""Helpers of these tests are imported by their bare name; `hem` is the package under test."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import pytest
from home_at_hand import make_home

from hem import service


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home whose gateway, outbox and clock are at hand."""
    monkeypatch.setattr(service, "READ_AGAIN_S", 0.001)
    made = make_home(tmp_path)
    yield made
    made.store.close()
