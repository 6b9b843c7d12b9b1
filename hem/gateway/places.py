"""
Where `hem detect` may look: the addresses that were given and no others.

A network of at most `HOSTS_MAX` addresses, private ones (RFC 1918, RFC 4193, link-local, loopback)
unless the owner says that public ones are meant; or one serial port. Names are not looked up: who
asks a whole network ought to know which.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from hem.gateway.links import BAUDS, Connection, port_trouble
from hem.gateway.template import load_template, template_ids
from wire.errors import ConfigError

HOSTS_MAX = 4_096
"""A /20."""
PORTS = (502, 1502)
PORTS_MAX = 16
UNITS = "1-10,71,85,100,126,247"
"""What makers ship: 1 and up, Kostal, Alpha ESS, Victron, SunSpec of SMA, GoodWe and FoxESS."""
UNIT_MAX = 247
"""Modbus over serial line V1.02, section 2.2; TCP devices also use 0 and 255."""


@dataclass(frozen=True, slots=True)
class Places:
    """What is asked, by host: one connection at a time to each."""

    hosts: tuple[tuple[Connection, ...], ...]
    serial: bool


def serial_places(path: str, baud: int | None, parity: str | None) -> Places:
    """
    A serial port at the speeds that templates know, or at the one that is given.

    Raises:
        ConfigError: names option and remedy, or what is wrong with the port.
    """
    trouble = port_trouble(path)
    if trouble:
        raise ConfigError(f"{path}: {trouble}")
    if baud is not None and baud not in BAUDS:
        raise ConfigError(f"--baud: {baud} is not one of {', '.join(map(str, BAUDS))}")
    if parity not in (None, "N", "E", "O"):
        raise ConfigError(f"--parity: {parity!r} is not one of N, E, O")
    lines = Counter(
        (shown.baud, shown.parity)
        for identity in template_ids()
        for shown in load_template(identity).connections
        if shown.kind == "rtu"
    )
    usual = [line for line, _ in lines.most_common()]
    chosen = dict.fromkeys((baud or known, parity or kept) for known, kept in usual)
    return Places(
        (
            tuple(
                Connection(kind="rtu", path=path, baud=speed, parity=each)  # type: ignore[arg-type]
                for speed, each in chosen
            ),
        ),
        serial=True,
    )


def network_places(text: str, ports: Sequence[int], *, public: bool, adapter: bool) -> Places:
    """
    The hosts of a network, or one.

    Args:
        text: `192.168.1.0/24`, or an address
        ports: of Modbus TCP
        public: whether addresses that are not private are meant
        adapter: whether serial lines behind TCP adapters are asked (RTU frames)

    Raises:
        ConfigError: names what is wrong and what would be right.
    """
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ConfigError(
            f"{text!r} is no network and no serial port; give 192.168.1.0/24, an address,"
            " or /dev/ttyUSB0"
        ) from None
    if network.num_addresses > HOSTS_MAX:
        raise ConfigError(
            f"{network} has {network.num_addresses} addresses; give {HOSTS_MAX} at most (a /20)"
        )
    if not network.is_private and not public:
        raise ConfigError(f"{network} is not private; give your own network, or add --public")
    if not 1 <= len(ports) <= PORTS_MAX or any(not 1 <= port <= 65_535 for port in ports):
        raise ConfigError(f"--port: give 1 to {PORTS_MAX} of them, each within 1…65535")
    kind = "rtu-over-tcp" if adapter else "tcp"
    hosts = [network.network_address] if network.num_addresses == 1 else list(network.hosts())
    return Places(
        tuple(
            tuple(Connection(kind=kind, host=str(host), port=port) for port in ports)  # type: ignore[arg-type]
            for host in hosts
        ),
        serial=False,
    )


def units_of(text: str, *, serial: bool) -> tuple[int, ...]:
    """
    Unit ids such as `1-10,126`.

    Raises:
        ConfigError: names the option and what would be right.
    """
    low, high = (1, UNIT_MAX) if serial else (0, 255)
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        try:
            begin = int(first)
            end = int(last) if dash else begin
        except ValueError:
            raise ConfigError(f"--units: {part!r} is none; give for example 1-10,126") from None
        if not low <= begin <= end <= high:
            raise ConfigError(f"--units: {part!r} is not within {low}…{high}")
        found.extend(range(begin, end + 1))
    return tuple(dict.fromkeys(found))
