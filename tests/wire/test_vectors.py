"""The golden vectors: the protocol does not change by accident."""

import importlib.util
from pathlib import Path

import pytest

VECTORS = Path(__file__).parents[1] / "vectors"


@pytest.fixture(scope="module")
def maker():
    spec = importlib.util.spec_from_file_location("make_wire", VECTORS / "make_wire.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_wire_is_what_it_was(maker):
    """After a wanted change run tests/vectors/make_wire.py and say so in the changelog."""
    assert maker.text() == (VECTORS / "wire.json").read_text()
