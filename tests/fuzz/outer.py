"""Targets at the edges of services: HTTP, private requests, meters' lines and messages, files."""

from __future__ import annotations

import asyncio
import io
import shutil
import tarfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from fuzz import seeds, services
from support.little_chain import little_chain
from support.page_household import MadeUpHome, page_of

import hem
from aggregator.config import load_config as load_aggregator
from csmdb import api as csmdb_api
from csmdb import backup as csmdb_backup
from csmdb.pki import read_request
from hem import backup as home_backup
from hem.controller.policy import parse_policy
from hem.gateway.modbus import DeviceError
from hem.gateway.mqtt_meter import MqttConfig, MqttSource
from hem.gateway.p1 import DIALECTS, Splitter, TelegramReader
from hem.gateway.template import parse_template
from ledger import api as ledger_api
from ledger import snapshot
from runtime.clock import SystemClock
from runtime.ports import Message
from wire import day_ahead, firmware, grid_limit, revoked_keys, withdrawal
from wire.canonical import decode
from wire.errors import ConfigError, WireError

# --- Private requests -----------------------------------------------------------------------------


def private_requests() -> list[bytes]:
    assets = [{"kind": "production", "energyWh": 5, "startSlot": 1, "endSlot": 3}]
    return [
        msgspec.json.encode(one, order="sorted")
        for one in (
            {"withdrawal": "w-1", "address": seeds.HOME.id, "amountUc": 5, "assets": assets},
            {"slots": [[5, 100], [6, -100]]},
            {"participant": seeds.HOME.id, "maxImportW": 5, "maxExportW": 5, "fromMs": 1,
             "untilMs": 2},
        )
    ]  # fmt: skip


def run_private_request(data: bytes) -> None:
    """Withdrawals, schedules and grid limits: what the DSO and a home read of each other."""
    try:
        value = decode(data)
    except WireError:
        return
    if isinstance(value, dict):
        for read in (
            withdrawal.read_withdrawal, day_ahead.read_schedule, grid_limit.read_grid_limit,
        ):  # fmt: skip
            with suppress(WireError):
                read(value)


# --- Snapshots ------------------------------------------------------------------------------------


def snapshots() -> list[bytes]:
    manifest = snapshot.Manifest(*_filled(snapshot.Manifest))
    return [snapshot.pack(manifest), b"\x93\x01\x02\x03"]


def _filled(kind: type[msgspec.Struct]) -> list[Any]:
    made = {int: 1, bytes: b"\1" * 32, str: "x"}
    found: list[Any] = []
    for field in msgspec.structs.fields(kind):
        plain = getattr(field.type, "__origin__", field.type)
        found.append(made.get(plain, [b"\1" * 32] if plain in (list, tuple) else b"\1" * 32))
    return found


def run_snapshot(data: bytes) -> None:
    """An offer or a manifest, and a chunk against it."""
    with suppress(WireError):
        snapshot.read_offer(data)
    with suppress(WireError):
        manifest = snapshot.read_manifest(data)
        if manifest.hashes:
            snapshot.check_chunk(manifest, 0, data)


# --- Meters ---------------------------------------------------------------------------------------


def telegrams() -> list[bytes]:
    lines = ["/XXX5x", "", "1-3:0.2.8(50)", "0-0:1.0.0(260601120000S)", "1-0:1.8.1(000123.456*kWh)",
             "1-0:1.8.2(000001.000*kWh)", "1-0:2.8.1(000000.000*kWh)", "1-0:2.8.2(000000.001*kWh)",
             "1-0:1.7.0(00.500*kW)", "1-0:2.7.0(00.000*kW)", "!"]  # fmt: skip
    body = "\r\n".join(lines).encode()
    return [body + f"{_crc16(body):04X}\r\n".encode(), body + b"\r\n"]


def _crc16(data: bytes) -> int:
    value = 0
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0xA001 if value & 1 else 0)
    return value


def run_p1(data: bytes) -> None:
    """A serial line cut anywhere, read in every dialect."""
    for dialect in DIALECTS.values():
        splitter, reader = Splitter(), TelegramReader(dialect)
        half = len(data) // 2
        for part in (data[:half], data[half:]):
            for one in splitter.feed(part):
                if isinstance(one, bytes):
                    with suppress(DeviceError):
                        reader.read(one)


