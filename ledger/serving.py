"""Where a node serves HTTP: the operator's words for an address, the file that says it."""

from __future__ import annotations

from wire.errors import ConfigError

URL_FILE = "http.url"
"""In the chain folder while the API is served: its address, for `ledger peers`."""


def parse_address(text: str) -> tuple[str, int]:
    """
    HOST:PORT, :PORT or PORT; the loopback interface when no host is named.

    Raises:
        ConfigError: neither.
    """
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    if not port.isascii() or not port.isdecimal() or int(port) > 65_535:
        raise ConfigError(f"--http {text}: expected HOST:PORT, like 127.0.0.1:8334")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """True for names of the loopback interface."""
    return host in ("localhost", "::1") or host.startswith("127.")
