"""
Brokers for a benchmark: the rendered Mosquitto configuration on a real Mosquitto, or `broker run`.

Mosquitto runs exactly as `broker render mosquitto` says, TLS and access list included; only the
address and the user it runs as are this machine's.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker.mosquitto import render_acl, render_config
from csmdb.pki import TlsAuthority, pem_of
from runtime.clock import SystemClock
from runtime.tls import client_context, write_key
from sim.processes import Child, Processes
from wire.errors import ConfigError
from wire.keys import KEY_BYTES, to_text

HOST = "127.0.0.1"
READY_S = 10.0
INSTALL = "Mosquitto is not installed: `apt-get install mosquitto`, or choose --broker embedded"


class RunningBroker(Protocol):
    """What the benchmark needs of either."""

    name: str
    child: Child
    port: int

    def tls_folder(self, identity: str) -> Path | None:
        """Folder of X.509 files for a client (`runtime.tls`), or None: the token is enough."""
        ...


class Mosquitto:
    """
    A real Mosquitto on loopback.

    Args:
        folder: everything it needs is written here
        services: identity -> roles, as in the access list
    """

    name = "mosquitto"

    def __init__(
        self,
        processes: Processes,
        folder: Path,
        market: str,
        services: Mapping[str, frozenset[str]],
    ) -> None:
        binary = find_mosquitto()
        if binary is None:
            raise ConfigError(INSTALL)
        self._folder = folder
        self._authority = TlsAuthority.create(
            "hearthgrid bench", SystemClock().wall_ms(), os.urandom(KEY_BYTES), days=1
        )
        self._write_server()
        self.port = free_port()
        self._acl, self._market = folder / "acl", market
        self._acl.write_text(render_acl(market, services))
        self._acl.chmod(0o600)
        (folder / "state").mkdir()
        config = render_config(str(folder), str(self._acl), str(folder / "state"), self.port, HOST)
        # started by root, Mosquitto would become a user who may not read this folder
        (folder / "mosquitto.conf").write_text(f"{config}user {getpass.getuser()}\n")
        self.child = processes.start_command(
            self.name, [binary, "-c", str(folder / "mosquitto.conf")]
        )
        wait_for_port(processes, self.port)

    def tls_folder(self, identity: str) -> Path:
        """Files of a client, made when first asked for."""
        folder = self._folder / "clients" / identity
        if not folder.exists():
            write_client(self._authority, folder, identity)
        return folder

    def _write_server(self) -> None:
        key, wall_ms = Ed25519PrivateKey.generate(), SystemClock().wall_ms()
        self._folder.mkdir(parents=True, exist_ok=True)
        certificate = self._authority.server(key.public_key(), [HOST], wall_ms, days=1)
        (self._folder / "ca.crt").write_bytes(self._authority.pem)
        (self._folder / "server.crt").write_bytes(pem_of(certificate))
        write_key(self._folder / "server.key", key)
        (self._folder / "crl.pem").write_bytes(self._authority.revoked(0, [], wall_ms))


class Embedded:
    """`broker run` with its sessions on disk."""

    name = "embedded"

    def __init__(
        self,
        processes: Processes,
        folder: Path,
        market: str,
        issuing_key: bytes,
        *,
        quotas: bool = False,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        key_file = folder / "issuing.key"
        key_file.write_text(to_text(issuing_key) + "\n")
        self.port = free_port()
        self.child = processes.start(
            self.name, "broker.cli", "run", "--port", self.port, "--market", market,
            "--issuing-key-file", key_file, "--state", folder / "broker.sqlite",
            *(() if quotas else ("--no-quotas",)),
        )  # fmt: skip
        wait_for_port(processes, self.port)

    def tls_folder(self, identity: str) -> None:
        """None: the embedded broker checks tokens."""


def write_client(authority: TlsAuthority, folder: Path, identity: str) -> None:
    """Write the files that `runtime.tls.client_context` reads."""
    key = Ed25519PrivateKey.generate()
    certificate = authority.client(identity, key.public_key(), SystemClock().wall_ms(), 1)
    folder.mkdir(parents=True)
    (folder / "ca.crt").write_bytes(authority.pem)
    (folder / "client.crt").write_bytes(pem_of(certificate))
    write_key(folder / "client.key", key)


def find_mosquitto() -> str | None:
    """Path of the binary (Debian keeps it in /usr/sbin), or None."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


def context_of(broker: RunningBroker, identity: str) -> ssl.SSLContext | None:
    """The TLS context of a client."""
    folder = broker.tls_folder(identity)
    return client_context(folder) if folder is not None else None


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        port: int = taken.getsockname()[1]
        return port


def wait_for_port(processes: Processes, port: int) -> None:
    """
    Return when somebody listens.

    Raises:
        ConfigError: nobody did in time.
        ProcessDiedError: a process ended.
    """
    deadline_s = time.monotonic() + READY_S
    while True:
        processes.check()
        try:
            socket.create_connection((HOST, port), timeout=1.0).close()
        except OSError:
            if time.monotonic() > deadline_s:
                raise ConfigError(f"no broker on port {port} after {READY_S} s") from None
            time.sleep(0.05)
        else:
            return
