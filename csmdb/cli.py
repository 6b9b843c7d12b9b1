"""The `csmdb` command: make a CSM-DB, hand out claims and certificates, look, run."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from csmdb import cli_advisories
from csmdb.cli_firmware import firmware_app
from csmdb.cli_keys import register_key_commands
from wire.errors import HearthgridError

app = typer.Typer(
    help="The certified-smart-meter database: who may trade, with which meter.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
claim_app = typer.Typer(help="One-time codes for enrolment.", no_args_is_help=True)
app.add_typer(claim_app, name="claim")
audit_app = typer.Typer(help="What was done, by whom, to whom.", no_args_is_help=True)
app.add_typer(audit_app, name="audit")
token_app = typer.Typer(help="Operators' tokens for the HTTP API.", no_args_is_help=True)
app.add_typer(token_app, name="token")
app.add_typer(firmware_app, name="firmware")
app.add_typer(cli_advisories.app, name="advisory")
app.command()(cli_advisories.meter)

register_key_commands(app)

Folder = Annotated[Path, typer.Argument(help="Folder of the CSM-DB.")]
STORAGE = "postgresql://… of an empty database; without, SQLite in the folder."
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def init(
    folder: Folder,
    market: Annotated[str, typer.Option(help="Name of the market, [a-z0-9-].")],
    slot_s: Annotated[int, typer.Option(help="Length of a slot [s].")] = 900,
    storage: Annotated[str, typer.Option(help=STORAGE)] = "",
    as_json: Json = False,
) -> None:
    """Make issuing key, box key and database."""
    from csmdb.setup import FACTS, create  # noqa: PLC0415  (help should not wait for imports)

    with create(folder, market, slot_length_s=slot_s, storage_url=storage):
        facts = json.loads((folder / FACTS).read_text())
    _print(facts, as_json)


@claim_app.command("add")
def claim_add(
    folder: Folder,
    roles: Annotated[str, typer.Option(help="Comma-separated, e.g. prosumer.")],
    max_import_w: Annotated[int, typer.Option(help="Limit of the connection [W].")],
    max_export_w: Annotated[int, typer.Option(help="Limit of the connection [W].")],
    feeder: Annotated[str, typer.Option(help="Name of the feeder.")],
    validator: Annotated[str, typer.Option(help="Validator this home hosts.")] = "",
    days: Annotated[int, typer.Option(min=1, help="The code's life [d].")] = 30,
    as_json: Json = False,
) -> None:
    """Print a one-time code for one home. It is shown once."""
    with _open(folder) as csmdb:
        code = csmdb.add_claim(
            _split(roles), max_import_w, max_export_w, feeder, validator, days=days
        )
    if as_json:
        print(json.dumps({"claimCode": code}))
    else:
        print(code)


@app.command()
def service_cert(
    folder: Folder,
    key: Annotated[str, typer.Option(help="Public key, base64url.")],
    roles: Annotated[str, typer.Option(help="Comma-separated, e.g. aggregator,dso.")],
    name: Annotated[str, typer.Option(help="A name for lists.")] = "",
) -> None:
    """Print a service's certificate (canonical JSON)."""
    from wire.certificates import dump_text  # noqa: PLC0415
    from wire.keys import KEY_BYTES, from_text  # noqa: PLC0415

    with _open(folder) as csmdb:
        public = from_text(key, KEY_BYTES)
        print(dump_text(csmdb.issue_service_certificate(public, _split(roles), name)))


@app.command()
def licence(
    folder: Folder,
    key: Annotated[str, typer.Option(help="Public key of the validator, base64url.")],
    controller: Annotated[str, typer.Option(help="Who runs it; one name per party.")],
    days: Annotated[int, typer.Option(min=1, max=3650, help="How long it is good [d].")] = 365,
) -> None:
    """
    Print a licence to validate. Put it into the node's folder as licence.json: a running node asks
    for a seat at once, and renews it when a later licence takes the file's place.
    """
    from wire.certificates import dump_text  # noqa: PLC0415
    from wire.keys import KEY_BYTES, from_text  # noqa: PLC0415

    with _open(folder) as csmdb:
        print(dump_text(csmdb.license_validator(from_text(key, KEY_BYTES), controller, days)))


