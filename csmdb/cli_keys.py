"""The `csmdb` commands about the life of keys: TLS, revocation, re-enrolment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

Folder = Annotated[Path, typer.Argument(help="Folder of the CSM-DB.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Reason = Annotated[str, typer.Option(help="lost, stolen, rotated or retired.")]

tls_app = typer.Typer(help="The X.509 authority of the broker's lanes.", no_args_is_help=True)


def register_key_commands(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(tls_app, name="tls")
    app.command()(revoke)
    app.command("re-enrol")(re_enrol)
    app.command()(revoked)


@tls_app.command("init")
def tls_init(folder: Folder, as_json: Json = False) -> None:
    """Make the authority; `tls-ca.crt` in the folder goes to brokers, homes and services."""
    from csmdb.tls import CA_CERTIFICATE, init_authority  # noqa: PLC0415

    with _open(folder) as csmdb:
        made = init_authority(csmdb)
    until = made.certificate.not_valid_after_utc.isoformat()
    _say({"ca": str(folder / CA_CERTIFICATE), "until": until}, as_json)


@tls_app.command("server")
def tls_server(
    folder: Folder,
    host: Annotated[list[str], typer.Argument(help="Names and addresses of the broker.")],
    out: Annotated[Path, typer.Option(help="Folder to write into.")] = Path("broker-tls"),
    as_json: Json = False,
) -> None:
    """Write a broker's ca.crt, server.crt, server.key and crl.pem."""
    from csmdb.tls import write_server  # noqa: PLC0415

    with _open(folder) as csmdb:
        write_server(csmdb, host, out)
    _say({"folder": str(out), "names": list(host)}, as_json)


def revoke(
    folder: Folder,
    identity: Annotated[str, typer.Argument(help="A participant, a service or an address.")],
    reason: Reason,
    tls: Annotated[bool, typer.Option("--tls", help="Its TLS certificates only.")] = False,
    as_json: Json = False,
) -> None:
    """Revoke a key: a participant's with its live addresses, an address', or TLS only."""
    from csmdb.revoked_keys import revoke as revoke_key  # noqa: PLC0415
    from csmdb.revoked_keys import revoke_tls  # noqa: PLC0415

    with _open(folder) as csmdb:
        number = (revoke_tls if tls else revoke_key)(csmdb, identity, reason)
    _say({"number": number}, as_json)


def re_enrol(folder: Folder, participant: str, reason: Reason, as_json: Json = False) -> None:
    """Revoke a lost device's keys and print the one-time code for its successor."""
    from csmdb.succession import re_enrol as succeed  # noqa: PLC0415

    with _open(folder) as csmdb:
        code = succeed(csmdb, participant, reason)
    print(json.dumps({"claimCode": code}) if as_json else code)  # noqa: T201


def revoked(folder: Folder) -> None:
    """Print the signed list of revoked keys (canonical JSON), as brokers fetch it."""
    from csmdb.revoked_keys import revocation_list  # noqa: PLC0415
    from wire.revoked_keys import dump_list  # noqa: PLC0415

    with _open(folder) as csmdb:
        print(dump_list(revocation_list(csmdb)).decode())  # noqa: T201


def _open(folder: Path) -> Any:
    from csmdb.setup import open_csmdb  # noqa: PLC0415

    return open_csmdb(folder)


def _say(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(facts))  # noqa: T201
        return
    for name, value in facts.items():
        print(f"{name}: {', '.join(value) if isinstance(value, list) else value}")  # noqa: T201
