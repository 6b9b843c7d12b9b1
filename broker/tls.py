"""TLS of the embedded broker: whose certificate a client shows."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from wire.errors import ConfigError
from wire.revoked_keys import serial_text


def require_certificates(context: ssl.SSLContext, ca: Path) -> None:
    """
    Let in only who shows a certificate of this authority, and of nobody else's.

    Raises:
        ConfigError: `ca` is not a certificate.
    """
    try:
        context.load_verify_locations(ca)
    except OSError as error:
        raise ConfigError(f"{ca}: want the authority's certificate in PEM ({error})") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED


def peer_of(certificate: dict[str, Any]) -> tuple[str, str]:
    """The name in a certificate, as `ssl` tells it, and its serial number; empty without one."""
    names = [
        value
        for part in certificate.get("subject", ())
        for name, value in part
        if name == "commonName"
    ]
    serial = str(certificate.get("serialNumber", ""))
    return (names[0] if len(names) == 1 else ""), serial_text(int(serial, 16)) if serial else ""
