"""TLS to the broker with a client certificate: what Mosquitto takes for an identity."""

from __future__ import annotations

import ssl
from pathlib import Path

from wire.errors import ConfigError

CA_FILE = "ca.crt"
CERTIFICATE_FILE = "client.crt"
KEY_FILE = "client.key"


def client_context(folder: Path) -> ssl.SSLContext:
    """
    The context of a lane whose X.509 files are in `folder`: ca.crt, client.crt, client.key.

    Raises:
        ConfigError: a file is missing or is not what its name says.
    """
    try:
        context = ssl.create_default_context(cafile=folder / CA_FILE)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(folder / CERTIFICATE_FILE, folder / KEY_FILE)
    except OSError as error:  # ssl.SSLError is one
        names = f"{CA_FILE}, {CERTIFICATE_FILE}, {KEY_FILE}"
        raise ConfigError(f"{folder}: want {names} in PEM ({error})") from None
    return context
