"""Fixtures of analytics: a made-up day, folded up to the evening."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.console_preview import Preview
from support.http import serving


@pytest.fixture
def evening(tmp_path: Path) -> Iterator[Preview]:
    """The made-up feeder at 19:24 of its day."""
    preview = Preview(19.4, tmp_path)
    yield preview
    preview.store.close()


@pytest.fixture(scope="module")
def whole_day(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Preview]:
    """The made-up feeder after its day has been settled."""
    preview = Preview(24.9, tmp_path_factory.mktemp("day"))
    yield preview
    preview.store.close()


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a real console that shows the made-up evening."""
    preview = Preview(19.4, tmp_path_factory.mktemp("console"))
    with serving(preview.app()) as url:
        yield url
    preview.store.close()


@pytest.fixture
def serve() -> object:
    """`serving`, for tests that build their own application."""
    return serving