def meter_messages() -> list[bytes]:
    return [b'{"power": 1.5, "energy": 0.3, "produced_energy": 0}', b'{"power":1}', b"online"]


def run_mqtt_meter(data: bytes) -> None:
    """A message of a meter on the household's broker."""

    async def take() -> None:
        wishes = {"name": "m", "make": "zigbee2mqtt", "topic": "plug", "port": 1, "wait_s": 0}
        source = MqttSource(MqttConfig(**wishes))
        try:
            source._take(Message("zigbee2mqtt/plug", data))
            with suppress(DeviceError):
                await source.read()
        finally:
            source.close()

    services.run(take())


# --- Files ----------------------------------------------------------------------------------------


def run_policy(data: bytes) -> None:
    with suppress(ConfigError):
        parse_policy(data.decode(errors="surrogateescape"), "policy.toml")


def policies() -> list[bytes]:
    return [b'mode = "auto"\n[wallet]\n', b"reserve_percent = 20\n", b""]


def run_template(data: bytes) -> None:
    with suppress(ConfigError):
        parse_template(data.decode(errors="surrogateescape"), "a.toml")


def templates() -> list[bytes]:
    folder = Path(hem.__file__).parent / "gateway" / "templates"
    return [path.read_bytes() for path in sorted(folder.glob("*.toml"))[:3]]


def run_aggregator_config(data: bytes) -> None:
    path = services.folder() / "aggregator.toml"
    path.write_bytes(data)
    with suppress(ConfigError):
        load_aggregator(path)


def aggregator_configs() -> list[bytes]:
    return [b'[market]\nname = "test"\ngenesis = "genesis.json"\n', b"[service]\nkey = 5\n"]


def archives() -> list[bytes]:
    found = []
    for name, content in (("manifest.json", b"{}"), ("../out", b"x"), ("/etc/x", b"x")):
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w:gz") as made:
            facts = tarfile.TarInfo(name)
            facts.size = len(content)
            made.addfile(facts, io.BytesIO(content))
        found.append(raw.getvalue())
    return [*found, b"SQLite format 3\0" + bytes(100), b""]


def run_archive(data: bytes) -> None:
    """A backup of a home, or of a CSM-DB: restored whole, or refused, with nothing left behind."""
    place = services.folder() / "restore"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    source = place / "backup"
    source.write_bytes(data)
    grid = seeds.chain().genesis.grid
    (place / "home").mkdir()
    with suppress(ConfigError):
        home_backup.restore(source, place / "home", grid, seeds.NOW_MS)
    with suppress(ConfigError):
        csmdb_backup.restore(source, place / "csmdb")
    assert {path.name for path in place.iterdir()} <= {"backup", "home", "csmdb"}


# --- HTTP -----------------------------------------------------------------------------------------


@cache
def _apps() -> tuple[Any, ...]:
    folder = services.folder() / "little"
    folder.mkdir()
    chain = little_chain(folder)
    register, _, _ = services._csmdb()
    return (
        ledger_api.build_app(chain.genesis, folder, SystemClock(), anywhere=True),
        csmdb_api.build_app(register, burst=10**9, per_s=10**9),
        page_of(MadeUpHome(services.folder())),
    )


def http_requests() -> list[bytes]:
    """Application, method, path, query, two headers, body, each on a line of its own."""
    address = seeds.HOME.id.encode()
    return [
        b"0\nGET\n/blocks\nfrom=1&limit=5\n\n\n",
        b"0\nGET\n/accounts/" + address + b"\n\n\n\n",
        b"0\nGET\n/transactions/" + b"ab" * 32 + b"\n\n\n\n",
        b"1\nPOST\n/v1/claims\n\nauthorization: Bearer x\ncontent-type: application/json\n{}",
        b"2\nGET\n/today\nday=5\ncookie: hem=abc; x=1\n\n",
        b"2\nPOST\n/login\n\ncookie: session=abc\norigin: http://localhost\npassword=x&form=y",
        b"2\nPOST\n/policy\n\ncontent-type: multipart/form-data\n\nfile=[]",
    ]