@app.command("list")
def list_all(
    folder: Folder,
    claims: Annotated[bool, typer.Option("--claims", help="Claims instead.")] = False,
    as_json: Json = False,
) -> None:
    """List participants and services, or claims."""
    with _open(folder) as csmdb:
        rows = csmdb.repository.list_claims() if claims else csmdb.repository.list_participants()
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        print("  ".join(f"{name}={_short(value)}" for name, value in row.items() if value))


@app.command()
def show(folder: Folder, participant: str, as_json: Json = False) -> None:
    """Show a participant and its newest certificate."""
    from wire.certificates import dump  # noqa: PLC0415
    from wire.errors import ConfigError  # noqa: PLC0415

    with _open(folder) as csmdb:
        certificate = csmdb.repository.certificate_of(participant)
        rows = csmdb.repository.list_participants()
    found = next((row for row in rows if row["id"] == participant), None)
    if found is None or certificate is None:
        raise ConfigError(f"{participant}: nobody has this identity")
    _print({**found, "certificate": dump(certificate)}, as_json)


@app.command()
def ban(
    folder: Folder,
    participant: str,
    reason: Annotated[str, typer.Option(help="Why; empty lifts the ban.")] = "",
) -> None:
    """Refuse what a participant asks for, or lift that."""
    with _open(folder) as csmdb:
        csmdb.ban(participant, reason)


@app.command()
def person(
    folder: Folder,
    participant: str,
    name: Annotated[str, typer.Option(help="Of the person or company.")] = "",
    contact: Annotated[str, typer.Option(help="Telephone, e-mail.")] = "",
    address: Annotated[str, typer.Option(help="Of the house.")] = "",
    meter_location: Annotated[str, typer.Option(help="Where the meter hangs.")] = "",
) -> None:
    """Keep who a participant is; takes the place of what was known."""
    from csmdb.privacy import set_person  # noqa: PLC0415
    from csmdb.records import Person  # noqa: PLC0415

    with _open(folder) as csmdb:
        set_person(csmdb, participant, Person(name, contact, address, meter_location))


@app.command()
def erase(folder: Folder, participant: str, as_json: Json = False) -> None:
    """
    Erase what is personal of a participant. Keys and grants that the market needs stay.

    Backups that were made before still have it: delete them too.
    """
    from csmdb.privacy import erase as erase_person  # noqa: PLC0415

    with _open(folder) as csmdb:
        _print(asdict(erase_person(csmdb, participant)), as_json)


@app.command()
def export(folder: Folder, participant: str, as_json: Json = False) -> None:
    """Print everything that is kept about a participant."""
    from csmdb.privacy import export as export_person  # noqa: PLC0415

    with _open(folder) as csmdb:
        found = export_person(csmdb, participant)
    print(json.dumps(found, indent=None if as_json else 2))


@app.command()
def privacy(folder: Folder, as_json: Json = False) -> None:
    """Count the homes whose addresses look alike; say what to do where they are too few."""
    from csmdb.limit_classes import remedy  # noqa: PLC0415
    from csmdb.privacy import crowds_of  # noqa: PLC0415

    with _open(folder) as csmdb:
        found, rules = crowds_of(csmdb), csmdb.privacy
    rows = [
        {
            **asdict(one),
            "enough": one.homes >= rules.min_homes,
            "remedy": "" if one.homes >= rules.min_homes else remedy(one, rules.limit_classes_w),
        }
        for one in found
    ]
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        role = " and ".join(name for name in ("buy", "sell") if row[f"can_{name}"])
        advice = f": fewer than {rules.min_homes}; {row['remedy']}" if row["remedy"] else ""
        print(f"{row['homes']} homes that {role}, up to {row['class_w']} W{advice}")


@app.command()
def backup(
    folder: Folder,
    target: Annotated[Path, typer.Argument(help="File to write; never overwritten.")],
    as_json: Json = False,
) -> None:
    """Write keys and database into one file, also while it runs. Guard it: it can certify."""
    from csmdb.backup import back_up  # noqa: PLC0415

    with _open(folder) as csmdb:
        _print({"rows": back_up(csmdb, target)}, as_json)


