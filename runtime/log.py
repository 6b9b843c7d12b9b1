"""Structured logs: one JSON object a line on standard error, or plain text for a person."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def _absent(name: str) -> Iterator[None]:
    """Let imports not find a package that is not loaded yet."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]


with _absent("rich"):  # structlog would load it for tracebacks on a terminal: 4 MB a process
    import structlog
from structlog.stdlib import ProcessorFormatter  # noqa: E402
from structlog.typing import FilteringBoundLogger, Processor  # noqa: E402

FORMAT = "HEARTHGRID_LOG_FORMAT"


def log_as_json() -> None:
    """Log JSON lines whatever the environment says: this process, and those that it starts."""
    os.environ[FORMAT] = "json"


def configure(component: str, level: str | None = None) -> FilteringBoundLogger:
    """
    Set logging up for a process and return its logger.

    HEARTHGRID_LOG sets the level (default info); HEARTHGRID_LOG_FORMAT=text makes it readable.
    What libraries log (warnings only) looks the same.
    """
    name = (level or os.environ.get("HEARTHGRID_LOG", "info")).upper()
    number = logging.getLevelNamesMapping().get(name, logging.INFO)
    text = os.environ.get(FORMAT) == "text"
    renderer = structlog.dev.ConsoleRenderer() if text else structlog.processors.JSONRenderer()
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    rest: list[Processor] = [structlog.processors.format_exc_info, renderer]
    structlog.configure(
        processors=[*shared, *rest],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(_StandardError()),  # type: ignore[arg-type]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[ProcessorFormatter.remove_processors_meta, *rest],
        )
    )
    logging.basicConfig(level=max(number, logging.WARNING), handlers=[handler])
    logger: FilteringBoundLogger = structlog.get_logger(component=component)
    return logger


class _StandardError:
    """
    Standard error as it is when a line is written; a line that cannot be written is dropped.

    Whoever reads our log may go away at any time, and that must stop nothing but the log.
    """

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