def run_http(data: bytes) -> None:
    """Any request, with any cookies, query and body: an answer below 500."""
    number, method, path, query, first, second, body = (*data.split(b"\n", 6), *[b""] * 7)[:7]
    app = _apps()[int(number) % 3 if number.isdigit() and len(number) < 5 else 0]
    pairs = [header.partition(b": ")[::2] for header in (first, second) if header]
    headers = [(b"host", b"localhost"), *((name.lower(), value) for name, value in pairs)]
    text = path.decode("latin-1")
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1",
        "method": method.decode("latin-1") or "GET", "path": text or "/", "raw_path": path,
        "query_string": query, "headers": headers, "scheme": "http", "root_path": "",
        "client": ("127.0.0.1", 1), "server": ("localhost", 80),
    }  # fmt: skip
    statuses: list[int] = []

    bodies = [body]

    async def receive() -> dict[str, Any]:
        if not bodies:  # the client waits for the whole answer
            await asyncio.Event().wait()
        return {"type": "http.request", "body": bodies.pop(), "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    async def ask() -> None:
        async with asyncio.timeout(10):
            await app(scope, receive, send)

    services.run(ask())
    assert (statuses and statuses[0] < 500) or statuses[0] == 503, statuses


# --- Firmware, TLS, revoked keys ------------------------------------------------------------------

TARGET = {"vendor": "Made up", "model": "M1", "version": "1.2", "template": "t",
          "fromVersions": ["1.1"], "installsBy": "file-records"}  # fmt: skip
ATTESTATION = firmware.Attestation(
    meter=seeds.HOME.id, vendor="Made up", model="M1", serial="1", firmware="1.2", digest="",
    slot=1, time_ms=1, nonce="n",
)  # fmt: skip


def firmware_words() -> list[bytes]:
    signed = firmware.sign_attestation(ATTESTATION, seeds.HOME, "m")
    return [
        msgspec.json.encode(TARGET),
        msgspec.json.encode(firmware.attestation_json(signed)),
        b"1.10.2",
    ]


def run_firmware(data: bytes) -> None:
    """A target's metadata, an attestation, a version: what EMS, gateway and CSM-DB read."""
    with suppress(WireError):
        firmware.version_of(data.decode(errors="replace"))
    try:
        value = msgspec.json.decode(data)
    except (ValueError, RecursionError):  # the wire's own decoder is `canonical`'s target
        return
    for read in (firmware.read_target, firmware.load_attestation):
        with suppress(WireError):
            read(value)


def signing_requests() -> list[bytes]:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, seeds.HOME.id)])
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, None)
    return [request.public_bytes(Encoding.DER)]


def run_signing_request(data: bytes) -> None:
    """PKCS#10, as the CSM-DB gets it from a home."""
    with suppress(WireError):
        read_request(data)


def revocation_lists() -> list[bytes]:
    unsigned = revoked_keys.RevocationList(
        number=3, time_ms=1, identities=[seeds.HOME.id], serials=["0a"]
    )
    return [revoked_keys.dump_list(revoked_keys.seal_list(unsigned, seeds.HOME, "m"))]


def run_revocation_list(data: bytes) -> None:
    """What a broker fetches from the CSM-DB."""
    with suppress(WireError):
        revoked_keys.read_list(data, seeds.HOME.public, "m")


ROWS: tuple[tuple[str, Callable[[bytes], None], Callable[[], Sequence[bytes]], bool], ...] = (
    ("private_request", run_private_request, private_requests, False),
    ("snapshot", run_snapshot, snapshots, False),
    ("p1", run_p1, telegrams, False),
    ("mqtt_meter", run_mqtt_meter, meter_messages, True),
    ("policy", run_policy, policies, False),
    ("template", run_template, templates, False),
    ("aggregator_config", run_aggregator_config, aggregator_configs, True),
    ("archive", run_archive, archives, True),
    ("http", run_http, http_requests, True),
    ("firmware", run_firmware, firmware_words, False),
    ("signing_request", run_signing_request, signing_requests, False),
    ("revoked_keys", run_revocation_list, revocation_lists, False),
)
"""Name, target, seeds, and whether it keeps state: as `harness.Target`."""