@app.command()
def restore(
    folder: Annotated[Path, typer.Argument(help="New folder.")],
    source: Annotated[Path, typer.Argument(help="File of `csmdb backup`.")],
    storage: Annotated[str, typer.Option(help=STORAGE)] = "",
    as_json: Json = False,
) -> None:
    """Bring a CSM-DB back. What was erased or banned since, do again."""
    from csmdb.backup import restore as bring_back  # noqa: PLC0415

    restored = bring_back(source, folder, storage)
    _print({"rows": restored.rows, "made": _time(restored.made_ms)}, as_json)


@audit_app.command("verify")
def audit_verify(
    folder: Folder,
    expect: Annotated[
        str, typer.Option(help="SEQ:DIGEST that an earlier check printed; must still be there.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Check the chain of the audit log to its sealed end; exit 1 says what does not fit."""
    from csmdb.audit import AuditBrokenError  # noqa: PLC0415

    with _open(folder) as csmdb:
        try:
            head = csmdb.repository.check_audit(expect)
        except AuditBrokenError as error:
            print(f"csmdb: {error}", file=sys.stderr)
            raise typer.Exit(1) from None
    if as_json:
        print(json.dumps({"rows": head.seq, "digest": head.digest}))
    else:
        print(f"{head.seq} rows, chain unbroken; head {head.seq}:{head.digest}")


@audit_app.command("show")
def audit_show(
    folder: Folder,
    subject: Annotated[str, typer.Option(help="Only what is about this id.")] = "",
    as_json: Json = False,
) -> None:
    """Print the audit log."""
    with _open(folder) as csmdb:
        rows = list(csmdb.repository.audit_rows(subject))
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        words = (row[name] for name in ("actor", "action", "subject", "outcome"))
        print(f"{row['seq']:6} {_time(row['time_ms'])} {' '.join(word for word in words if word)}")


@token_app.command("new")
def token_new(
    folder: Folder,
    role: Annotated[str, typer.Argument(help="viewer, registrar or security.")],
    name: Annotated[str, typer.Option(help="Whose it is, for lists.")] = "",
    days: Annotated[int, typer.Option(min=1, max=3650, help="How long it is good [d].")] = 90,
    as_json: Json = False,
) -> None:
    """Print a token. It is shown once."""
    from csmdb.tokens import make_token  # noqa: PLC0415

    with _open(folder) as csmdb:
        token = make_token(csmdb, role, name, days)
    print(json.dumps({"token": token}) if as_json else token)


@token_app.command("list")
def token_list(folder: Folder, as_json: Json = False) -> None:
    """List tokens, without their secrets."""
    with _open(folder) as csmdb:
        rows = csmdb.repository.list_tokens()
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(f"{row['id']}  {row['role']:9}  until {_time(row['expires_ms'])}  {row['name']}")


@token_app.command("revoke")
def token_revoke(
    folder: Folder, token_id: Annotated[str, typer.Argument(help="As `list` shows it.")]
) -> None:
    """End a token now."""
    from csmdb.tokens import revoke_token  # noqa: PLC0415

    with _open(folder) as csmdb:
        revoke_token(csmdb, token_id)


@app.command()
def run(
    folder: Folder,
    host: Annotated[str, typer.Option(help="The broker's host.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="The broker's port.")] = 1883,
    tls: Annotated[bool, typer.Option("--tls", help="With a certificate of our own.")] = False,
) -> None:
    """Answer requests until stopped."""
    from csmdb.process import run_service  # noqa: PLC0415

    run_service(folder, host, port, tls=tls)


def main() -> None:
    """Console script; a mistake is one line and exit code 2."""
    try:
        app()
    except HearthgridError as error:
        print(f"csmdb: {error}", file=sys.stderr)
        sys.exit(2)


def _open(folder: Path) -> Any:
    from csmdb.setup import open_csmdb  # noqa: PLC0415

    return open_csmdb(folder)


def _split(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _time(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="seconds")


def _short(value: object) -> str:
    return ",".join(value) if isinstance(value, list) else str(value)


def _print(value: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(value))
        return
    for name, item in value.items():
        print(f"{name}: {json.dumps(item) if isinstance(item, dict) else _short(item)}")


if __name__ == "__main__":
    main()
